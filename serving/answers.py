"""The answers of the service as types, from which /docs is made; times are seconds since 1970."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.pictures import Picture
from serving.recipes import Version

Mark = Literal["good", "defective"]
HIDDEN = "reference"  # a figure that is long, and not of interest as such


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Region(_Answer):
    """A connected region above the pixel threshold, in pixels of the picture."""

    box: list[int] = Field(description="x, y, width, height")
    area: int
    centre: list[float] = Field(description="x, y")
    highest: float = Field(description="highest value of the anomaly map in it")


class PredictedPicture(_Answer):
    """What the model says of a picture; of a picture that cannot be judged, only `name`, `error` and `status`."""

    name: str
    id: int | None = Field(None, description="in the store; null if it keeps no pictures")
    score: float | None = None
    normalised: float | None = Field(None, description="score with the threshold at 0.5")
    decision: Literal["good", "unsure", "defective"] | None = None
    regions: list[Region] | None = None
    width: int | None = None
    height: int | None = None
    milliseconds: float | None = None
    map: str | None = Field(None, description="anomaly map, base64; only with ?map=")
    overlay: str | None = Field(None, description="PNG, base64; only with ?overlay=png")
    error: str | None = None
    status: int | None = None


class Prediction(_Answer):
    """The answer to pictures, in their order."""

    recipe: str
    version: int | None
    results: list[PredictedPicture]


class VersionAnswer(_Answer):
    """A version of a recipe."""

    number: int
    unsure: float | None
    defective: float | None
    created: float
    origin: Literal["first", "threshold", "retrained"]
    active: bool
    digest: str
    figures: dict[str, Any]

    @classmethod
    def of(cls, version: Version) -> VersionAnswer:
        """From the store."""
        figures = {key: value for key, value in version.figures.items() if key != HIDDEN}
        plain = {key: getattr(version, key) for key in cls.model_fields if key != "figures"}
        return cls(**plain, figures=figures)


class Versions(_Answer):
    """The versions of a recipe, the newest first."""

    versions: list[VersionAnswer]


class RecipeAnswer(_Answer):
    """A recipe and how many pictures the store has of it."""

    name: str
    version: VersionAnswer
    pictures: int
    marked: dict[Mark, int]
    pixel_threshold: float | None


class RecipesAnswer(_Answer):
    """All recipes that are served."""

    recipes: list[RecipeAnswer]


class PictureAnswer(_Answer):
    """A picture of the store."""

    id: int
    recipe: str
    version: int
    name: str
    received: float
    source: Literal["http", "watch", "page"]
    width: int
    height: int
    score: float
    normalised: float | None
    decision: Literal["good", "unsure", "defective"] | None
    decision_now: Literal["good", "unsure", "defective"] | None = Field(
        description="with the active thresholds; null if the active version has other weights"
    )
    milliseconds: float
    regions: list[Region]
    brightness: float
    contrast: float
    sharpness: float
    mark: Mark | None
    has_mask: bool
    marked: float | None

    @classmethod
    def of(cls, picture: Picture, active: Version | None, judged_by: Version | None) -> PictureAnswer:
        """From the store.

        Args:
            picture: of the store.
            active: the version that judges now.
            judged_by: the version that judged the picture.
        """
        names = cls.model_fields.keys() - {"decision_now", "has_mask", "regions"}
        plain = {key: getattr(picture, key) for key in names}
        comparable = active is not None and judged_by is not None and active.digest == judged_by.digest
        now = active.decide(picture.score) if active is not None and comparable else None
        regions = [Region(**region) for region in picture.regions]
        return cls(**plain, decision_now=now, has_mask=picture.mask is not None, regions=regions)


class Page(_Answer):
    """Some pictures; `cursor` continues after them."""

    pictures: list[PictureAnswer]
    cursor: str | None


class Marked(_Answer):
    """Pictures that were marked in one action."""

    action: int
    pictures: list[PictureAnswer]


class Undone(_Answer):
    """Pictures whose latest mark was undone."""

    pictures: list[int]


class Scores(_Answer):
    """Image scores by the active version's weights."""

    unsure: float | None
    defective: float | None
    training: dict[Mark, list[float]]
    marked: dict[Mark, list[float]]
    recent: list[float]


class ThresholdsBody(_Answer):
    """Image scores from 0 to 1, `unsure` at most `defective`."""

    unsure: float
    defective: float


class NumberBody(_Answer):
    """The number of a version."""

    number: int = Field(ge=1)


class RecipeBody(_Answer):
    """The name of a recipe."""

    recipe: str


class MarksBody(_Answer):
    """Pictures to mark; null takes their marks away."""

    pictures: list[int] = Field(min_length=1, max_length=1000)
    mark: Mark | None


class Health(_Answer):
    """Whether the service works."""

    status: Literal["ok"]
