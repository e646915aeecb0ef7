"""A Stripe, or a proxy before it, that takes requests and does not finish an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from schemas.errors import Transient
from schemas.reports import MeterEvent, SendStatus
from sinks.stripe.client import StripeClientMeters

TIMEOUT_S = 0.3


@pytest.fixture(params=["silent", "trickling"])
async def hanging(request: pytest.FixtureRequest) -> AsyncIterator[StripeClientMeters]:
    """A client of a server that answers nothing, or a byte of an endless answer at a time."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" if request.param == "trickling" else b"")
            while not writer.is_closing():
                if request.param == "trickling":
                    writer.write(b" ")
                    await writer.drain()
                await asyncio.sleep(TIMEOUT_S / 10)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = StripeClientMeters("sk_test_hangs", f"http://127.0.0.1:{port}", timeout_s=TIMEOUT_S, nonce="test")
    yield client
    await client.close()
    server.close()


async def test_calls_end_after_the_limit(hanging: StripeClientMeters) -> None:
    """An answer that trickles in must not hold an intent's queue for ever."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    with pytest.raises(Transient):
        await hanging.identity()
    result = await hanging.send(MeterEvent("identifier", "tokens", "cus_one", "1", 1_795_262_400))

    assert result.status is SendStatus.RETRY
    assert loop.time() - began_s < 4 * TIMEOUT_S
