"""Deliveries of events to webhook endpoints and event destinations (docs.stripe.com/webhooks).

A delivery is an object of the store. Workers attempt the deliveries of `Mode.outbox`; jobs of the real clock put the
retries there. Without a fault, first attempts start in the order of the events.
"""

from __future__ import annotations

import asyncio
import hmac
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from stripe_simulator.faults import FaultKind
from stripe_simulator.mode import Mode
from stripe_simulator.store import Object

DELIVERY: Final = "simulator.delivery"
SECRETS: Final = "simulator.signing_keys"
DESTINATION: Final = "v2.core.event_destination"
SEND: Final = "deliveries.send"
KEEP_MAX_S: Final = 86_400
# Stripe documents exponential backoff over three days, and in a sandbox three retries over a few hours.
RETRIES_S: Final = tuple(1_800 << number for number in range(7))
SANDBOX_RETRIES: Final = 3
# Servers close idle connections after about five seconds.
IDLE_MAX_S: Final = 2.0
_THIN: Final = ("id", "object", "type", "livemode", "created", "context", "related_object", "reason", "snapshot_event")
_Connections = dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter, float]]


def publish(mode: Mode, event: Object) -> None:
    """Create the deliveries of a new snapshot or thin event, in the event's transaction."""
    payload, now_ms = "snapshot" if event["object"] == "event" else "thin", mode.now_ms()
    for target in [*mode.store.newest("webhook_endpoint"), *mode.store.newest(DESTINATION)]:
        wants = event["type"] in target["enabled_events"] or "*" in target["enabled_events"]
        if not wants or target["status"] != "enabled" or target.get("event_payload", "snapshot") != payload:
            continue
        asked = [target["url"], event["type"], event["id"]]
        fault = mode.faults.take(FaultKind.DELIVERY_DUPLICATED, "", asked, now_ms)
        for copy in range(fault.span()[0] if fault else 1):
            delay_ms = mode.faults.delay_ms(asked, now_ms)
            # A copy does not count as a pending webhook.
            delivery = {
                "id": mode.store.new_id("dlv"), "object": DELIVERY, "event": event["id"], "asked": asked,
                "target": target["id"], "is_copy": copy > 0, "status": "pending", "due_ms": now_ms + delay_ms,
                "attempts": [],
            }  # fmt: skip
            mode.store.put(delivery)
            if delay_ms:
                mode.clockwork.schedule(now_ms + delay_ms, SEND, {"delivery": delivery["id"]})
            else:
                mode.journal.after(partial(mode.outbox.put_nowait, delivery["id"]))


def pending(mode: Mode, event: str) -> int:
    """Stripe's `pending_webhooks`: the deliveries of an event that did not succeed, given up or not."""
    deliveries = mode.store.newest(DELIVERY, "event", event)
    return sum(delivery["status"] != "succeeded" and not delivery["is_copy"] for delivery in deliveries)


def new_secret(mode: Mode, target: str, keep_s: int = 0) -> str:
    """A new signing secret. The older ones stay valid for `keep_s`. Raises `ValueError` beyond 24 hours."""
    if not 0 <= keep_s <= KEEP_MAX_S:
        raise ValueError(f"a rolled secret stays valid for 0 to {KEEP_MAX_S} seconds")
    end_ms = mode.now_ms() + keep_s * 1_000
    with mode.journal.transaction():
        secret = mode.store.new_id("whsec", 32)
        valid = [[old, min(until_ms or end_ms, end_ms)] for old, until_ms in _secrets(mode, target)]
        mode.store.put({"id": f"{target}.keys", "object": SECRETS, "keys": [[secret, None], *valid]})
    return secret


def requeue(mode: Mode) -> None:
    """After a restart: queue what is pending. An attempt that the end of the process interrupted is repeated."""
    for delivery in reversed(list(mode.store.newest(DELIVERY))):
        if delivery["status"] == "pending":
            mode.outbox.put_nowait(delivery["id"])


async def work(mode: Mode) -> None:
    """Attempt the deliveries of the outbox, one after the other, until cancelled."""
    connections: _Connections = {}
    try:
        while True:
            identifier = await mode.outbox.get()
            try:
                await _attempt(mode, identifier, connections)
            finally:
                mode.outbox.task_done()
    finally:
        for _, writer, _ in connections.values():
            writer.close()


