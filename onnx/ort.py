"""Judge images with an exported graph or a bundle: `python onnx/ort.py MODEL INPUT… --out DIR`.

Needs onnxruntime, NumPy, OpenCV and Pillow, for TIFF also tifffile and imagecodecs, and only those modules of this
project that need no more than that. The output is that of `python main.py predict`.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402

from datasets.files import ReadOptions  # noqa: E402
from datasets.geometry import Geometry  # noqa: E402
from datasets.limits import FULL_BITS, MAX_PIXELS  # noqa: E402
from datasets.roi import RegionOfInterest  # noqa: E402
from inference import bundle  # noqa: E402
from inference.judge import Judge, choose_tiling, refuse_tiles  # noqa: E402
from inference.predict import FILE, PredictionOptions, find_pictures, paths_from_stdin, predict  # noqa: E402
from inference.thresholds import Thresholds  # noqa: E402
from utils import LOGGER, InputError, WorkError, describe_os_error, escape_what_cannot_be_printed, setup_logging  # noqa: E402  # noqa: E402

FORMAT = 1  # of the metadata
NAN = float("nan")
INTERRUPTED = 130


class GraphJudge(Judge):
    """Judges images with a graph that `pth2onnx.py` wrote, or with one in a bundle.

    Args:
        path: of the graph, or of the bundle.
        provider: of onnxruntime, by its full name or the beginning of it (`cuda`).
        tile, overlap: see `inference.judge.choose_tiling`.
        threads: number of CPU threads; 0 lets onnxruntime choose.
        max_pixels: images with more pixels are refused; by default as in the training, or 500 million.
        min_area: regions with fewer pixels of the image are left out of the results; by default as the bundle says.

    Raises:
        InputError: there is no such provider, no such file, or the tiles are not possible.
        WorkError: the file is not a graph or a bundle of this project, or it is damaged.
    """

    def __init__(
        self,
        path: Path,
        provider: str = "cpu",
        tile: int | str | None = None,
        overlap: float | None = None,
        threads: int = 0,
        max_pixels: int | None = None,
        min_area: int | None = None,
    ) -> None:
        packed = bundle.read(path) if bundle.is_bundle(path) else None
        self._session = _open(path, choose_provider(provider), threads, packed.graph if packed else None)
        self.metadata = _read_metadata(path, self._session)
        self.class_name = str(self.metadata["class_name"])
        config = {**self.metadata, "keep_all": bool(self.metadata["keep_all"])}
        self.geometry = Geometry.of_config(config)
        thresholds = self.metadata["thresholds"] or {}
        of_graph = Thresholds.of({key: NAN if value is None else value for key, value in thresholds.items()})
        self.thresholds = packed.thresholds if packed else of_graph
        self.tiling = choose_tiling(config, tile, overlap)
        self.roi = _roi_of(path, self.metadata)
        refuse_tiles(self.roi, self.tiling)
        if max_pixels is None:
            max_pixels = self.metadata.get("max_pixels", MAX_PIXELS)
        self.min_area = min_area or (packed.min_area if packed else 1)
        self.reading = ReadOptions(self.metadata.get("bits", FULL_BITS), max_pixels)
        image = self._session.get_inputs()[0]
        self._takes_floats, self._takes_one = "float" in image.type, image.shape[0] == 1
        size = image.shape[1:3]
        self._picture_size = tuple(size) if all(isinstance(side, int) for side in size) else None

    def score_pictures(self, pictures: Sequence[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RGB images → image scores (B,) and anomaly maps (B, H, W) of the part that the network sees."""
        if not len(pictures):
            return np.zeros(0, np.float32), np.zeros((0, *self.geometry.size), np.float32)
        arrays = [np.asarray(picture) for picture in pictures]
        for array in arrays:
            self._refuse_other_size(array.shape[:2])
        as_batch = not self._takes_one and len({array.shape for array in arrays}) == 1
        outputs = [self._run(np.stack(arrays))] if as_batch else [self._run(array[None]) for array in arrays]
        return tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))

    def _refuse_other_size(self, size: tuple[int, ...]) -> None:
        if self._picture_size not in (None, size):
            expected, actual = ("x".join(map(str, sides)) for sides in (self._picture_size, size))
            raise WorkError(
                f"the graph takes only images of {expected} pixels (height x width), this one has {actual}; export the "
                "model without --picture_size"
            )

    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        inputs = {"image": images.astype(np.float32) / 255 if self._takes_floats else images}
        try:
            return tuple(self._session.run(["score", "map"], inputs))
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's exception classes are not public
            raise WorkError(f"onnxruntime: {_first_line(error)}") from error


def choose_provider(provider: str) -> str:
    """The full name of a provider of onnxruntime.

    Raises:
        InputError: this onnxruntime has no provider of that name.
    """
    names = onnxruntime.get_available_providers()
    for name in names:
        if provider.lower() in (name.lower(), name.lower().removesuffix("executionprovider")):
            return name
    short = ", ".join(name.removesuffix("ExecutionProvider").lower() for name in names)
    raise InputError(f"--provider {provider}: this onnxruntime has {short}")


def _open(path: Path, provider: str, threads: int, graph: bytes | None) -> onnxruntime.InferenceSession:
    """A session for the graph in a file, or for the given one, which the file holds."""
    if not path.is_file():
        raise InputError(f"no model {path}" + (": it is a folder" if path.exists() else ""))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(graph or str(path), options, providers=[provider])
        if provider not in session.get_providers():
            LOGGER.warning("--provider %s does not start on this machine; continuing on the CPU", provider)
        return session
    except Exception as error:  # onnxruntime's exception classes are not public
        raise WorkError(f"{path} is not an ONNX graph that can be run: {_first_line(error)}") from error


