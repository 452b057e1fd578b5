"""Compare the test, the library, bfloat16 and exported graphs on every test image of a trained class.

    .venv/bin/python benchmarks/agreement.py RESULTS mvtec_bottle --good MVTEC/bottle/train/good

Everything is compared with per_image.csv, which the test wrote: the largest difference of the scores, the number of
different decisions, and the image AUROC.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from datasets.listing import list_images  # noqa: E402
from glass import load_checkpoint  # noqa: E402
from inference.judge import Judge  # noqa: E402
from tools import script  # noqa: E402


def judges(folder: Path, good: Path, place: Path) -> dict[str, Judge]:
    """All ways to run the model in a folder of checkpoints, by name; exported graphs are written to `place`."""
    export, ort = script("pth2onnx"), script("ort")
    model = load_checkpoint(folder)
    ways: dict[str, Judge] = {"library": model, "bf16": load_checkpoint(folder, precision="bf16")}
    quantisation = export.quantisation
    paths = quantisation.calibration_sample(list_images(good))
    for name, change in (("onnx fp32", None), ("onnx int8", lambda net: quantisation.to_int8(net, model, paths))):
        file = place / f"{name.replace(' ', '_')}.onnx"
        graph = export.export(model, export.GraphOptions(), change)
        export.save(graph, export.describe(model, export.OUTPUTS, name), file)
        ways[name] = ort.GraphJudge(file)
    return ways


def main() -> None:
    """Judge all images in all ways, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("row", help="<dataset>_<class>")
    parser.add_argument("--good", type=Path, required=True, help="good images for the calibration of int8")
    args = parser.parse_args()
    table = pd.read_csv(args.results / "per_image.csv")
    table = table[table["class"] == args.row]
    print(f"{'tester':10s} image AUROC {100 * roc_auc_score(table.label, table.score):.2f}, {len(table)} images")
    with tempfile.TemporaryDirectory() as place:
        for name, judge in judges(args.results / "models" / "backbone_0" / args.row, args.good, Path(place)).items():
            results = [judge.predict_image(path) for path in table.path]
            difference = np.abs(np.array([r.score for r in results]) - table.score).max()
            decisions = sum(bool(r.decision) != bool(d) for r, d in zip(results, table.decision, strict=True))
            auroc = 100 * roc_auc_score(table.label, [r.score for r in results])
            print(
                f"{name:10s} image AUROC {auroc:.2f}, largest difference of a score {difference:.1e}, "
                f"{decisions} different decisions",
                flush=True,
            )


if __name__ == "__main__":
    main()
