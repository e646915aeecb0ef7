"""Subscriptions and their schedules at Stripe, for moves to another version of a plan (`StripeSchedules`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from schemas.billing_events import ObjectKind, ObjectName
from schemas.clock import SECOND_MS
from schemas.errors import InvalidInput, Transient
from schemas.plan_moves import PhasesChange, StripeSchedule, Subscribed, SubscribedItem
from sinks.stripe.connection import SHAPE_ERRORS, json_of, read, stored
from sinks.stripe.objects import StripeClientObjects

MARK_KEY: Final = "tidemark_move"
CHANGE_KEY: Final = "tidemark_change"
_SCHEDULES: Final = "/v1/subscription_schedules"


class StripeClientSchedules(StripeClientObjects):
    """Reads subscriptions and makes schedules, with one API key. For use in one event loop."""

    async def subscription(self, identifier: str) -> Subscribed:
        """See `StripeSchedules`."""
        body: Any = await self.fetch(ObjectName(ObjectKind.SUBSCRIPTION, identifier))
        if body is None:
            raise InvalidInput(identifier, "Stripe does not have the subscription")
        try:
            rows: Sequence[Any] = body["items"]["data"]
            return Subscribed(
                str(body["id"]),
                str(body["status"]),
                _id(body["schedule"]),
                max(int(row["current_period_end"]) for row in rows) * SECOND_MS,
                body["cancel_at"] is not None or bool(body.get("cancel_at_period_end")),
                body.get("pending_update") is not None,
                any(row.get("discounts") for row in rows),
                tuple(SubscribedItem(_id(row["price"]), row.get("quantity")) for row in rows),
            )
        except SHAPE_ERRORS as error:
            raise Transient(f"not an answer of Stripe: {error}") from error

    async def schedule(self, identifier: str) -> StripeSchedule:
        """See `StripeSchedules`."""
        try:
            return _schedule(await self._get(f"{_SCHEDULES}/{quote(identifier, safe='')}"))
        except SHAPE_ERRORS as error:
            raise Transient(f"not an answer of Stripe: {error}") from error

    async def create(self, subscription: str, key: str) -> StripeSchedule:
        """See `StripeSchedules`. Stripe takes nothing else together with `from_subscription`."""
        return await self._post("", {"from_subscription": subscription}, key)

    async def plan(
        self,
        schedule: str,
        phases: Sequence[Mapping[str, Any]],
        mark: str,
        key: str,
        end_behavior: str = "release",
        change: PhasesChange | None = None,
    ) -> None:
        """See `StripeSchedules`."""
        metadata = {MARK_KEY: mark} | ({CHANGE_KEY: change.name} if change else {})
        params = {"phases": phases, "end_behavior": end_behavior, "metadata": metadata}
        params["proration_behavior"] = change.prorations if change else "none"
        await self._post(f"/{quote(schedule, safe='')}", params, key)

    async def release(self, schedule: str) -> None:
        """See `StripeSchedules`."""
        await self._post(f"/{quote(schedule, safe='')}/release", {}, "")

    async def _post(self, path: str, params: Mapping[str, Any], key: str) -> StripeSchedule:
        options = {"idempotency_key": key} if key else {}
        return await read(
            lambda: stored(lambda: self._stripe.raw_request_async("post", f"{_SCHEDULES}{path}", **params, **options)),
            lambda response: _schedule(json_of(response)),
        )


def _schedule(body: Mapping[str, Any]) -> StripeSchedule:
    notes = body["metadata"] or {}
    return StripeSchedule(
        str(body["id"]), str(notes.get(MARK_KEY, "")), list(body["phases"]), str(notes.get(CHANGE_KEY, "")),
        body["end_behavior"] == "cancel",
    )  # fmt: skip


def _id(value: Any) -> str:
    return str(value["id"]) if isinstance(value, Mapping) else str(value or "")
