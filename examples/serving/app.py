"""The application: OpenAI's endpoints over one engine."""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from modeling_rosetta import RosettaPipeline

from .chat_completions import complete
from .errors import add_error_handlers
from .gate import Gate
from .image_requests import draw, read_form
from .metrics import Metrics
from .protocol import ChatCompletion, ImageGeneration
from .server import Server
from .settings import Settings


def create_app(name: str, load: Callable[[], RosettaPipeline], settings: Settings) -> FastAPI:
    """
    Args:
        name (`str`): what the model is called in requests.
        load (`Callable`): returns the pipeline, on its device; called when the application starts.
        settings ([`Settings`])
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        app.state.server = server = Server(name, await asyncio.to_thread(load), settings, metrics)
        yield
        await asyncio.to_thread(server.engine.stop)

    app = FastAPI(title="Rosetta", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, settings=settings, metrics=metrics)
    add_error_handlers(app)

    @app.get("/health")
    async def health(request: Request):
        is_running = request.app.state.server.engine.is_running
        return JSONResponse({"status": "ok" if is_running else "failed"}, 200 if is_running else 503)

    @app.get("/metrics")
    async def figures():
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models(request: Request):
        return {"object": "list", "data": [request.app.state.server.card]}

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str):
        request.app.state.server.check_model(model)
        return request.app.state.server.card

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatCompletion):
        return await complete(request.app.state.server, request, body)

    @app.post("/v1/images/generations")
    async def generations(request: Request, body: ImageGeneration):
        return await draw(request.app.state.server, request, body, {})

    @app.post("/v1/images/edits")
    async def edits(request: Request):
        server = request.app.state.server
        body, images = await read_form(request, server.settings)
        given = {"image": images, "strength": body.strength, "image_guidance_scale": body.image_guidance_scale}
        return await draw(server, request, body, given)

    return app


__all__ = ["create_app"]
