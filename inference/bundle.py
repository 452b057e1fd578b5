"""A bundle: one zip file with all that a trained model needs to run without PyTorch. Needs no torch itself.

It holds exactly the files of `NAMES`, uncompressed, and `manifest.json` with the size and the SHA-256 of each. Reading
one unpacks nothing to disk and uses no path in it, so that nothing outside the archive can be read or written, and
takes no more memory than the file is large. The checksums detect damage; they do not prove who made a bundle.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.thresholds import Thresholds
from utils import InputError, WorkError, reason_of, write_bytes

GRAPH, THRESHOLDS, REGIONS, LICENSE, README = "model.onnx", "thresholds.json", "regions.json", "LICENSE", "README.txt"
NAMES, MANIFEST = (GRAPH, THRESHOLDS, REGIONS, LICENSE, README), "manifest.json"
FORMAT = 1  # of the manifest
MOST_BYTES = {GRAPH: 2**31 - 1}  # protobuf's limit
OTHER_BYTES = 1 << 20  # of any other file
WHEN = (1980, 1, 1, 0, 0, 0)  # the same for every file, so that the same model gives the same bytes
REMEDY = "make it again with python main.py bundle"


@dataclass(frozen=True)
class Bundle:
    """The content of a bundle, with checksums that were right.

    Attributes:
        graph: an ONNX graph, as `onnx/pth2onnx.py` writes it.
        thresholds: of the decisions; None if the model has none.
        min_area: regions with fewer pixels are left out.
        class_name: of the training, `<dataset>_<class>`.
    """

    graph: bytes
    thresholds: Thresholds | None
    min_area: int = 1
    class_name: str = ""


def is_bundle(path: Path) -> bool:
    """Whether a file is to be read as a bundle: by its name, or because it begins as a zip does."""
    try:
        with path.open("rb") as file:
            return path.suffix.lower() == ".zip" or file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


# ------------------------------------------------------------------------------------------ writing


def write(path: Path, bundle: Bundle, texts: Mapping[str, str]) -> None:
    """Write a bundle under a temporary name, then rename it.

    Args:
        path: of the zip file.
        bundle: its content.
        texts: the texts of `LICENSE` and `README`.

    Raises:
        WorkError: the graph refers to other files, a part is too large, or the file cannot be written.
    """
    thresholds = bundle.thresholds.plain() if bundle.thresholds else {}
    plain = {key: None if value != value else value for key, value in thresholds.items()}
    contents = {
        GRAPH: bundle.graph, THRESHOLDS: _as_json(plain), REGIONS: _as_json({"min_area": bundle.min_area}),
        **{name: text.encode() for name, text in texts.items()},
    }  # fmt: skip
    for name, content in contents.items():
        if len(content) > MOST_BYTES.get(name, OTHER_BYTES):
            raise WorkError(f"{path}: {name} has {len(content)} bytes, too many for a bundle")
    _refuse_other_files(path, bundle.graph)
    files = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}
    manifest = {"project": "GLASS", "kind": "bundle", "format": FORMAT, "class_name": bundle.class_name, "files": files}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {MANIFEST: _as_json(manifest), **contents}.items():
            archive.writestr(zipfile.ZipInfo(name, WHEN), content)
    write_bytes(path, buffer.getvalue())


def _as_json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _refuse_other_files(path: Path, graph: bytes) -> None:
    """Refuse a graph that may keep weights outside itself: a runtime would open the path that it names.

    Every such reference has the key `location`, which no graph of this project contains otherwise.
    """
    if b"location" in graph:
        raise WorkError(f"{path}: the graph may refer to files outside itself, which a bundle does not allow")


# ------------------------------------------------------------------------------------------ reading


def read(path: Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        InputError: no such file.
        WorkError: it is damaged, not a bundle of this project, or its checksums are wrong.
    """
    if not path.is_file():
        raise InputError(f"no bundle {path}" + (": it is a folder" if path.exists() else ""))
    try:
        with zipfile.ZipFile(path) as archive:
            contents = _contents_of(path, archive)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        if isinstance(error, WorkError):
            raise
        raise WorkError(f"{path} is not a zip file that can be read: {reason_of(error)}; {REMEDY}") from error
    class_name = _check(path, contents)
    _refuse_other_files(path, contents[GRAPH])
    try:
        plain = {k: float("nan") if v is None else v for k, v in json.loads(contents[THRESHOLDS]).items()}
        min_area = json.loads(contents[REGIONS])["min_area"]
        if type(min_area) is not int or min_area < 1:
            raise ValueError(f"min_area is {min_area!r}")
        return Bundle(contents[GRAPH], Thresholds.of(plain), min_area, class_name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WorkError(f"{path}: its thresholds or regions cannot be read ({error}); {REMEDY}") from error


def _contents_of(path: Path, archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The files of a bundle, if it holds exactly those that a bundle holds."""
    entries = archive.infolist()
    names = sorted(entry.filename for entry in entries)
    if MANIFEST not in names:
        raise WorkError(f"{path} is not a bundle of GLASS: it holds no {MANIFEST}; {REMEDY}")
    if names != sorted((MANIFEST, *NAMES)):
        odd = [name for name in names if name not in (MANIFEST, *NAMES)]
        wrong = f"it holds {odd[0][:60]!r}" if odd else "a file in it is missing or there twice"
        raise WorkError(f"{path} is not a bundle of GLASS: {wrong}; {REMEDY}")
    total = path.stat().st_size
    for entry in entries:
        # without compression, what is read is never more than what is there
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise WorkError(f"{path}: {entry.filename} is compressed or encrypted, as in no bundle; {REMEDY}")
        if entry.file_size > min(total, MOST_BYTES.get(entry.filename, OTHER_BYTES)):
            raise WorkError(f"{path}: {entry.filename} claims {entry.file_size} bytes, too many for it; {REMEDY}")
    return {entry.filename: archive.read(entry) for entry in entries}


def _check(path: Path, contents: Mapping[str, bytes]) -> str:
    """Compare the files with the manifest; returns the name of the class in it."""
    try:
        manifest = json.loads(contents[MANIFEST])
        expected = {name: manifest["files"][name]["sha256"] for name in NAMES}
        known = (manifest["project"], manifest["kind"], manifest["format"]) == ("GLASS", "bundle", FORMAT)
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise WorkError(f"{path}: its {MANIFEST} is not that of a bundle of this version; {REMEDY}")
    for name, digest in expected.items():
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise WorkError(f"{path}: {name} does not have the SHA-256 of the manifest: it was changed; {REMEDY}")
    return str(manifest.get("class_name", ""))
