"""A webhook endpoint of ours: it verifies each signature with stripe-python and keeps each event once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import stripe


class Receiver:
    """What an endpoint received. `events` has each event once, by id; `deliveries` counts every delivery."""

    def __init__(self) -> None:
        self.url = ""
        self.secret = ""
        self.deliveries = 0
        self.events: dict[str, Any] = {}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection: 200, or 400 if the signature is wrong."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers["Content-Length"]))
                status = self._receive(body, headers["Stripe-Signature"])
                writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    def _receive(self, body: bytes, signature: str) -> int:
        try:
            # The simulator has a clock of its own, so the age of the signature is not checked.
            event = stripe.Webhook.construct_event(body, signature, self.secret, 0)
        except stripe.SignatureVerificationError:
            return 400
        self.deliveries += 1
        self.events.setdefault(event.id, event.to_dict())
        return 200


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver on a free port of 127.0.0.1."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/webhooks"
    yield receiver
    server.close()
