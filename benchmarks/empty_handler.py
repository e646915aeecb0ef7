"""`python -m benchmarks.empty_handler PORT`: an application of the gateway's framework that does nothing."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import uvloop
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from pipeline.http.serving import serving, stop_event

ANSWER: Final = b'{"allowed":true}'


async def nothing(request: Request) -> Response:
    """Read the body and answer the same bytes each time."""
    await request.body()
    return Response(ANSWER, media_type="application/json")


async def main(port: int) -> None:
    """Serve until the process is ended."""
    app = FastAPI()
    app.add_api_route("/v1/access/check", nothing, methods=["POST"])
    stop = stop_event()
    async with serving(app, "127.0.0.1", port):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
