"""Deliberate defects on the way from Stripe to the side tables, and from there to the usage log."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final
from unittest.mock import patch

import pipeline.webhooks.binding_outbox
import pipeline.webhooks.linking
import pipeline.webhooks.processor
from pipeline.webhooks.binding_outbox import BindingOutbox
from pipeline.webhooks.processor import BillingEventProcessor
from pipeline.webhooks.walker import CURSOR, Walked, Walker
from schemas.billing_events import ObjectKind, StripeEvent, Via
from schemas.side_tables import Arrived, Stale
from simulation.seeds import BILLING_STRIDE
from sinks.sql.side_tables import SqlSideTables
from sinks.stripe.objects import StripeClientObjects
from tests.simulation.mutant import Method, Mutant

# Where a second transaction of a step has its position.
ELSEWHERE: Final = 1_000
# Long enough for a process to die in between.
BETWEEN_S: Final = 5.0


def _claims_first(original: Method) -> Method:
    """The ids in one transaction, the rows in another."""

    async def commit(self: SqlSideTables, step: Any) -> Any:
        outcomes = await original(self, step._replace(fetched=[]))
        await asyncio.sleep(BETWEEN_S)
        at = await self.position(ELSEWHERE) or 0
        event = StripeEvent(f"rows_{at}", "rows", 0, "", ())
        rows = step._replace(
            partition=ELSEWHERE, believed_offset=at, next_offset=at + 1, arrived=[Arrived(event, Via.RESYNC, at)]
        )
        try:
            await original(self, rows)
        except Stale:
            return outcomes
        return outcomes

    return commit


def _position_first(original: Method) -> Method:
    async def commit(self: SqlSideTables, step: Any) -> Any:
        await original(self, step._replace(arrived=[], fetched=[]))
        await asyncio.sleep(BETWEEN_S)
        return await original(self, step._replace(believed_offset=step.next_offset))

    return commit


def _trusts_payloads(original: Method) -> Method:
    """An object is what the newest event of the read says."""

    async def commit(self: BillingEventProcessor, partition: int, records: Any, refused: str = "") -> None:
        things = [json.loads(record.value).get("data", {}).get("object", {}) for record in records]
        said = {thing.get("id"): thing for thing in things if not _is_cut(thing)}
        fetched = self._fetched

        async def believed(name: Any, tries_max: int) -> Any:
            return said.get(name.id) or await fetched(name, tries_max)

        with patch.object(self, "_fetched", believed):
            await original(self, partition, records, refused)

    return commit


def _is_cut(thing: Any) -> bool:
    return any((thing.get(part) or {}).get("has_more") for part in ("items", "lines"))


def _marks_first(original: Method) -> Method:
    async def send(self: BindingOutbox, account: str, standings: Any) -> int:
        due = await self._tables.due_bindings(account=account)
        await self._tables.sent(due, self._accounts.clock.now_ms())
        await asyncio.sleep(BETWEEN_S)

        async def bindings(*_arguments: Any, **_named: Any) -> Any:
            return due

        with patch.object(self._tables, "due_bindings", bindings):
            count: int = await original(self, account, standings)
        return count

    return send


def _cursor_first(original: Method) -> Method:
    async def append_unseen(self: Walker, wanted: Any) -> int:
        now_ms = self._clock.now_ms()
        await self._tables.move_cursor(CURSOR, now_ms // 1_000 + 3_600, now_ms)
        await asyncio.sleep(BETWEEN_S)
        appended: int = await original(self, wanted)
        return appended

    return append_unseen


def _never_walks(_original: Method) -> Method:
    async def go_on(_self: Walker) -> Walked:
        return Walked(0, 0, 0, 0)

    return go_on


def _first_page(_original: Method) -> Method:
    async def whole(_self: StripeClientObjects, _name: Any, _path: str, listed: Any) -> Any:
        return list(listed["data"])

    return whole


def _none_released(_original: Method) -> Method:
    async def append_held(*_arguments: Any) -> int:
        return 0

    return append_held


def _revived(original: Any) -> Any:
    """A deleted customer is what it was before."""

    def mirror_rows(name: Any, body: Any) -> Any:
        rows = original(name, body)
        if name.kind is ObjectKind.CUSTOMER and body is not None:
            return {table: [{**row, "deleted": 0} for row in own] for table, own in rows.items()}
        return rows

    return mirror_rows


def _due_first(original: Method) -> Method:
    async def send(self: BindingOutbox, account: str, standings: Any) -> int:
        due = await self._tables.due_bindings(account=account)
        await asyncio.sleep(BETWEEN_S)

        async def bindings(*_arguments: Any, **_named: Any) -> Any:
            return due

        with patch.object(self._tables, "due_bindings", bindings):
            count: int = await original(self, account, standings)
        return count

    return send


def _on_billing_seeds(name: str, target: Any, attribute: str, made: Any) -> Mutant:
    return Mutant(name, target, attribute, made, stride=BILLING_STRIDE)


MIRROR: Final = (
    _on_billing_seeds("mirror: claim without the rows", SqlSideTables, "commit", _claims_first),
    _on_billing_seeds("mirror: position before commit", SqlSideTables, "commit", _position_first),
    _on_billing_seeds("mirror: payload trusted", BillingEventProcessor, "_commit", _trusts_payloads),
    _on_billing_seeds("mirror: only the first page of items", StripeClientObjects, "_whole", _first_page),
    _on_billing_seeds("mirror: a deleted customer is revived", pipeline.webhooks.processor, "mirror_rows", _revived),
    _on_billing_seeds(
        "mirror: held events stay held after the link", pipeline.webhooks.linking, "append_held", _none_released,
    ),
    _on_billing_seeds("walker: never walks", Walker, "go_on", _never_walks),
    _on_billing_seeds("walker: cursor before the appends", Walker, "_append_unseen", _cursor_first),
    _on_billing_seeds("bindings: marked before the append", BindingOutbox, "_send", _marks_first),
    _on_billing_seeds("bindings: read before the standing", BindingOutbox, "_send", _due_first),
    _on_billing_seeds(
        "bindings: sent under the revision of the one before", pipeline.webhooks.binding_outbox, "planned",
        lambda made: lambda known, account, binding, _revision: made(known, account, binding, known.state.revision),
    ),
)  # fmt: skip
