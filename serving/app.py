"""The application: routes, pages, and how what goes wrong becomes one line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving import routes_pictures, routes_recipes
from serving.guard import Guard
from serving.refusal import Refusal
from serving.service import Service
from utils import LOGGER, InputError, WorkError, no_room

PAGE = Path(__file__).resolve().parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".png": "image/png", ".ico": "image/x-icon",
}  # fmt: skip
API = "/api/v1"
SUMMARY = "Judges pictures with trained models, and keeps what was judged. Every error is {'error': 'one line'}."


def make_app(service: Service, token: str, local: bool) -> FastAPI:
    """The application of a service.

    Args:
        service: that it offers; it is started and closed with the application.
        token: that requests need; "" for none.
        local: whether only names of this machine are answered, see `Guard`.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.run(service.close)

    # FastAPI's own pages of documentation load scripts from the network
    app = FastAPI(
        title="GLASS", version="1", description=SUMMARY, openapi_url=f"{API}/openapi.json", docs_url=None,
        redoc_url=None, lifespan=life,
    )  # fmt: skip
    app.state.service = service
    app.include_router(routes_recipes.router, prefix=API)
    app.include_router(routes_pictures.router, prefix=API)
    app.add_api_route("/metrics", _metrics, methods=["GET"], response_class=PlainTextResponse)
    _add_pages(app)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(Guard, token=token, local=local, body=service.limits.body, numbers=service.numbers)
    return app


async def _metrics(request: Request) -> PlainTextResponse:
    """Counts in the text format of Prometheus."""
    service: Service = request.app.state.service
    gauges = await service.run(service.gauges)
    return PlainTextResponse(service.numbers.text(gauges), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI) -> None:
    """A route for each file of the page, so that no path of a request ever becomes one of this machine."""
    for path in sorted(PAGE.iterdir()):
        if path.suffix in TYPES:
            routes = {"index.html": ["/"], "docs.html": ["/docs"]}.get(path.name, [f"/page/{path.name}"])
            for route in routes:
                app.add_api_route(route, _file(path), methods=["GET"], include_in_schema=False)


def _file(path: Path) -> Callable[[], Response]:
    content, media_type = path.read_bytes(), TYPES[path.suffix]

    def answer() -> Response:
        return Response(content, media_type=media_type)

    return answer


# ------------------------------------------------------------------------------------------- errors


def _error(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(line.split())}, status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error.status, error.line, error.headers)


async def _input(_: Request, error: Exception) -> Response:
    return _error(400, str(error))


async def _failed(_: Request, error: Exception) -> Response:
    LOGGER.error("%s", error)
    return _error(507 if no_room(error) else 500, str(error))


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return _error(422, f"{place or 'the body'}: {first['msg']}")


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, f"{error.detail}; /docs lists what there is", dict(error.headers or {}))


async def _gone(_: Request, __: Exception) -> Response:
    return _error(400, "the request was cut off")  # nobody reads it


async def _bug(_: Request, error: Exception) -> Response:
    return _error(500, f"an error of the program ({type(error).__name__}); its log says more")


HANDLERS = {
    Refusal: _refused, InputError: _input, WorkError: _failed, RequestValidationError: _invalid, HTTPException: _http,
    ClientDisconnect: _gone, Exception: _bug,
}  # fmt: skip
