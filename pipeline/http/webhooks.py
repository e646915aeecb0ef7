"""`POST /v1/stripe/webhook`: takes Stripe's deliveries. A delivery is answered with 200 once the log has its bytes.

Nothing is processed here. A body that Stripe signed is kept, whatever it says: in `billing.events`, or in the
quarantine with the reason, and Stripe need not send the body again. A body that Stripe did not sign is not kept.
"""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from aggregators.billing_events import event_key, read_delivery
from aggregators.partitioning import partition_of
from aggregators.stripe_signature import signature_problem
from pipeline.http.body import Bodies
from pipeline.http.dependencies import GatewayDependencies
from pipeline.http.errors import ApiError, json_answer, overloaded
from pipeline.http.watched_file import WatchedFile, load_lines
from pipeline.logs.quarantine import Header, append_entry
from pipeline.metrics import Metrics
from schemas.billing_events import EVENT_BYTES_MAX, VIA_HEADER, Via
from schemas.errors import InvalidInput, TidemarkError
from schemas.log import BILLING_EVENTS_TOPIC
from schemas.reasons import Reason

WEBHOOK_PATH: Final = "/v1/stripe/webhook"
# Stripe waits at least ten seconds for an answer; the log must have answered before.
ANSWER_TIMEOUT_S: Final = 8.0
# A burst of deliveries waits in the requests. More are answered with 503, and Stripe repeats them.
IN_FLIGHT_MAX: Final = 2_000

_SECRET: Final = re.compile(r"whsec_[!-~]+")
_log: Final = logging.getLogger(__name__)


def load_secrets(path: Path) -> tuple[str, ...]:
    """The signing secrets of a file, one on each line; `#` begins a comment. Empty if the file is missing.

    Raises `InvalidInput` with the number of a malformed line.
    """
    what = "a signing secret begins with whsec_ and has no spaces"
    return load_lines(path, "stripe_webhook_secrets", _SECRET, what)


class WebhookEndpoint:
    """The handler of Stripe's deliveries. An app has one."""

    def __init__(self, dependencies: GatewayDependencies, metrics: Metrics) -> None:
        """Raises `InvalidInput` if the file of secrets is unreadable or malformed."""
        path = dependencies.settings.stripe_webhook_secrets
        self._dependencies = dependencies
        self._metrics = metrics
        self._bodies = Bodies(EVENT_BYTES_MAX)
        self._secrets = WatchedFile("TIDEMARK_STRIPE_WEBHOOK_SECRETS", path, load_secrets) if path else None
        self._in_flight = 0

    async def post(self, request: Request) -> Response:
        """Check the signature, keep the bytes, and answer.

        400: no secret signed the body. 200: the log or the quarantine has the body. 503: neither has, or too many
        deliveries wait; Stripe repeats the delivery.
        """
        if self._secrets is None:
            raise ApiError(501, "not_configured", "this gateway takes no webhooks: set TIDEMARK_STRIPE_WEBHOOK_SECRETS")
        if self._in_flight >= IN_FLIGHT_MAX:
            raise overloaded("the gateway is busy with other deliveries; send the delivery again")
        self._in_flight += 1
        try:
            async with self._bodies.read(request) as body:
                outcome = await self._kept(request.headers.get("stripe-signature", ""), body, self._secrets.content())
        finally:
            self._in_flight -= 1
        self._metrics.add("tidemark_webhook_deliveries_total", outcome=outcome)
        return json_answer({"received": True})

    async def _kept(self, signature: str, body: bytes, secrets: tuple[str, ...]) -> str:
        """Keep a delivery; returns what became of it."""
        now_s = self._dependencies.clock.now_ms() // 1000
        if problem := signature_problem(signature, body, secrets, now_s):
            self._metrics.add("tidemark_webhook_deliveries_total", outcome="bad_signature")
            raise ApiError(400, "bad_signature", problem, "stripe-signature")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._append(body)
        except TimeoutError:
            raise overloaded("the log did not answer in time; send the delivery again") from None

    async def _append(self, body: bytes) -> str:
        log, genesis = self._dependencies.log, self._dependencies.genesis
        try:
            event, origin = read_delivery(body)
        except InvalidInput as error:
            return await self._quarantined(Reason.BAD_STRIPE_EVENT, str(error), body)
        ours = (genesis.livemode, genesis.stripe_account)
        if (origin.livemode, origin.account or genesis.stripe_account) != ours:
            mode = "live" if origin.livemode else "test"
            detail = f"{mode} mode of {origin.account or 'an account that the event does not name'}"
            return await self._quarantined(Reason.FOREIGN_STRIPE_EVENT, detail, body)
        key = event_key(event)
        headers = ((VIA_HEADER, Via.WEBHOOK.value.encode()),)
        partition = partition_of(key, genesis.partitions)
        await log.append(BILLING_EVENTS_TOPIC, partition, body, key=key.encode(), headers=headers)
        return "kept"

    async def _quarantined(self, reason: Reason, detail: str, body: bytes) -> str:
        log = self._dependencies.log
        try:
            await append_entry(
                log, 0, reason.value, detail, BILLING_EVENTS_TOPIC, body, ((Header.SOURCE, b"webhook"),), cut=True
            )
        except TidemarkError:
            self._metrics.add("tidemark_gateway_unkept_rejections_total")
            raise
        _log.warning("a delivery of Stripe went to the quarantine: %s: %s", reason.value, detail)
        return reason.value
