"""Routes of recipes: judging, versions, thresholds, scores, drift."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from serving.answers import (
    Health,
    NumberBody,
    PredictedPicture,
    Prediction,
    RecipeAnswer,
    RecipesAnswer,
    Scores,
    ThresholdsBody,
    VersionAnswer,
    Versions,
)
from serving.drift import drift_of
from serving.pictures import Filter
from serving.recipes import Version
from serving.refusal import Refusal
from serving.service import Service
from serving.uploads import Upload, read_uploads
from serving.work import Wanted
from utils import InputError

router = APIRouter()
MOST_SCORES = 20_000  # of marked pictures, in an answer
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"picture": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}


@router.get("/health")
async def health() -> Health:
    """Whether the service works; needs no token."""
    return Health(status="ok")


@router.get("/recipes")
async def recipes(request: Request) -> RecipesAnswer:
    """All recipes that are served."""
    service: Service = request.app.state.service
    names = service.shelf.names()
    return RecipesAnswer(recipes=[await service.run(_recipe, service, name) for name in names])


@router.get("/recipes/{name}")
async def recipe(request: Request, name: str) -> RecipeAnswer:
    """One recipe."""
    service: Service = request.app.state.service
    return await service.run(_recipe, service, service.check_recipe(name))


def _recipe(service: Service, name: str) -> RecipeAnswer:
    store = service.store
    thresholds = service.shelf.model(name).thresholds
    return RecipeAnswer(
        name=name,
        version=VersionAnswer.of(store.recipes.active(name)),
        pictures=store.pictures.count(Filter(name)),
        marked={mark: store.pictures.count(Filter(name, mark=mark)) for mark in ("good", "defective")},
        pixel_threshold=None if thresholds is None else thresholds.pixel,
    )


@router.post("/recipes/{name}/predict", response_model_exclude_unset=True, openapi_extra=FORM)
async def predict(
    request: Request,
    response: Response,
    name: str,
    map_format: Annotated[Literal["png", "tiff"] | None, Query(alias="map")] = None,
    overlay: Literal["png"] | None = None,
    source: Literal["http", "page"] = "http",
    file: Annotated[str, Query(alias="name", description="of the file, if the body is one")] = "picture",
) -> Prediction:
    """Judge pictures: the body is one, or a form (multipart) with up to 32.

    Of several pictures, one that cannot be judged has an `error` of its own.
    """
    service: Service = request.app.state.service
    service.check_recipe(name)
    async with service.admission.admit(request, service.limits.body):
        uploads = await read_uploads(request, file)
        wanted = Wanted(map_format or "", overlay is not None)
        judged = await asyncio.gather(*(_judge(service, name, upload, source, wanted) for upload in uploads))
    refused = [item for item in judged if isinstance(item, Refusal)]
    if len(refused) == len(judged):
        raise refused[0]
    versions = [item[0] for item in judged if not isinstance(item, Refusal)]
    results = [
        {"name": upload.name, "error": item.line, "status": item.status} if isinstance(item, Refusal) else item[1]
        for upload, item in zip(uploads, judged, strict=True)
    ]
    return Prediction(recipe=name, version=max(versions), results=[PredictedPicture(**item) for item in results])


async def _judge(
    service: Service, name: str, upload: Upload, source: Literal["http", "page"], wanted: Wanted
) -> tuple[int, dict[str, Any]] | Refusal:
    try:
        return await service.judge(name, upload, source, wanted)
    except Refusal as refusal:
        return refusal


# ---------------------------------------------------------------------------------------- versions


@router.get("/recipes/{name}/versions")
async def versions(request: Request, name: str) -> Versions:
    """The versions of a recipe, the newest first."""
    service: Service = request.app.state.service
    found = await service.run(service.store.recipes.versions, service.check_recipe(name))
    return Versions(versions=[VersionAnswer.of(version) for version in found])


@router.post("/recipes/{name}/thresholds")
async def thresholds(request: Request, name: str, body: ThresholdsBody) -> VersionAnswer:
    """Make a new version with other thresholds; it judges from now on."""
    service: Service = request.app.state.service
    set_thresholds = service.store.recipes.set_thresholds
    return VersionAnswer.of(await service.run(set_thresholds, service.check_recipe(name), body.unsure, body.defective))


@router.post("/recipes/{name}/activate")
async def activate(request: Request, name: str, body: NumberBody) -> VersionAnswer:
    """Judge with a version from now on."""
    service: Service = request.app.state.service
    try:
        return VersionAnswer.of(
            await service.run(service.store.recipes.activate, service.check_recipe(name), body.number)
        )
    except InputError as error:
        raise Refusal(404, str(error)) from error


@router.post("/recipes/{name}/undo")
async def undo(request: Request, name: str) -> VersionAnswer:
    """Judge with the version again that judged before this one."""
    service: Service = request.app.state.service
    try:
        return VersionAnswer.of(await service.run(service.store.recipes.undo, service.check_recipe(name)))
    except InputError as error:
        raise Refusal(409, str(error)) from error


# ----------------------------------------------------------------------------------------- figures


@router.get("/recipes/{name}/scores")
async def scores(request: Request, name: str, last: Annotated[int, Query(ge=1, le=MOST_SCORES)] = 1000) -> Scores:
    """Image scores by the active version's weights: of the training's test images, marked and latest pictures."""
    service: Service = request.app.state.service
    return await service.run(_scores, service, service.check_recipe(name), last)


def _scores(service: Service, name: str, last: int) -> Scores:
    active: Version = service.store.recipes.active(name)
    reference = active.figures.get("reference") or {}

    def of(mark: str | None, most: int) -> list[float]:
        chosen = Filter(name, mark=mark, digest=active.digest)
        return service.store.pictures.values(chosen, ["score"], most)["score"]

    return Scores(
        unsure=active.unsure,
        defective=active.defective,
        training={mark: reference.get(mark, []) for mark in ("good", "defective")},
        marked={mark: of(mark, MOST_SCORES) for mark in ("good", "defective")},
        recent=of(None, last),
    )


@router.get("/recipes/{name}/drift")
async def drift(
    request: Request, name: str, last: Annotated[int, Query(ge=20, le=MOST_SCORES)] = 200
) -> dict[str, Any]:
    """Whether the latest pictures have moved away from those of the training: scores, light, contrast, sharpness."""
    service: Service = request.app.state.service
    active = await service.run(service.store.recipes.active, service.check_recipe(name))
    return await service.run(drift_of, service.store, active, last)
