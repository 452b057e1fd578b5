"""Thresholds for image scores and anomaly maps, calibrated on good images; normalised scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

HELD_OUT, TRAINING = "held-out good images", "good images of the training itself"  # sources; kept in checkpoints
TINY = 1e-6


@dataclass(frozen=True)
class Thresholds:
    """The calibration that a checkpoint holds. A score or a pixel above its threshold is anomalous.

    Attributes:
        image: threshold of the image score; a share `false_alarm` of the good images exceeds it.
        pixel: threshold of the anomaly map; in the same share of the good images, at least one pixel exceeds it.
        image_f1, pixel_f1: the thresholds with the best F1 against synthetic defects; nan if there were none.
        false_alarm: requested false positive rate on good images, in [0, 1).
        reached: measured share of the good images above `image`.
        images: number of good images.
        source: of the good images, `HELD_OUT` or `TRAINING`.
        data: digest of these images' files; "" if unknown.
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
        """The plain values that a checkpoint holds."""
        return asdict(self)

    @classmethod
    def of(cls, saved: Mapping[str, Any] | None) -> Thresholds | None:
        """Read from a checkpoint; None if it holds none, or one that is not finite and that nothing exceeds."""
        thresholds = cls(**saved) if saved else None
        if thresholds is None or not (math.isfinite(thresholds.image) and math.isfinite(thresholds.pixel)):
            return None
        return thresholds

    def describe(self) -> str:
        """One line for the log."""
        line = (
            f"thresholds: image {self.image:.4g}, pixel {self.pixel:.4g} "
            f"({100 * self.reached:.1f} % of {self.images} {self.source} are above)"
        )
        if self.false_alarm * self.images < 1:
            line += f"; these are the highest scores: too few images to tell a share of {100 * self.false_alarm:g} %"
        if self.source == TRAINING:
            line += "; new images may score higher: --val_share 0.1 holds images out for a better threshold"
        return line

    def normalise(self, scores: ArrayLike) -> NDArray[np.float32]:
        """Map image scores in [0, 1] to [0, 1] with the threshold at 0.5; the order is preserved."""
        return normalise(scores, self.image)


def normalise(scores: ArrayLike, threshold: float) -> NDArray[np.float32]:
    """Map [0, threshold] linearly to [0, 0.5], and [threshold, 1] to [0.5, 1]."""
    scores = np.asarray(scores)
    scores = scores if scores.dtype == np.float32 else scores.astype(np.float64)  # float32 is enough for a map
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
        scores: (n,) image scores.
        peaks: (n,) highest values of the anomaly maps.
        false_alarm: share of the good images that may be above the threshold, in [0, 1).
        source: of the images, `HELD_OUT` or `TRAINING`.
    """
    image = quantile(scores, false_alarm)
    reached = float((np.asarray(scores) > image).mean())
    return Thresholds(
        image, quantile(peaks, false_alarm), false_alarm=false_alarm, reached=reached, images=len(scores), source=source
    )


def best_f1(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold with the best F1, midway between its two neighbouring scores; nan if there is only one label."""
    import metrics  # scikit-learn is missing where only an exported graph runs

    _, score = metrics.f1_max(scores, labels)
    all_scores = np.asarray(scores, np.float64).ravel()
    lower = all_scores[all_scores < score]
    return (score + float(lower.max())) / 2 if len(lower) else score * (1 - TINY)
