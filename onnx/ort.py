"""Judge pictures with an exported graph: `python onnx/ort.py MODEL INPUT… --out DIR`.

Needs onnxruntime, numpy, OpenCV and Pillow, for TIFF tifffile and imagecodecs, and of this project's modules those
that need no more either. Says and writes what `python main.py predict` does.
"""

from __future__ import annotations

import argparse
import json
import sys
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
from inference.judge import Judge, choose_tiling  # noqa: E402
from inference.predict import FILE, Wishes, find_pictures, listed, predict  # noqa: E402
from inference.thresholds import Thresholds  # noqa: E402
from utils import LOGGER, InputError, WorkError, describe_os_error, escape_what_cannot_be_printed, setup_logging  # noqa: E402  # noqa: E402

FORMAT = 1  # of the metadata
NAN = float("nan")
INTERRUPTED = 130


class GraphJudge(Judge):
    """Judges pictures with a graph that `pth2onnx.py` wrote.

    Args:
        path: of the graph.
        provider: that runs it, by onnxruntime's name or its beginning (`cuda`); the CPU by default.
        tile, overlap: as `inference.load_checkpoint`.
        threads: of the CPU; 0 is what onnxruntime thinks best.
        max_pixels: a file with more pixels is refused; by default as in the training, or 500 million.

    Raises:
        InputError: no such provider, or no such tiles.
        WorkError: no graph, or one of something else.
    """

    def __init__(
        self,
        path: Path,
        provider: str = "cpu",
        tile: int | str | None = None,
        overlap: float | None = None,
        threads: int = 0,
        max_pixels: int | None = None,
    ) -> None:
        chosen = choose_provider(provider)
        self._session = _open(path, chosen, threads)
        self.about = _metadata(path, self._session)
        self.class_name = str(self.about["class_name"])
        config = {**self.about, "keep_all": bool(self.about["keep_all"])}
        self.geometry = Geometry.of_config(config)
        given = {k: NAN if v is None else v for k, v in (self.about["thresholds"] or {}).items()}
        self.thresholds = Thresholds.of(given)
        self.tiling = choose_tiling(config, tile, overlap)
        most = self.about.get("max_pixels", MAX_PIXELS) if max_pixels is None else max_pixels
        self.reading = ReadOptions(self.about.get("bits", FULL_BITS), most)
        first = self._session.get_inputs()[0]
        self._floats, self._alone = "float" in first.type, first.shape[0] == 1
        sides = first.shape[1:3]
        self._picture_size = tuple(sides) if all(isinstance(side, int) for side in sides) else None

    def score_pictures(self, pictures: Sequence[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RGB pictures → scores (B,) and maps (B, H, W) of what the network saw of them."""
        if not len(pictures):
            return np.zeros(0, np.float32), np.zeros((0, *self.geometry.size), np.float32)
        arrays = [np.asarray(picture) for picture in pictures]
        for one in arrays:
            self._refuse_other_size(one.shape[:2])
        together = not self._alone and len({one.shape for one in arrays}) == 1
        found = [self._run(np.stack(arrays))] if together else [self._run(one[None]) for one in arrays]
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def _refuse_other_size(self, size: tuple[int, ...]) -> None:
        if self._picture_size not in (None, size):
            wanted, given = ("x".join(map(str, sides)) for sides in (self._picture_size, size))
            raise WorkError(
                f"the graph takes pictures of {wanted} pixels (height x width) alone, this one has {given}; export it "
                "without --picture_size"
            )

    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        given = images.astype(np.float32) / 255 if self._floats else images
        try:
            return tuple(self._session.run(["score", "map"], {"image": given}))
        except MemoryError:
            raise
        except Exception as error:  # its own kinds of error are not public
            raise WorkError(f"onnxruntime: {_first_line(error)}") from error


def choose_provider(wished: str) -> str:
    """onnxruntime's name of a provider.

    Raises:
        InputError: this onnxruntime has none of that name.
    """
    names = onnxruntime.get_available_providers()
    for name in names:
        if wished.lower() in (name.lower(), name.lower().removesuffix("executionprovider")):
            return name
    short = ", ".join(name.removesuffix("ExecutionProvider").lower() for name in names)
    raise InputError(f"--provider {wished}: this onnxruntime has {short}")


def _open(path: Path, provider: str, threads: int) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise InputError(f"no model {path}" + ("" if not path.exists() else ": it is a folder"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # what it has to say of its own doings, below errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        if provider not in session.get_providers():
            LOGGER.warning("--provider %s does not start here; going on with the CPU", provider)
        return session
    except Exception as error:  # its own kinds of error are not public
        raise WorkError(f"{path} is no ONNX graph that can be run: {_first_line(error)}") from error


def _metadata(path: Path, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """What the graph says of itself.

    Raises:
        WorkError: it is of something else, or has no map.
    """
    text = session.get_modelmeta().custom_metadata_map.get("glass")
    try:
        about = json.loads(text or "{}")
    except ValueError:
        about = {}
    if not isinstance(about, dict) or about.get("project") != "GLASS" or about.get("format") != FORMAT:
        raise WorkError(f"{path} is an ONNX graph of something else; python onnx/pth2onnx.py writes those meant here")
    if "map" not in about["outputs"]:
        raise WorkError(f"{path} was exported with --no-postprocess and gives no map; export it without")
    return about


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


# -------------------------------------------------------------------------------------- command line


BY_DEFAULT = " (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"Error: {message}\n")


def _parser() -> _Parser:
    made = _Parser(prog="python onnx/ort.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("model", metavar="MODEL", type=Path, help="Graph that onnx/pth2onnx.py wrote.")
    made.add_argument(
        "inputs", metavar="INPUT", nargs="+",
        help="Files, folders (at any depth), patterns, or - for a list of paths on standard input.",
    )  # fmt: skip
    made.add_argument("--out", type=Path, metavar="DIRECTORY", help=f"Folder of {FILE} and what --save saves.")
    made.add_argument("--save", action="store_true", help="Save overlays, raw maps and masks.")
    made.add_argument("--maps", choices=["tiff", "npy"], default="tiff", help=f"Format of the raw maps{BY_DEFAULT}.")
    made.add_argument("--json", action="store_true", help="Print one JSON object a picture on standard output.")
    made.add_argument("--continue", dest="go_on", action="store_true", help=f"Go on with the {FILE} in --out.")
    made.add_argument(
        "--batch_size", "--batch-size", metavar="1≤x", type=_count, default=8,
        help=f"Pictures of one size judged at once{BY_DEFAULT}.",
    )  # fmt: skip
    made.add_argument(
        "--provider",
        metavar="NAME",
        default="cpu",
        help=f"That runs the graph: cpu, cuda, tensorrt or another{BY_DEFAULT}.",
    )
    made.add_argument(
        "--threads", metavar="0≤x", type=_whole, default=0,
        help=f"Of the CPU; 0: as onnxruntime thinks best{BY_DEFAULT}.",
    )  # fmt: skip
    made.add_argument("--tile", metavar="PIXELS|auto|off", help="Shorter side of tiles; as trained, if not given.")
    made.add_argument(
        "--overlap", metavar="0≤x≤0.75", type=float, help="Share of a tile that its neighbour covers too; likewise."
    )
    made.add_argument(
        "--max_pixels", "--max-pixels", metavar="1≤x", type=_count,
        help="A picture with more pixels is refused; as trained, or 500000000, if not given.",
    )  # fmt: skip
    return made


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def _count(text: str) -> int:
    if not _whole(text):
        raise argparse.ArgumentTypeError("0 is no number from 1 on")
    return int(text)


def work(given: argparse.Namespace) -> int:
    """Judge all; the exit code."""
    if given.out is None and not given.json:
        raise InputError("give --out DIR for a table, --json for lines on standard output, or both")
    for name in ("save", "go_on"):
        if getattr(given, name) and given.out is None:
            raise InputError(f"--{name.replace('go_on', 'continue')} needs --out DIR")
    pictures = find_pictures(given.inputs, listed() if "-" in given.inputs else (), given.out)
    model = GraphJudge(given.model, given.provider, given.tile, given.overlap, given.threads, given.max_pixels)
    if model.thresholds is None:
        LOGGER.warning("the graph has no threshold: scores without decisions")
    failed = predict(model, pictures, Wishes(given.out, given.maps if given.save else "", given.json, given.batch_size),
                     given.go_on)  # fmt: skip
    if failed:
        where = f"; {given.out / FILE} says why" if given.out else ""
        raise WorkError(f"{failed} of {len(pictures)} pictures could not be judged{where}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed work, 2 usage, 130 interrupted."""
    escape_what_cannot_be_printed()
    setup_logging()
    try:
        return work(_parser().parse_intermixed_args(arguments))
    except (InputError, WorkError) as error:
        code, message = (2 if isinstance(error, InputError) else 1), " ".join(str(error).split())
    except OSError as error:
        code, message = 1, describe_os_error(error)
    except MemoryError:
        code, message = 1, "out of memory; try a smaller --batch_size"
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "stopped; with --continue the same command goes on where it was"
    print(f"Error: {message}", file=sys.stderr)  # noqa: T201 the command's last word
    return code


if __name__ == "__main__":
    sys.exit(main())
