"""Links an account to a customer after the mirror has all that decides who pays.

A customer of whom the mirror has no subscription would be taken for one without a subscription, and the account's usage
for free. Stripe's events may not have said anything of the customer for years. So the customer's objects are fetched
first, by the same way as those of a resync, and the account is linked after they are in the mirror.

What a crash leaves: before the link, the objects in the mirror; behind it, held events that are not processed yet. The
same link again does the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.billing_events import resync_record
from pipeline.logs.tasks import all_or_first_error
from pipeline.webhooks.appending import append_events
from pipeline.webhooks.held import append_held
from schemas.billing_events import CUSTOMER_ID, ObjectKind, ObjectName, StripeObjects, Via, cursor_of
from schemas.clock import MINUTE_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, Transient
from schemas.events import check_account
from schemas.log import Log
from schemas.side_tables import Link, SideTables

# The mirror role reads all events before these too, so the wait is long enough for a burst of some thousand.
WAIT_S: Final = 60.0
LOOK_EVERY_S: Final = 0.2
# Stripe takes 25 reads a second of a sandbox; eight at once stay near that.
AT_ONCE_MAX: Final = 8
# So many customers are looked for in Stripe's lists of all, a hundred a read, if the lists have no more pages than
# there are customers. One by one, each customer costs three reads.
LISTED_MIN: Final = 20


class Linking(NamedTuple):
    """What a link needs. `patience` is the clock of the wait for the mirror role, which takes its time also where the
    deployment's `clock` is a fast one."""

    log: Log
    tables: SideTables
    objects: StripeObjects
    clock: Clock
    patience: Clock


class Wish(NamedTuple):
    """A link that a person asks for. `from_ms` None: now, or for all usage that nobody was named for if it is the
    account's first link."""

    account: str
    customer: str
    from_ms: int | None
    actor: str
    reason: str


class Linked(NamedTuple):
    """A link that was made or was there, and how many held events of the customer are processed now."""

    link: Link
    released: int


async def link_customers(parts: Linking, wishes: Sequence[Wish], run: str) -> list[Linked]:
    """Link accounts to customers, and have the customers' held events processed; returns the links by account, each
    account's in the order of `wishes`.

    `run` names the fetches, and must be new. Raises `InvalidInput` for a name that no account or customer can have, if
    Stripe does not know a customer, or if the store refuses a link; `Transient` if the mirror role fetches none of the
    customers' objects for `WAIT_S`. Before the first link nothing is linked then; a repetition does the rest.
    """
    for wish in wishes:
        _check(wish)
    await _mirrored(parts, sorted({wish.customer for wish in wishes}), run)
    asked: dict[str, list[Wish]] = {}
    for wish in wishes:
        asked.setdefault(wish.account, []).append(wish)
    made: dict[str, list[Linked]] = {account: [] for account in asked}
    slots = asyncio.Semaphore(AT_ONCE_MAX)

    async def link_account(account: str) -> None:
        async with slots:
            made[account] = [await _linked(parts, wish) for wish in asked[account]]

    await all_or_first_error(link_account(account) for account in asked)
    return [linked for links in made.values() for linked in links]


def _check(wish: Wish) -> None:
    """Raise `InvalidInput` with the field for a name that no event or no object at Stripe can have."""
    check_account(wish.account)
    if not CUSTOMER_ID.fullmatch(wish.customer):
        raise InvalidInput(
            "customer", f"{wish.customer!a:.80} is no Stripe customer: give its id, which begins with cus_"
        )


async def _linked(parts: Linking, wish: Wish) -> Linked:
    now_ms, from_ms = parts.clock.now_ms(), wish.from_ms
    if from_ms is None:
        from_ms = now_ms // MINUTE_MS * MINUTE_MS if await parts.tables.links(wish.account) else 0
    made = await parts.tables.link(wish.account, wish.customer, from_ms, wish.actor, wish.reason, now_ms)
    return Linked(made, await append_held(parts.log, parts.tables, wish.customer))


async def _mirrored(parts: Linking, customers: Sequence[str], run: str) -> None:
    """Have customers and their subscriptions and schedules fetched, and wait until they are in the mirror."""
    slots = asyncio.Semaphore(AT_ONCE_MAX)
    owners = await _listed(parts.objects, set(customers)) if len(customers) >= LISTED_MIN else {}
    # A deleted customer is in no list.
    unlisted = [customer for customer in customers if ObjectName(ObjectKind.CUSTOMER, customer) not in owners]

    async def find(customer: str) -> None:
        async with slots:
            name = ObjectName(ObjectKind.CUSTOMER, customer)
            if await parts.objects.fetch(name) is None:
                where = "in this mode and account: look at the id, and at the key's mode"
                raise InvalidInput("customer", f"Stripe knows no {customer} {where}")
            owners.update(dict.fromkeys([*await owned(parts.objects, customer), name], customer))

    await all_or_first_error(find(customer) for customer in unlisted)
    missing = await parts.tables.fetch_seqs(list(owners))
    now_s = parts.clock.now_ms() // SECOND_MS
    records = [resync_record(run, name, customer, now_s) for name, customer in owners.items()]
    await append_events(parts.log, records, Via.RESYNC)
    left, since_ms = len(missing), parts.patience.now_ms()
    while missing := await _missing(parts.tables, missing):
        if len(missing) < left:
            left, since_ms = len(missing), parts.patience.now_ms()
        elif parts.patience.now_ms() - since_ms >= WAIT_S * SECOND_MS:
            raise Transient(
                f"{left} of {len(owners)} objects are not in the mirror after {WAIT_S:g} s, {next(iter(missing)).id} "
                "for one, so nothing is linked: the role mirror must run and keep up (`tidemark billing status` shows "
                "the events to process); then repeat the command"
            )
        await parts.patience.sleep(LOOK_EVERY_S)


async def _listed(objects: StripeObjects, customers: set[str]) -> dict[ObjectName, str]:
    """The customers that Stripe lists, after their subscriptions and schedules, each with its customer; nothing if
    Stripe's lists have more pages than there are customers. Errors as `StripeObjects`."""
    found: dict[ObjectName, str] = {}
    pages = 0
    for kind in (ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE, ObjectKind.CUSTOMER):
        after = ""
        while page := await objects.names(kind, after):
            pages += 1
            if pages > len(customers):
                return {}
            found.update((name, owner) for name, owner in page if owner in customers)
            after = cursor_of([name.id for name, _ in page])
    return found


async def owned(objects: StripeObjects, customer: str) -> list[ObjectName]:
    """The customer's subscriptions and schedules at Stripe, whatever their status. Errors as `StripeObjects`."""
    names: list[ObjectName] = []
    for kind in (ObjectKind.SUBSCRIPTION, ObjectKind.SCHEDULE):
        after = ""
        while page := await objects.names(kind, after, customer):
            names += [name for name, _ in page]
            after = cursor_of([name.id for name, _ in page])
    return names


async def _missing(tables: SideTables, before: Mapping[ObjectName, int]) -> dict[ObjectName, int]:
    """Those of the objects that were not fetched since, with what the store had."""
    now = await tables.fetch_seqs(list(before))
    return {name: seq for name, seq in before.items() if now[name] <= seq}