def _read_metadata(path: Path, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """The metadata of a graph.

    Raises:
        WorkError: the graph is not of this project, or gives no map.
    """
    text = session.get_modelmeta().custom_metadata_map.get("glass")
    try:
        metadata = json.loads(text or "{}")
    except ValueError:
        metadata = {}
    if not isinstance(metadata, dict) or metadata.get("project") != "GLASS" or metadata.get("format") != FORMAT:
        raise WorkError(f"{path} is not an ONNX graph of GLASS; export one with python onnx/pth2onnx.py")
    if "map" not in metadata["outputs"]:
        raise WorkError(f"{path} was exported with --no-postprocess and gives no map; export it without that option")
    return metadata


def _roi_of(path: Path, metadata: dict[str, Any]) -> RegionOfInterest | None:
    """The region of interest of a graph; None if everything is inspected."""
    if metadata.get("roi") is None:
        return None
    try:
        return RegionOfInterest.of_packed(metadata["roi"])
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise WorkError(f"{path} holds a damaged region of interest: {error}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


# -------------------------------------------------------------------------------------- command line


BY_DEFAULT = " (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"Error: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(prog="python onnx/ort.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", type=Path, help="A graph of onnx/pth2onnx.py, or a bundle (.zip).")
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+",
        help="Files, folders (at any depth), patterns, or - for a list of paths on standard input.",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help=f"Folder for {FILE} and for what --save saves.")
    parser.add_argument("--save", action="store_true", help="Save overlays, raw anomaly maps and masks.")
    parser.add_argument("--maps", choices=["tiff", "npy"], default="tiff", help=f"Format of the raw maps{BY_DEFAULT}.")
    parser.add_argument("--json", action="store_true", help="Print a JSON object for each image on standard output.")
    parser.add_argument("--continue", dest="resume", action="store_true", help=f"Continue the {FILE} in --out.")
    parser.add_argument(
        "--batch_size", "--batch-size", metavar="1≤x", type=_count, default=8,
        help=f"Number of images in a batch{BY_DEFAULT}.",
    )  # fmt: skip
    parser.add_argument(
        "--provider",
        metavar="NAME",
        default="cpu",
        help=f"Provider of onnxruntime: cpu, cuda, tensorrt or another{BY_DEFAULT}.",
    )
    parser.add_argument(
        "--threads", metavar="0≤x", type=_whole, default=0,
        help=f"Number of CPU threads; 0 lets onnxruntime choose{BY_DEFAULT}.",
    )  # fmt: skip
    parser.add_argument("--tile", metavar="PIXELS|auto|off", help="Shorter side of the tiles (default: as trained).")
    parser.add_argument(
        "--overlap",
        metavar="0≤x≤0.75",
        type=float,
        help="Share of a tile that its neighbour covers too (default: as trained).",
    )
    parser.add_argument(
        "--max_pixels", "--max-pixels", metavar="1≤x", type=_count,
        help="Refuse an image with more pixels (default: as trained, or 500000000).",
    )  # fmt: skip
    parser.add_argument(
        "--min_area", "--min-area", metavar="1≤x", type=_count,
        help="Leave regions with fewer pixels of the image out of the list (default: as the bundle says, or 1).",
    )  # fmt: skip
    return parser


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _count(text: str) -> int:
    if not _whole(text):
        raise argparse.ArgumentTypeError("0 is too small; give at least 1")
    return int(text)


def run(arguments: argparse.Namespace) -> None:
    """Judge the images.

    Raises:
        InputError: the options or inputs cannot work.
        WorkError: some images could not be judged, or the output cannot be written.
    """
    out = arguments.out
    if out is None and not arguments.json:
        raise InputError("give --out DIR for a table, --json for lines on standard output, or both")
    for option, is_set in (("--save", arguments.save), ("--continue", arguments.resume)):
        if is_set and out is None:
            raise InputError(f"{option} needs --out DIR")
    images = find_pictures(arguments.inputs, paths_from_stdin() if "-" in arguments.inputs else (), out)
    model = GraphJudge(
        arguments.model, arguments.provider, arguments.tile, arguments.overlap, arguments.threads,
        arguments.max_pixels, arguments.min_area,
    )  # fmt: skip
    if model.thresholds is None:
        LOGGER.warning("the graph has no threshold: scores without decisions")
    map_format = arguments.maps if arguments.save else ""
    options = PredictionOptions(out, map_format, arguments.json, arguments.batch_size)
    failed = predict(model, images, options, arguments.resume)
    if failed:
        where = f"; {out / FILE} says why" if out else ""
        raise WorkError(f"{failed} of {len(images)} images could not be judged{where}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    escape_what_cannot_be_printed()
    setup_logging()
    try:
        run(_parser().parse_intermixed_args(arguments))
        return 0
    except (InputError, WorkError) as error:
        code, message = (2 if isinstance(error, InputError) else 1), " ".join(str(error).split())
    except OSError as error:
        code, message = 1, describe_os_error(error)
    except MemoryError:
        code, message = 1, "out of memory; try a smaller --batch_size"
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "stopped; with --continue the same command goes on where it was"
    print(f"Error: {message}", file=sys.stderr)  # noqa: T201 the command's only output besides log lines
    return code


if __name__ == "__main__":
    sys.exit(main())