async def _attempt(mode: Mode, identifier: str, connections: _Connections) -> None:
    delivery, at_ms = mode.store.get(DELIVERY, identifier), mode.now_ms()
    if delivery is None or delivery["status"] != "pending" or delivery["due_ms"] > at_ms:
        return
    target = mode.store.get("webhook_endpoint", delivery["target"]) or mode.store.get(DESTINATION, delivery["target"])
    if target is None or target["status"] != "enabled":
        # Stripe attempts no event again whose endpoint is gone at the time of the attempt.
        mode.store.put({**delivery, "status": "failed"})
        return
    status, failure = 0, ""
    if mode.faults.take(FaultKind.DELIVERY_DROPPED, "", delivery["asked"], at_ms):
        failure = "dropped by a fault"
    else:
        event = mode.store.get("event", delivery["event"]) or mode.fetch("v2.core.event", delivery["event"])
        body = _body(mode, event)
        try:
            async with asyncio.timeout(mode.settings.delivery_timeout_s):
                status = await _post(connections, target["url"], _signature(mode, target["id"], body), body)
        except (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError) as error:
            failure = repr(error)
    attempts = [*delivery["attempts"], {"at_ms": at_ms, "status": status, "failure": failure}]
    retries_s = RETRIES_S if mode.livemode else RETRIES_S[:SANDBOX_RETRIES]
    delivery = {**delivery, "attempts": attempts}
    with mode.journal.transaction():
        if 200 <= status < 300:
            delivery["status"] = "succeeded"
        elif len(attempts) > len(retries_s):
            delivery["status"] = "failed"
        else:
            delivery["due_ms"] = mode.now_ms() + retries_s[len(attempts) - 1] * 1_000
            mode.clockwork.schedule(delivery["due_ms"], SEND, {"delivery": identifier})
        mode.store.put(delivery)


async def _post(connections: _Connections, url: str, signature: str, body: bytes) -> int:
    """The status of the answer. A general HTTP client costs thirty times the CPU."""
    parts, now_s = urlsplit(url), asyncio.get_running_loop().time
    origin, is_tls = f"{parts.scheme}://{parts.netloc}", parts.scheme == "https"
    kept = connections.pop(origin, None)
    if kept and (kept[0].at_eof() or now_s() - kept[2] > IDLE_MAX_S):
        kept[1].close()
        kept = None
    port = parts.port or (443 if is_tls else 80)
    reader, writer = kept[:2] if kept else await asyncio.open_connection(parts.hostname, port, ssl=is_tls or None)
    is_kept = False
    try:
        head = (
            f"POST {parts.path or '/'}{'?' if parts.query else ''}{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\nAccept: */*; q=0.5, application/xml\r\n"
            "Cache-Control: no-cache\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nStripe-Signature: {signature}\r\n\r\n"
        )
        writer.write(head.encode("latin-1") + body)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        answer = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        await reader.readexactly(int(answer.get("content-length", 0)))
        # A server of HTTP/1.0 closes the connection without a word.
        is_kept = status.startswith("http/1.1") and "content-length" in answer and answer.get("connection") != "close"
        return int(status.split(" ")[1])
    finally:
        if is_kept:
            connections[origin] = reader, writer, now_s()
        else:
            writer.close()


def _body(mode: Mode, event: Object) -> bytes:
    """The payload, indented as at Stripe: the signature holds for these bytes only."""
    shown: dict[str, Any] = {name: event[name] for name in _THIN if event.get(name) is not None}
    if event["object"] == "event":
        shown = {**event, "pending_webhooks": pending(mode, event["id"])}
    return msgspec.json.format(msgspec.json.encode(shown), indent=2)


def _signature(mode: Mode, target: str, body: bytes) -> str:
    """The `Stripe-Signature` header. In test mode, Stripe adds a scheme `v0` that receivers must ignore."""
    at_s = mode.now_s()
    schemes = [("v1", secret) for secret, _ in _secrets(mode, target)] + ([] if mode.livemode else [("v0", "v0")])
    signed = f"{at_s}.".encode() + body
    signatures = (f",{name}={hmac.digest(key.encode(), signed, 'sha256').hex()}" for name, key in schemes)
    return f"t={at_s}{''.join(signatures)}"


def _secrets(mode: Mode, target: str) -> list[tuple[str, int | None]]:
    """(secret, end of its validity), newest first. Stripe signs with every valid secret."""
    keys = (mode.store.get(SECRETS, f"{target}.keys") or {"keys": ()})["keys"]
    return [(secret, until_ms) for secret, until_ms in keys if until_ms is None or until_ms > mode.now_ms()]
