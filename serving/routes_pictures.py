"""Routes of the pictures in the store: lists, images, marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath

from serving import views
from serving.answers import Marked, MarksBody, Page, PictureAnswer, RecipeBody, Undone
from serving.pictures import Filter, Picture
from serving.recipes import Version
from serving.refusal import Refusal
from serving.service import Service
from serving.uploads import MEDIA_TYPES, decode, read_body
from utils import InputError

router = APIRouter()
MOST_IN_PAGE = 200
Id = Annotated[int, InPath(ge=1, le=2**62)]


@router.get("/pictures")
async def pictures(
    request: Request,
    recipe: str | None = None,
    mark: Literal["good", "defective", "any", "none"] | None = None,
    decision: Literal["good", "unsure", "defective"] | None = None,
    source: Literal["http", "watch", "page"] | None = None,
    order: Literal["newest", "oldest", "highest", "lowest"] = "newest",
    cursor: Annotated[str | None, Query(max_length=100)] = None,
    after: Annotated[int | None, Query(ge=0, le=2**62, description="only ids above it")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_IN_PAGE)] = 50,
) -> Page:
    """Pictures of the store; the cursor of an answer continues after it."""
    service: Service = request.app.state.service
    chosen = Filter(recipe, mark, decision, source, after=after)
    found, following = await service.run(service.store.pictures.page, chosen, order, cursor, limit)
    return Page(pictures=await service.run(_answers, service, found), cursor=following)


def _answers(service: Service, found: Sequence[Picture]) -> list[PictureAnswer]:
    versions: dict[tuple[str, int], Version] = {}
    active: dict[str, Version] = {}
    for picture in found:
        if picture.recipe not in active:
            active[picture.recipe] = service.store.recipes.active(picture.recipe)
        if (picture.recipe, picture.version) not in versions:
            version = service.store.recipes.version(picture.recipe, picture.version)
            versions[picture.recipe, picture.version] = version
    return [PictureAnswer.of(p, active[p.recipe], versions[p.recipe, p.version]) for p in found]


async def _find(service: Service, number: int) -> Picture:
    try:
        return await service.run(service.store.pictures.get, number)
    except InputError as error:
        raise Refusal(404, str(error)) from error


@router.get("/pictures/{number}")
async def picture(request: Request, number: Id) -> PictureAnswer:
    """One picture."""
    service: Service = request.app.state.service
    found = await _find(service, number)
    return (await service.run(_answers, service, [found]))[0]


# ------------------------------------------------------------------------------------------ images


@router.get("/pictures/{number}/file", response_class=Response)
async def file(request: Request, number: Id) -> Response:
    """The file as it was received."""
    service: Service = request.app.state.service
    found = await _find(service, number)
    content = await service.run(service.content, found)
    suffix = found.file[found.file.rindex(".") :]
    headers = {"Content-Disposition": f'attachment; filename="{number}{suffix}"'}
    return Response(content, media_type=MEDIA_TYPES.get(suffix, "application/octet-stream"), headers=headers)


@router.get("/pictures/{number}/view", response_class=Response)
async def view(request: Request, number: Id, side: Annotated[int, Query(ge=16, le=4096)] = 1024) -> Response:
    """The picture as JPEG for a browser, its longer side at most `side` pixels."""
    service: Service = request.app.state.service
    found = await _find(service, number)
    return Response(await service.run(_view, service, found, side), media_type="image/jpeg")


def _view(service: Service, found: Picture, side: int) -> bytes:
    bits = service.shelf.model(service.check_recipe(found.recipe)).reading.bits
    return views.view_jpeg(decode(service.content(found), bits, service.limits.pixels), side)


@router.get("/pictures/{number}/map", response_class=Response)
async def anomaly_map(
    request: Request, number: Id, kind: Annotated[Literal["png", "tiff"], Query(alias="format")] = "png"
) -> Response:
    """The anomaly map in the picture's size: PNG of 16 bits, value / 65535, or float32 TIFF."""
    service: Service = request.app.state.service
    version, result = await service.result(await _find(service, number))
    encode = views.map_png if kind == "png" else views.map_tiff
    return _image(await service.run(encode, result), version, f"image/{kind}")


@router.get("/pictures/{number}/heatmap", response_class=Response)
async def heatmap(request: Request, number: Id) -> Response:
    """The coloured map as PNG, the pixel threshold in the middle of the scale."""
    service: Service = request.app.state.service
    found = await _find(service, number)
    version, result = await service.result(found)
    return _image(await service.run(views.heatmap_png, service.shelf.model(found.recipe), result), version)


@router.get("/pictures/{number}/outline", response_class=Response)
async def outline(request: Request, number: Id) -> Response:
    """The outline of what is above the pixel threshold, on transparent ground."""
    service: Service = request.app.state.service
    version, result = await service.result(await _find(service, number))
    return _image(await service.run(views.outline_png, result), version)


@router.get("/pictures/{number}/overlay", response_class=Response)
async def overlay(request: Request, number: Id) -> Response:
    """The picture under its heatmap, with the outline."""
    service: Service = request.app.state.service
    found = await _find(service, number)
    version, result = await service.result(found)

    def draw() -> bytes:
        model = service.shelf.model(found.recipe)
        image = decode(service.content(found), model.reading.bits, service.limits.pixels)
        return views.overlay_png(model, image, result)

    return _image(await service.run(draw), version)


def _image(content: bytes, version: int, media_type: str = "image/png") -> Response:
    return Response(content, media_type=media_type, headers={"X-Glass-Version": str(version)})


# ------------------------------------------------------------------------------------------- marks


@router.get("/pictures/{number}/mask", response_class=Response)
async def mask(request: Request, number: Id) -> Response:
    """The mask that was drawn."""
    service: Service = request.app.state.service
    found = await _find(service, number)
    if found.mask is None:
        raise Refusal(404, f"picture {number} has no mask")
    path = service.store.folder / found.mask
    return Response(await service.run(path.read_bytes), media_type="image/png")


@router.put("/pictures/{number}/mask", openapi_extra={"requestBody": {"content": {"image/png": {}}, "required": True}})
async def put_mask(request: Request, number: Id) -> PictureAnswer:
    """Mark a picture as defective with a mask: a PNG of its size, above 127 where the defect is."""
    service: Service = request.app.state.service
    found = await _find(service, number)
    async with service.admission.admit(request, service.limits.body):
        body = await read_body(request)
        try:
            drawn = await service.run(views.read_mask, body, (found.width, found.height))
        except InputError as error:
            raise Refusal(422, str(error)) from error
    await service.run(service.store.marks.put, [number], "defective", drawn)
    return await picture(request, number)


@router.post("/marks")
async def marks(request: Request, body: MarksBody) -> Marked:
    """Mark pictures, in one action that can be undone as a whole."""
    service: Service = request.app.state.service
    try:
        action = await service.run(service.store.marks.put, body.pictures, body.mark)
    except InputError as error:
        raise Refusal(404, str(error)) from error
    found = [await _find(service, number) for number in dict.fromkeys(body.pictures)]
    return Marked(action=action, pictures=await service.run(_answers, service, found))


@router.post("/marks/undo")
async def undo(request: Request, body: RecipeBody) -> Undone:
    """Undo the latest marks of a recipe."""
    service: Service = request.app.state.service
    service.check_recipe(body.recipe)
    try:
        return Undone(pictures=await service.run(service.store.marks.undo, body.recipe))
    except InputError as error:
        raise Refusal(409, str(error)) from error
