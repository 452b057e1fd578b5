"""Whether the tester, the library, bfloat16 and exported graphs say the same of every test image of a trained class.

    .venv/bin/python benchmarks/agreement.py RESULTS mvtec_bottle --good MVTEC/bottle/train/good

Against per_image.csv, as the tester wrote it: largest difference of a score, decisions that differ, image AUROC.
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
    """Every way to run the model of a checkpoint's folder."""
    export, ort = script("pth2onnx"), script("ort")
    model = load_checkpoint(folder)
    made: dict[str, Judge] = {"library": model, "bf16": load_checkpoint(folder, precision="bf16")}
    quantisation = export.quantisation
    paths = quantisation.calibration_sample(list_images(good))
    for name, change in (("onnx fp32", None), ("onnx int8", lambda net: quantisation.to_int8(net, model, paths))):
        file = place / f"{name.replace(' ', '_')}.onnx"
        graph = export.export(model, export.GraphOptions(), change)
        export.save(graph, export.describe(model, export.OUTPUTS, name), file)
        made[name] = ort.GraphJudge(file)
    return made


def main() -> None:
    """Judge, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("row", help="<dataset>_<class>")
    parser.add_argument("--good", type=Path, required=True, help="good pictures that int8 is calibrated on")
    args = parser.parse_args()
    table = pd.read_csv(args.results / "per_image.csv")
    table = table[table["class"] == args.row]
    print(f"{'tester':10s} image AUROC {100 * roc_auc_score(table.label, table.score):.2f}, {len(table)} images")
    with tempfile.TemporaryDirectory() as place:
        for name, judge in judges(args.results / "models" / "backbone_0" / args.row, args.good, Path(place)).items():
            found = [judge.predict_image(path) for path in table.path]
            apart = np.abs(np.array([r.score for r in found]) - table.score).max()
            other = sum(bool(r.decision) != bool(d) for r, d in zip(found, table.decision, strict=True))
            auroc = 100 * roc_auc_score(table.label, [r.score for r in found])
            print(
                f"{name:10s} image AUROC {auroc:.2f}, score at most {apart:.1e} apart, {other} other decisions",
                flush=True,
            )


if __name__ == "__main__":
    main()
