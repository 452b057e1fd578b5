"""The command line, `python main.py COMMAND`: every command by its name, its module and what --help says of it."""

from __future__ import annotations

from commands.program import Entry, Program

main = Program(
    {
        "net": Entry("commands.net", "Options of the model, before dataset; may be left out."),
        "dataset": Entry("commands.dataset", "Train and test on a data set."),
        "predict": Entry("commands.predict", "Judge images with a trained model."),
        "bundle": Entry("commands.bundle", "Write a trained model as one zip file that runs without PyTorch."),
        "serve": Entry("commands.serve", "Judge pictures that arrive: by HTTP, or in a folder."),
        "retrain": Entry("commands.retrain", "Learn from pictures that were marked in a store."),
        "report": Entry("commands.report", "Compare runs, or write the report of one again."),
        "check": Entry("commands.check", "List what is wrong with the files of a data set."),
        "preview": Entry("commands.preview", "Show what a training will make of the images."),
        "foreground": Entry("commands.foreground", "Make masks of where the object lies in each image."),
        "demo": Entry("commands.demo", "Make two classes of demo images."),
        "mad-sys": Entry("commands.mad_sys", "Make test sets of weak defects, as in the paper."),
    }
)

if __name__ == "__main__":
    main(prog_name="python main.py")
