"""Where good ends and defective begins: thresholds from images known to be good, and scores made comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

HELD_OUT, TRAINING = "held-out good images", "good images of the training itself"
TINY = 1e-6


@dataclass(frozen=True)
class Thresholds:
    """What a checkpoint keeps of its calibration. A score or pixel above its threshold is anomalous.

    Attributes:
        image: of the image score, exceeded by a share `false_alarm` of the good images.
        pixel: of the anomaly map, exceeded anywhere by the same share of the good images.
        image_f1, pixel_f1: with the best F1 against synthetic defects; nan where there are none.
        false_alarm: asked for, in [0, 1).
        reached: share of the good images above `image`.
        images: how many good images there were.
        source: which they were.
        data: digest of these images' files; "" where it is not known.
    """

    image: float
    pixel: float
    image_f1: float = math.nan
    pixel_f1: float = math.nan
    false_alarm: float = 0.01
    reached: float = 0.0
    images: int = 0
    source: str = HELD_OUT
    data: str = ""

    def plain(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None) -> Thresholds | None:
        """From a checkpoint; None of one without, or with some that are no numbers and so are exceeded by nothing."""
        made = cls(**saved) if saved else None
        return made if made is not None and math.isfinite(made.image) and math.isfinite(made.pixel) else None

    def describe(self) -> str:
        """One line for the log."""
        kept = f"{self.images} {self.source}"
        line = (
            f"thresholds: image {self.image:.4g}, pixel {self.pixel:.4g} (above: {100 * self.reached:.1f} % of {kept})"
        )
        if self.false_alarm * self.images < 1:
            line += f"; these are the highest scores, too few images to tell a share of {100 * self.false_alarm:g} %"
        if self.source == TRAINING:
            line += "; new ones may score higher, --val_share 0.1 holds images out for a better threshold"
        return line

    def normalise(self, scores: ArrayLike) -> NDArray[np.float32]:
        """Image scores in [0, 1] → [0, 1] with the threshold at 0.5; order is kept."""
        return normalise(scores, self.image)


def normalise(scores: ArrayLike, threshold: float) -> NDArray[np.float32]:
    """[0, threshold] → [0, 0.5] and [threshold, 1] → [0.5, 1], straight in between."""
    scores = np.asarray(scores)
    scores = scores if scores.dtype == np.float32 else scores.astype(np.float64)  # a map needs no more
    inner = min(max(threshold, TINY), 1 - TINY)
    lower = (0.5 * scores / inner).clip(0, 0.5)
    upper = (0.5 + 0.5 * (scores - inner) / (1 - inner)).clip(0.5, 1)
    return np.where(scores <= threshold, lower, upper).astype(np.float32)


def quantile(scores: ArrayLike, false_alarm: float) -> float:
    """The lowest of the scores that at most a share `false_alarm` of them exceeds."""
    ordered = np.sort(np.asarray(scores, np.float64).ravel())
    allowed = math.floor(false_alarm * len(ordered) + 1e-9)
    return float(ordered[len(ordered) - 1 - min(allowed, len(ordered) - 1)])


def calibrate(scores: Sequence[float], peaks: Sequence[float], false_alarm: float, source: str) -> Thresholds:
    """Thresholds from good images alone.

    Args:
        scores: (n,) of images.
        peaks: (n,) the highest value of each anomaly map.
        false_alarm: share of good images that may be called defective, in [0, 1).
        source: which images.
    """
    image = quantile(scores, false_alarm)
    reached = float((np.asarray(scores) > image).mean())
    return Thresholds(
        image, quantile(peaks, false_alarm), false_alarm=false_alarm, reached=reached, images=len(scores), source=source
    )


def best_f1(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold of the best F1, midway between the scores on its two sides; nan where all are of one kind."""
    import metrics  # scikit-learn is not there where only an exported graph is run

    _, score = metrics.f1_max(scores, labels)
    lower = np.asarray(scores, np.float64).ravel()
    lower = lower[lower < score]
    return (score + float(lower.max())) / 2 if len(lower) else score * (1 - TINY)
