"""Programs that make files of the project; run them from its root. Using the project does not need them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    """Load onnx/<name>.py afresh; the folder is not a package."""
    spec = importlib.util.spec_from_file_location(f"onnx_{name}", ROOT / "onnx" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module they are defined in
    spec.loader.exec_module(module)
    return module
