"""Links an account to a customer after the mirror has all that decides who pays.

A customer of whom the mirror has no subscription would be taken for one without a subscription, and the account's usage
for free. Stripe's events may not have said anything of the customer for years. So the customer's objects are fetched
first, by the same way as those of a resync, and the account is linked after they are in the mirror.

What a crash leaves: before the link, the objects in the mirror; behind it, held events that are not processed yet. The
same link again does the rest.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from aggregators.billing_events import resync_record
from pipeline.webhooks.appending import append_events
from pipeline.webhooks.held import append_held
from schemas.billing_events import ObjectKind, ObjectName, StripeObjects, Via
from schemas.clock import MINUTE_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, Transient
from schemas.log import Log
from schemas.side_tables import Link, SideTables

# The mirror role reads all events before these too, so the wait is long enough for a burst of some thousand.
WAIT_S: Final = 60.0
LOOK_EVERY_S: Final = 0.2


class Linking(NamedTuple):
    """What a link needs."""

    log: Log
    tables: SideTables
    objects: StripeObjects
    clock: Clock


class Wish(NamedTuple):
    """A link that a person asks for. `from_ms` None: now, or for all usage that nobody was named for if it is the
    account's first link."""

    account: str
    customer: str
    from_ms: int | None
    actor: str
    reason: str


async def link_customer(parts: Linking, wish: Wish, run: str) -> tuple[Link, int]:
    """Link an account to a customer, and have the customer's held events processed; returns the link and their number.

    `run` names the fetches, and must be new. Raises `InvalidInput` if Stripe does not know the customer or the store
    refuses the link, `Transient` if the mirror role does not fetch the customer's objects within `WAIT_S`; then
    nothing is linked.
    """
    await _mirrored(parts, wish.customer, run)
    now_ms, from_ms = parts.clock.now_ms(), wish.from_ms
    if from_ms is None:
        from_ms = now_ms // MINUTE_MS * MINUTE_MS if await parts.tables.links(wish.account) else 0
    made = await parts.tables.link(wish.account, wish.customer, from_ms, wish.actor, wish.reason, now_ms)
    return made, await append_held(parts.log, parts.tables, wish.customer)


async def _mirrored(parts: Linking, customer: str, run: str) -> None:
    """Have the customer and its subscriptions and schedules fetched, and wait until they are in the mirror."""
    owner = ObjectName(ObjectKind.CUSTOMER, customer)
    if await parts.objects.fetch(owner) is None:
        raise InvalidInput(
            "customer", f"Stripe knows no {customer} in this mode and account: look at the id, and at the key's mode"
        )
    names = [*await owned(parts.objects, customer), owner]
    before = await parts.tables.fetch_seqs(names)
    now_s = parts.clock.now_ms() // SECOND_MS
    await append_events(parts.log, [resync_record(run, name, customer, now_s) for name in names], Via.RESYNC)
    waits_until_ms = parts.clock.now_ms() + round(WAIT_S * SECOND_MS)
    while missing := await _missing(parts.tables, before):
        if parts.clock.now_ms() >= waits_until_ms:
            raise Transient(
                f"{customer}: {len(missing)} of its {len(names)} objects are not in the mirror after {WAIT_S:g} s, "
                f"{missing[0].id} for one, so nothing is linked: the role mirror must run and keep up (`tidemark "
                "billing status` shows the events to process); then repeat the command"
            )
        await parts.clock.sleep(LOOK_EVERY_S)


async def owned(objects: StripeObjects, customer: str) -> list[ObjectName]:
    """The customer's subscriptions and schedules at Stripe, whatever their status. Errors as `StripeObjects`."""
    names: list[ObjectName] = []
    for kind in (ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE):
        after = ""
        while page := await objects.names(kind, after, customer):
            names += [name for name, _ in page]
            after = page[-1][0].id
    return names


async def _missing(tables: SideTables, before: dict[ObjectName, int]) -> list[ObjectName]:
    """The objects that were not fetched since."""
    now = await tables.fetch_seqs(list(before))
    return [name for name in before if now[name] <= before[name]]
