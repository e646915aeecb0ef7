"""The command `catalog migrate`: moves subscriptions to another version of their plan, at their renewal.

Each subscription is moved by itself, and can be left at any instant: SQL has the intent before Stripe is asked, the
calls have keys of their own, and a schedule that we made carries a mark.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aggregators.instants import format_instant_ms
from aggregators.plan_moves import CannotMove, Versions, check_movable, phases_of
from pipeline.open import open_base, open_side_tables, open_stripe_schedules, scope_of
from pipeline.settings import Settings
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogStore
from schemas.clock import HOUR_MS, Clock
from schemas.errors import InvalidInput
from schemas.plan_moves import Move, MoveState, PlanMoves, StripeSchedules, Subscribed

# Stripe keeps an Idempotency-Key for at least a day.
KEY_LASTS_MS: Final = 23 * HOUR_MS
SUBSCRIPTIONS_MAX: Final = 10_000

Told = Callable[[str], None]


class Parts(NamedTuple):
    """What the command needs. `scope` keeps the keys of two Stripe accounts apart."""

    clock: Clock
    catalog: CatalogStore
    moves: PlanMoves
    stripe: StripeSchedules
    scope: str


class Planned(NamedTuple):
    """A subscription that has the version, and why it cannot be moved, "" if it can. `is_scheduled`: it is already."""

    subscribed: Subscribed
    hindrance: str
    is_scheduled: bool


class Preview(NamedTuple):
    """What a migration would do. `losses` and `prices` say what the new version gives less of, and what costs something
    else. `is_cut`: there are more subscriptions than `planned` has."""

    source: PlanId
    target: PlanId
    losses: Sequence[str]
    prices: Sequence[str]
    planned: Sequence[Planned]
    is_cut: bool


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Parts]:
    """Open the stores of the settings, and close them afterwards."""
    base = await open_base(settings, create=False)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(base.log.close)
        stripe = await open_stripe_schedules(base)
        stack.push_async_callback(stripe.close)
        tables = await open_side_tables(base)
        stack.push_async_callback(tables.close)
        yield Parts(base.clock, tables.catalog, tables.plan_moves, stripe, scope_of(base))


def versions_of(source: str, target: str) -> tuple[PlanId, PlanId]:
    """The two versions of `essential@4` and `5`, or `essential@5`. Raises `InvalidInput`."""
    name, _, number = source.partition("@")
    other, _, version = target.rpartition("@")
    if not (name and number.isdecimal() and version.isdecimal()) or other not in ("", name):
        raise InvalidInput("PLAN", "write the plan with its version, then the new version: essential@4 5")
    return PlanId(name, int(number)), PlanId(name, int(version))


async def preview(parts: Parts, source: PlanId, target: PlanId, limit: int = SUBSCRIPTIONS_MAX) -> Preview:
    """Who would be moved, `limit` subscriptions at most, and who loses what. Changes nothing."""
    versions = await _versions(parts, source, target)
    found = await parts.moves.subscribed(versions.prices, SUBSCRIPTIONS_MAX + 1)
    last = await parts.moves.last([each.id for each in found])
    planned: list[Planned] = []
    # Those that wait for their renewal, or cannot be moved, do not stand in the way of the next.
    for each in found[:SUBSCRIPTIONS_MAX]:
        one = _planned(versions, each, last.get(each.id))
        limit -= not (one.hindrance or one.is_scheduled)
        if limit < 0:
            break
        planned.append(one)
    is_cut = len(planned) < len(found)
    return Preview(source, target, versions.losses(), versions.price_changes(), planned, is_cut)


async def migrate(parts: Parts, wanted: Preview, who: str, why: str, told: Told) -> Mapping[str, int]:
    """Make a schedule for each subscription of a preview that can be moved; returns how many had which end.

    Safe to repeat after a crash or an error at any place: a move that was begun is gone on with. Raises `Transient` if
    Stripe or SQL does not answer.
    """
    versions = await _versions(parts, wanted.source, wanted.target)
    ends: Counter[str] = Counter()
    for subscribed, hindrance, is_scheduled in wanted.planned:
        detail = hindrance
        if is_scheduled:
            ends["scheduled before"] += 1
            continue
        if not hindrance:
            now_ms = parts.clock.now_ms()
            move = await parts.moves.intend(subscribed, wanted.source, wanted.target, who, why, now_ms)
            detail = await _carry_out(parts, versions, move)
        ends["not movable" if detail else "scheduled"] += 1
        told(f"{subscribed.id}: {detail or f'moves at {format_instant_ms(subscribed.renews_ms)}'}")
    return ends


async def _versions(parts: Parts, source: PlanId, target: PlanId) -> Versions:
    try:
        versions = Versions(await parts.catalog.standing(), source, target)
    except CannotMove as error:
        raise InvalidInput("PLAN", str(error)) from error
    if source.name != target.name or source == target:
        message = f"a move leads to another version of the same plan, and not from {source} to {target}"
        raise InvalidInput("PLAN", message)
    return versions


def _planned(versions: Versions, subscribed: Subscribed, last: Move | None) -> Planned:
    running = last if last is not None and last.state is not MoveState.GIVEN_UP and not last.is_over else None
    if running and running.target == versions.target and running.state is MoveState.SCHEDULED:
        return Planned(subscribed, "", is_scheduled=True)
    try:
        _check(versions, subscribed, running)
    except CannotMove as error:
        return Planned(subscribed, str(error), is_scheduled=False)
    return Planned(subscribed, "", is_scheduled=False)


def _check(versions: Versions, subscribed: Subscribed, running: Move | None) -> None:
    """Raise `CannotMove` if a subscription cannot be moved, as far as the mirror knows."""
    if running and running.target != versions.target:
        raise CannotMove(f"is being moved to {running.target}: release its schedule first")
    check_movable(subscribed)
    versions.items_after(subscribed.items)
    # The schedule may be that of the move that was begun: Stripe is asked.
    if subscribed.schedule and not running:
        raise CannotMove(_others(subscribed.schedule))


def _others(schedule: str) -> str:
    return f"has the schedule {schedule}: release it, or let it end"


async def _carry_out(parts: Parts, versions: Versions, move: Move) -> str:
    """Have the schedule of a move made; returns why there is none, "" if there is."""
    try:
        schedule = await _scheduled(parts, versions, move)
    except (CannotMove, InvalidInput) as error:
        await parts.moves.settle(move, MoveState.GIVEN_UP, "", str(error), parts.clock.now_ms())
        return str(error)
    await parts.moves.settle(move, MoveState.SCHEDULED, schedule, "", parts.clock.now_ms())
    return ""


async def _scheduled(parts: Parts, versions: Versions, move: Move) -> str:
    """The id of the schedule of a move. Raises `CannotMove` or `InvalidInput` if there can be none."""
    now = await parts.stripe.subscription(move.subscription)
    if now.schedule:
        found = await parts.stripe.schedule(now.schedule)
        if found.mark == move.mark:
            return now.schedule
        if found.ends:
            # Somebody canceled by the schedule that was made and not filled. The cancellation stays.
            raise CannotMove("is about to be canceled")
        if move.sent_ms is None or move.sent_ms <= parts.clock.now_ms() - KEY_LASTS_MS:
            raise CannotMove(_others(now.schedule))
    check_movable(now)
    after = versions.items_after(now.items)
    move = await parts.moves.sent(move, parts.clock.now_ms())
    # If the first call's answer was lost, the same key gives it again.
    schedule = await parts.stripe.create(move.subscription, _key(parts, move, "create"))
    if now.schedule not in ("", schedule.id):
        raise CannotMove(_others(now.schedule))
    try:
        phases = phases_of(schedule.phases, after)
        await parts.stripe.plan(schedule.id, phases, move.mark, _key(parts, move, "plan"))
    except (CannotMove, InvalidInput):
        # A schedule that changes nothing would stand in everybody's way.
        with contextlib.suppress(InvalidInput):
            await parts.stripe.release(schedule.id)
        raise
    return schedule.id


def _key(parts: Parts, move: Move, step: str) -> str:
    return hashlib.sha256(f"{parts.scope} {move.mark} {move.made_ms} {step}".encode()).hexdigest()


def preview_lines(found: Preview) -> list[str]:
    """A preview for people."""
    lines = [f"less: {line}" for line in found.losses] or [f"{found.target} gives no less than {found.source}"]
    lines += [f"price: {line}" for line in found.prices]
    for subscribed, hindrance, is_scheduled in found.planned:
        end = hindrance or f"{'moves' if is_scheduled else 'would move'} at {format_instant_ms(subscribed.renews_ms)}"
        lines.append(f"{subscribed.id}  {subscribed.account or 'no account'}: {end}")
    if found.is_cut:
        lines.append("and more: --limit says how many at a time")
    return lines if found.planned else [*lines, "no subscription has the version"]


def preview_document(found: Preview) -> dict[str, Any]:
    """A preview as JSON."""
    planned = [
        {
            "subscription": subscribed.id, "account": subscribed.account, "renews_ms": subscribed.renews_ms,
            "hindrance": hindrance, "is_scheduled": is_scheduled,
        }
        for subscribed, hindrance, is_scheduled in found.planned
    ]  # fmt: skip
    return {**found._asdict(), "source": str(found.source), "target": str(found.target), "planned": planned}
