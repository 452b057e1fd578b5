"""The scripts of onnx/ as modules. The folder is not a package, because it would hide the package `onnx`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parent.parent / "onnx"


def script(name: str) -> ModuleType:
    """Load onnx/<name>.py afresh."""
    spec = importlib.util.spec_from_file_location(f"onnx_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module they are defined in
    spec.loader.exec_module(module)
    return module
