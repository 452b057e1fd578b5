"""Foreground masks: where in an image the object lies, so that synthetic anomalies are placed on it.

What the ground looks like is learnt from a class's good images, without labels: colours and textures that are
common along the border of the images and rare in their middle belong to the ground, the rest to the object. What is
found so is learnt once more as object and as ground, and each image's ground is then what looks like it *and* reaches
the image's border. Where in doubt a pixel is the object's: an anomaly on the ground does less harm than a part of the
object on which there never is one.

`python main.py foreground NAME DATA_PATH -d CLASS --out FOLDER` makes the masks and a sheet to look at.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from datasets import DATASETS, Sample
from datasets.depth import read_as_found
from datasets.files import DEFAULT, ReadOptions, read_rgb
from datasets.limits import AUTO, FULL_BITS, MAX_PIXELS
from datasets.masks import read_mask, read_mask_of
from utils import LOGGER, InputError, WorkError, printable, write_bytes, write_text

# of the routine: masks of another version are made anew
VERSION = 1
RECORD, SHEET, TEST_SHEET = "foreground.json", "contact_sheet.png", "contact_sheet_test.png"
LOOKED_AT = 40  # images of a class

# finding the object; lengths in pixels of the reduced copy, whose longer side is SIDE
SIDE = 256
RING = 0.04  # share of the shorter side: the border, where the ground shows if it does anywhere
BINS = (4, 64, 64, 64)  # texture, lightness, a, b
TEXTURE_STEPS = np.array([2.5, 6, 14], np.float32)  # standard deviations of the lightness, of 255
TEXTURE_WINDOW = 5
RARE = 1e-5  # share of the pixels; a bin with less tells little
EVIDENCE_LIMIT = 3.0
SURE_GROUND = 1.0  # e times as common on the ground as on the object
SMOOTHING = 1.5
GAP_CLOSED = 3  # the ground enters an object through no gap narrower than twice this
LEAST_OBJECT, LEAST_GROUND = 0.001, 0.005  # shares of the image; a smaller region is what is around it
MARGIN = 2

# an object must differ from the ground by CLEAR_GAP, or by GAP and by many times what either differs in itself
CLEAR_GAP, GAP, GAP_IN_SPREADS = 2.5, 0.8, 6.0
LEAST_KEPT, LEAST_LEFT_OUT = 0.002, 0.15  # shares of an image, on average
NEAR, FAR, MOST_ALIKE = 3, 8, 0.25  # strips along the outline: where, and how alike they may be

# how often of the images, from which on a place is object; and what part of the usual area is too little
ALWAYS, SOMETIMES, LEAST_OF_USUAL = 0.8, 0.2, 0.5

# the contact sheet; TILE and LABEL in pixels
SHEET_COLUMNS, SHEET_ROWS, TILE, LABEL = 6, 4, 224, 18


# ---------------------------------------------------------------------------------------- one class


@dataclass(frozen=True, eq=False)
class Foreground:
    """Finds the object in the images of one class.

    Attributes:
        fills_image: the class fills its images (a texture, say): masks are all True.
        reason: why, one line.
    """

    fills_image: bool
    reason: str
    _evidence: NDArray[np.float32] = field(repr=False)  # per bin; positive speaks for ground
    _often: NDArray[np.float32] = field(repr=False)  # (SIDE, SIDE), share of the images with the object there
    _usual: float = 1.0  # area of the object, as share of the image

    @classmethod
    def fit(cls, images: Iterable[Image.Image]) -> Foreground:
        """Learn a class from good images.

        Args:
            images: RGB, of any sizes. All are gone through, but of many only 40 to 79 are looked at, evenly chosen.

        Raises:
            InputError: there is no image.
        """
        codes = _some_codes(images)
        if not codes:
            raise InputError("foreground masks are learnt from good images, and there is none")
        evidence, threshold, doubt = _border_against_middle(codes)
        objects = [_find_object(evidence[code], threshold) for code in codes]
        if doubt is None:
            evidence = _log_ratio(_shares(codes, [~mask for mask in objects]), _shares(codes, objects))
            objects = [_find_object(evidence[code], SURE_GROUND) for code in codes]
            doubt = _doubt(codes, objects)
        often = np.mean([_resize(mask, (SIDE, SIDE)) for mask in objects], 0, dtype=np.float32)
        usual = float(np.median([mask.mean() for mask in objects]))
        verdict = f"an object on {usual:.0%} of an image" if doubt is None else f"fills the image: {doubt}"
        return cls(doubt is not None, f"{verdict} ({len(codes)} images looked at)", evidence, often, usual)

    def mask(self, image: Image.Image) -> NDArray[np.bool_]:
        """Where the object is: (H, W) of the RGB image's own size, holes filled, with a small margin.

        What is object at this place in most images is so in each. Where far less than usual is found, the mask is
        widened to wherever the object is in some images; where that is too little still, to the whole image.
        """
        width, height = image.size
        whole = np.ones((height, width), np.bool_)
        if self.fills_image:
            return whole
        code = _codes(_reduce(image))
        often = _resize(self._often, code.shape[::-1])
        found = _find_object(self._evidence[code], SURE_GROUND) | (often >= ALWAYS)
        if found.mean() <= LEAST_OF_USUAL * self._usual:
            found |= often >= SOMETIMES
        if found.mean() <= LEAST_OF_USUAL * self._usual:
            return whole
        return _resize(_widen(found), image.size) > 0.25


def _some_codes(images: Iterable[Image.Image]) -> list[NDArray[np.int32]]:
    """The codes of every 2^n-th image: LOOKED_AT or more of them if there are as many, and less than twice that."""
    kept: list[NDArray[np.int32]] = []
    step = 1
    for number, image in enumerate(images):
        if number % step == 0:
            kept.append(_codes(_reduce(image)))
        if len(kept) == 2 * LOOKED_AT:
            kept, step = kept[::2], 2 * step
    return kept


def _reduce(image: Image.Image) -> NDArray[np.uint8]:
    """RGB image → (h, w, 3) uint8 with a longer side of SIDE."""
    longer = max(image.size)
    size = tuple(max(8, round(side * SIDE / longer)) for side in image.size)
    factor = longer // (SIDE * 3 // 2)
    if factor > 1:  # several times faster than INTER_AREA from the full size
        image = image.reduce(factor)
    return cv2.resize(np.asarray(image.convert("RGB")), size, interpolation=cv2.INTER_AREA)


def _codes(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The bin of each pixel's texture and colour: (h, w, 3) → (h, w)."""
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    light = lab[..., 0].astype(np.float32)
    window = (TEXTURE_WINDOW, TEXTURE_WINDOW)
    variance = cv2.blur(light * light, window) - cv2.blur(light, window) ** 2
    # the least of all windows a pixel is in: next to an edge the one on its own side of it
    deviation = cv2.erode(np.sqrt(np.maximum(variance, 0)), np.ones(window, np.uint8))
    texture = np.searchsorted(TEXTURE_STEPS, deviation).astype(np.int32)
    lightness, a, b = cv2.split(cv2.GaussianBlur(lab, (0, 0), 1.0).astype(np.int32) // 4)
    return ((texture * BINS[1] + lightness) * BINS[2] + a) * BINS[3] + b


def _shares(codes: Sequence[NDArray[np.int32]], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """Share of the masked pixels in each bin, smoothed: (bins,). Zeros where no pixel is masked."""
    chosen = np.concatenate([code[mask] for code, mask in zip(codes, masks, strict=True)])
    counts = np.bincount(chosen, minlength=int(np.prod(BINS))).reshape(BINS).astype(np.float32)
    counts = gaussian_filter(counts, (0.5, 1, 1, 1), mode="nearest", truncate=2)
    return counts.ravel() / max(len(chosen), 1)


def _log_ratio(ground: NDArray[np.float32], objects: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log of how much more common each bin is on the ground; 0 for what is on neither: (bins,)."""
    return np.clip(np.log((ground + RARE) / (objects + RARE)), -EVIDENCE_LIMIT, EVIDENCE_LIMIT)


def _border_against_middle(codes: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.float32], float, str | None]:
    """The first guess: evidence (bins,), its threshold, and why border and middle are alike (None: they are not)."""
    rings = [_ring(code.shape) for code in codes]
    border, middle = _shares(codes, rings), _shares(codes, [~ring for ring in rings])
    evidence = _log_ratio(border, middle)
    threshold, gap, spread = _split(evidence, border + middle)
    clear = gap >= CLEAR_GAP or (gap >= GAP and gap >= GAP_IN_SPREADS * spread)
    return evidence, threshold, None if clear else "its border looks like its middle"


def _ring(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    width = max(1, round(RING * min(shape)))
    ring = np.ones(shape, np.bool_)
    ring[width:-width, width:-width] = False
    return ring


def _split(values: NDArray[np.float32], weights: NDArray[np.float32]) -> tuple[float, float, float]:
    """Otsu's threshold of weighted values; the distance of the means on its sides and the deviation around them."""
    counts, edges = np.histogram(values, 120, (-EVIDENCE_LIMIT, EVIDENCE_LIMIT), weights=weights)
    shares, centres = counts / counts.sum(), (edges[1:] + edges[:-1]) / 2
    below, moment = np.cumsum(shares)[:-1], np.cumsum(shares * centres)
    mean, moment = moment[-1], moment[:-1]
    inside = (below > 1e-6) & (below < 1 - 1e-6)
    if not inside.any():  # all values in one place
        return 0.0, 0.0, 0.0
    between = np.where(inside, (mean * below - moment) ** 2 / np.where(inside, below * (1 - below), 1), 0)
    best = int(np.flatnonzero(between >= between.max() - 1e-9).mean())  # the middle of an empty stretch
    gap = (mean - moment[best]) / (1 - below[best]) - moment[best] / below[best]
    within = (shares * centres**2).sum() - mean**2 - between[best]
    return float(edges[best + 1]), float(gap), float(np.sqrt(max(within, 0)))


def _find_object(evidence: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """All but the ground that reaches the border: (h, w) → (h, w)."""
    likely = (cv2.GaussianBlur(evidence, (0, 0), SMOOTHING) < threshold).astype(np.uint8)
    pad = 2 * GAP_CLOSED
    likely = cv2.copyMakeBorder(likely, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    likely = cv2.morphologyEx(likely, cv2.MORPH_CLOSE, _disc(GAP_CLOSED))[pad:-pad, pad:-pad]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(likely, connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= LEAST_OBJECT * likely.size
    large[0] = False
    ground = (~large[labels]).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(ground, connectivity=4)
    outside = np.zeros(count, np.bool_)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[side] = True
    outside &= stats[:, cv2.CC_STAT_AREA] >= LEAST_GROUND * likely.size
    outside[0] = False
    return ~outside[labels]


def _doubt(codes: Sequence[NDArray[np.int32]], objects: Sequence[NDArray[np.bool_]]) -> str | None:
    """Why what was found is no object on a ground, None where it may be one."""
    if np.mean([mask.mean() for mask in objects]) < LEAST_KEPT:
        return "nothing stands out from the ground"
    left_out = 1 - np.mean([_widen(mask).mean() for mask in objects])
    if left_out < LEAST_LEFT_OUT:
        return f"only {left_out:.1%} of an image would be left out"
    inner, outer = [], []
    for mask in objects:
        for bands, part in ((inner, mask), (outer, ~mask)):
            depth = cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3)
            bands.append((depth > NEAR) & (depth <= FAR))
    # a vignette, too, makes the border differ from the middle, but there is no step anywhere
    alike = float(np.minimum(_shares(codes, inner), _shares(codes, outer)).sum())
    return f"no clear outline (both of its sides are {alike:.0%} alike)" if alike > MOST_ALIKE else None


def _disc(radius: int) -> NDArray[np.uint8]:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _widen(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), _disc(MARGIN)) > 0


def _resize(values: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.float32]:
    """(h, w) → (height, width) of `size` = (width, height)."""
    shrinks = size[0] < values.shape[1] and size[1] < values.shape[0]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR  # else something thin would fall between two samples
    return cv2.resize(values.astype(np.float32), size, interpolation=way)


# -------------------------------------------------------------------------------------------- files


def make_masks(
    samples: Sequence[Sample],
    folder: Path,
    show_progress: bool = True,
    announce: bool = True,
    reading: ReadOptions = DEFAULT,
) -> list[Path]:
    """The foreground mask of each training image of a class, made where it is not there yet.

    A mask is a PNG of 0 and 255 (all above 0 is object), of the size of its image as `read_rgb` gives it, named by
    the image's stem, with the image's folder before it where several have the same. `foreground.json` beside them
    says which image, by its content, each was made from: another image or another version of this routine gets a
    new one. If new ones turn the verdict on the class round, all are made anew.

    Args:
        samples: good images.
        folder: where masks are kept, for this class alone.
        show_progress: show a bar while masks are made.
        announce: log where they are and what they keep.
        reading: how the images are read.

    Returns:
        The masks' paths in the order of `samples`.

    Raises:
        InputError: there is no sample.
        WorkError: an image cannot be read, or a mask cannot be written.
    """
    if not samples:
        raise InputError("foreground masks are asked for, but there is no image to make one for")
    paths = [folder / name for name in _mask_names(samples)]
    digests = [_digest(sample.path, reading) for sample in samples]
    record = _Record(folder)
    wanted = [i for i, path in enumerate(paths) if not record.has(path, digests[i])]
    if wanted:
        foreground = fit_samples(samples, reading)
        if record.judge(foreground):
            wanted = list(range(len(paths)))
        interval = 0.5 if sys.stderr.isatty() else 30
        try:
            for i in tqdm(wanted, "foreground", unit="img", disable=not show_progress, mininterval=interval):
                mask = foreground.mask(read_rgb(samples[i].path, reading))
                _write_png(paths[i], mask.astype(np.uint8) * 255)
                record.add(paths[i], digests[i], float(mask.mean()))
        finally:  # an interrupted run keeps what it made
            record.write()
    if announce:
        kept = np.mean([record.kept(path) for path in paths])
        LOGGER.info("foreground masks in %s: %s; they keep %.1f %% of an image", folder, record.reason, 100 * kept)
    return paths


def fit_samples(samples: Sequence[Sample], reading: ReadOptions = DEFAULT) -> Foreground:
    """Learn a class from up to LOOKED_AT of its good images, evenly chosen.

    Raises:
        InputError: there is no sample.
        WorkError: an image cannot be read.
    """
    return Foreground.fit(read_rgb(samples[i].path, reading) for i in _evenly(len(samples), LOOKED_AT))


def _evenly(size: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(int)).tolist()


def _mask_names(samples: Sequence[Sample]) -> list[str]:
    """`<stem>.png`; with the folder before it where that is taken twice, and a number where that is, too."""
    taken = {Path(SHEET).stem, Path(TEST_SHEET).stem}
    alike = Counter(sample.path.stem.casefold() for sample in samples)  # some file systems know no case
    names = []
    for sample in samples:
        stem = sample.path.stem
        if alike[stem.casefold()] > 1 or stem.casefold() in taken:
            stem = f"{sample.path.parent.name}_{stem}"
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.casefold())
        names.append(f"{name}.png")
    return names


def _digest(path: Path, reading: ReadOptions) -> str:
    """Of a file, and of the depth that it is read with."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        return found if reading.bits == FULL_BITS else f"{found} {reading.bits} bits"
    except OSError as error:
        raise WorkError(f"cannot read image {path}: {error}") from error


def _write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB or gray picture."""
    encoded = io.BytesIO()  # writing to a full disk, Pillow's encoder fails with an error of its own
    Image.fromarray(image).save(encoded, "PNG")
    write_bytes(path, encoded.getvalue())


class _Record:
    """`foreground.json` of a folder: the verdict, and which image each mask was made from.

    One that is not there, not readable or of another version is as good as empty.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._verdict: dict[str, Any] = {}
        self._images: dict[str, dict[str, Any]] = {}
        try:
            text = json.loads(self.path.read_text(encoding="utf-8"))
            if text["version"] == VERSION:
                images = {
                    name: {"sha256": str(r["sha256"]), "kept": float(r["kept"])} for name, r in text["images"].items()
                }
                self._verdict = {"fills_image": bool(text["fills_image"]), "reason": str(text["reason"])}
                self._images = images
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return

    @property
    def reason(self) -> str:
        """Of the verdict, one line."""
        return self._verdict["reason"]

    def has(self, path: Path, digest: str) -> bool:
        """Whether a mask is there, made from an image of this content."""
        return self._images.get(path.name, {}).get("sha256") == digest and path.is_file()

    def kept(self, path: Path) -> float:
        """Share of the image that a mask keeps."""
        return self._images[path.name]["kept"]

    def judge(self, foreground: Foreground) -> bool:
        """Take over a verdict; whether it is another than before, so that no mask holds any more."""
        before = self._verdict.get("fills_image", foreground.fills_image)
        self._verdict = {"fills_image": foreground.fills_image, "reason": foreground.reason}
        if before == foreground.fills_image:
            return False
        self._images = {}
        return True

    def add(self, path: Path, digest: str, kept: float) -> None:
        """Note a mask that was just written."""
        self._images[path.name] = {"sha256": digest, "kept": round(kept, 6)}

    def write(self) -> None:
        """Write it to its folder."""
        text = json.dumps({"version": VERSION, **self._verdict, "images": self._images}, indent=1)
        write_text(self.path, text + "\n")


# ------------------------------------------------------------------------------- a whole data set


def write_masks(
    name: str,
    data_path: str,
    out: Path,
    classes: Sequence[str] = (),
    test: bool = False,
    bits: int | str = AUTO,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[str]:
    """Write the foreground masks of the training images and a contact sheet, a folder for each class.

    Args:
        name: of the layout, a key of `DATASETS`.
        data_path: its folder.
        out: gets the folders.
        classes: all where none is named.
        test: also measure how much of the test images' defects lies inside masks of them.
        bits: used in 16-bit files, or `auto`.
        max_pixels: an image with more is refused.

    Yields:
        A line for each class that is done, with `test` two.

    Raises:
        InputError: there is no such layout, folder or class.
        WorkError: an image cannot be read, or a mask not be written.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; possible: {', '.join(DATASETS)}")
    layout = DATASETS[name](data_path)
    for class_name in layout.choose(classes):
        # also those held out for the test: which ones a training holds out depends on its --split_seed
        samples, folder = [*layout.train(class_name), *layout.held_out(class_name)], out / class_name
        reading = read_as_found(class_name, bits, samples, ReadOptions(max_pixels=max_pixels))
        paths = make_masks(samples, folder, reading=reading)
        _write_sheet(samples, paths, folder / SHEET, f"{class_name}: {_Record(folder).reason}", reading)
        yield printable(f"{class_name}: {len(paths)} masks and {SHEET} in {folder}")
        if test:
            measured = _measure(fit_samples(samples, reading), layout.test(class_name), folder / TEST_SHEET, reading)
            yield printable(f"{class_name}: {measured}")


def _write_sheet(
    samples: Sequence[Sample], masks: Sequence[Path], path: Path, title: str, reading: ReadOptions
) -> None:
    tiles = []
    for i in _evenly(len(samples), SHEET_COLUMNS * SHEET_ROWS):
        image = read_rgb(samples[i].path, reading)
        tiles.append(_tile(image, read_mask(masks[i], reading) > 0, samples[i].path.stem))
    _write_png(path, _contact_sheet(tiles, title))


def _measure(foreground: Foreground, samples: Sequence[Sample], sheet: Path, reading: ReadOptions) -> str:
    """How well masks found in test images hold their defects, as a line of text; writes a sheet of them."""
    defective = [sample for sample in samples if sample.mask is not None]
    if not defective:
        return "no test image has a mask to measure by"
    shown = set(_evenly(len(defective), SHEET_COLUMNS * SHEET_ROWS))
    inside, defects, left_out, tiles = [], [], [], []
    for i, sample in enumerate(defective):
        image = read_rgb(sample.path, reading)
        truth = read_mask_of(sample.mask, sample.path, reading=reading) > 0
        mask = foreground.mask(image)
        if truth.shape != mask.shape:
            raise WorkError(f"{sample.mask}: a mask of another size than its image {sample.path}")
        inside.append(np.count_nonzero(truth & mask))
        defects.append(np.count_nonzero(truth))
        left_out.append(1 - mask.mean())
        if i in shown:
            tiles.append(_tile(image, mask, f"{sample.kind} {sample.path.stem}", truth))
    _write_png(sheet, _contact_sheet(tiles, foreground.reason))
    shares = np.divide(inside, np.maximum(defects, 1))
    worst = int(np.where(np.array(defects) > 0, shares, 1).argmin())
    return (
        f"{sum(inside) / max(sum(defects), 1):.2%} of the defect pixels of {len(defective)} test images lie inside "
        f"the mask (worst {shares[worst]:.2%}: {defective[worst].path}), {np.mean(left_out):.1%} of an image is left "
        f"out (least {min(left_out):.1%}); {sheet.name} in {sheet.parent}"
    )


def _tile(
    image: Image.Image, mask: NDArray[np.bool_], label: str, truth: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """(TILE + LABEL, TILE, 3) RGB: the image, dimmed outside the mask, outlined in red; the truth in green."""
    scale = TILE / max(image.size)
    width, height = size = tuple(max(1, round(side * scale)) for side in image.size)
    small = np.asarray(image.resize(size)).copy()
    small[_resize(mask, size) <= 0.5] //= 3
    for region, colour in ((mask, (255, 0, 0)), (truth, (0, 255, 0))):
        if region is not None:
            shown = (_resize(region, size) > 0.5).astype(np.uint8)
            outlines, _ = cv2.findContours(shown, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(small, outlines, -1, colour, 1)
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = small
    return np.vstack([_text(f"{label}  {mask.mean():.0%}", TILE), tile])


def _contact_sheet(tiles: Sequence[NDArray[np.uint8]], title: str) -> NDArray[np.uint8]:
    """Tiles in rows under a title: (H, W, 3) RGB."""
    columns = min(SHEET_COLUMNS, len(tiles))
    blank = np.full_like(tiles[0], 255)
    tiles = [*tiles, *[blank] * (-len(tiles) % columns)]
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    legend = "red: the mask's outline, dark outside; % of the image kept; green: the defect, where it is known"
    return np.vstack([_text(line, rows[0].shape[1]) for line in (title, legend)] + rows)


def _text(text: str, width: int) -> NDArray[np.uint8]:
    """(LABEL, width, 3): black on white."""
    strip = Image.new("RGB", (width, LABEL), "white")
    ImageDraw.Draw(strip).text((4, 1), printable(text), "black", ImageFont.load_default(LABEL - 6))
    return np.asarray(strip)
