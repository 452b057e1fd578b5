"""What makes files of the project: run from its root, needed by nobody who only uses it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    """onnx/<name>.py; its folder is no package."""
    spec = importlib.util.spec_from_file_location(f"onnx_{name}", ROOT / "onnx" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
