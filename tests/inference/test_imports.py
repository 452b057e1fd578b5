"""The modules that an exported graph runs with import without torch and the other large packages."""

import subprocess
import sys

from helpers import ROOT

LIGHT = (
    "datasets.files", "datasets.geometry", "datasets.roi", "inference.bundle", "inference.inputs", "inference.judge", "inference.loading",
    "inference.predict", "inference.regions", "inference.saving", "inference.table", "inference.thresholds", "reporting.cells",
    "reporting.drawing", "reporting.formats", "utils",
)  # fmt: skip
MISSING = ("torch", "torchvision", "timm", "tqdm", "click", "sklearn", "scipy", "pandas", "openpyxl", "matplotlib")


def test_light_modules_import_without_large_packages():
    code = (
        f"import importlib, sys\nfor name in {MISSING!r}: sys.modules[name] = None\n"
        f"for name in {LIGHT!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
