"""A small ASGI application that is instrumented with the emitter.

Like a batch API, one request does many operations: the demo makes much traffic with few requests.
"""

from __future__ import annotations

import random
import uuid
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from emitter import Emitter

METHODS = ("GET", "POST", "PUT")
REGIONS = ("eu-west-1", "us-east-1", "ap-south-1")
MODELS = ("small", "large")


def create_app(emitter: Emitter, chance: random.Random) -> Starlette:
    """The application. `chance` gives repeatable event ids and values."""

    def operation_id() -> str:
        return str(uuid.UUID(int=chance.getrandbits(128), version=4))

    async def api(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        for _ in range(body["calls"]):
            data = {"method": chance.choice(METHODS), "region": chance.choice(REGIONS), "status": 200}
            emitter.emit("api.request", body["account"], data, id=operation_id())
        return JSONResponse({"done": body["calls"]})

    async def completions(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        tokens = [chance.randrange(20, 4_000) for _ in range(body["prompts"])]
        for count in tokens:
            data = {"tokens": count, "model": chance.choice(MODELS), "billable": chance.random() > 0.02}
            emitter.emit("llm.completion", body["account"], data, id=operation_id())
        return JSONResponse({"tokens": sum(tokens)})

    async def storage(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        data = {"gigabytes": f"{chance.randrange(1_000_000) / 1000:.3f}"}
        emitter.emit("storage.sampled", body["account"], data, id=operation_id())
        return JSONResponse(data)

    async def login(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        for user in body["users"]:
            emitter.emit("user.active", body["account"], {"user": user}, id=operation_id())
        return JSONResponse({"welcome": len(body["users"])})

    async def seats(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        emitter.emit("seats.changed", body["account"], {"seats": body["seats"]}, id=operation_id())
        return JSONResponse({"seats": body["seats"]})

    async def page(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        emitter.emit("page.viewed", body["account"], {"path": "/pricing"}, id=operation_id())
        return JSONResponse({})

    return Starlette(
        routes=[
            Route(f"/{handler.__name__}", handler, methods=["POST"])
            for handler in (api, completions, storage, login, seats, page)
        ]
    )
