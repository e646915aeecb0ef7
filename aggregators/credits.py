"""Decides which credits pay for usage, and which come back. Pure: integers and fractions, no clock, no store.

The running total of a meter and period decides, not the single change: a pool that has paid for a total of V has cost
⌊V × rate⌋ credits. So rounding never adds up, and always favours the customer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from aggregators.stripe_sums import SCALE_MAX
from schemas.credits import (
    AccountCredits,
    Allocated,
    Category,
    Coverage,
    CreditEntry,
    CreditGrant,
    EntryKind,
    Included,
    NewGrant,
    Pool,
    Usage,
)

UNITS: Final = 10**SCALE_MAX
# The running total of what credits did not pay. Its rate means nothing.
STRIPE: Final = ""
# How the cause of a grant of credits begins that paid a debt which got smaller.
RETURNED: Final = "return:"
_FREE: Final = Fraction(0)
_CATEGORIES: Final = tuple(Category)


class Move(NamedTuple):
    """Credits that a grant loses; negative: gets back."""

    grant: str
    credits: int


class Spent(NamedTuple):
    """The answer for an intent. `moves`: the first grant first. `parts`: what each running total gains."""

    allocated: Allocated
    moves: tuple[Move, ...]
    parts: tuple[Coverage, ...]


def grant_id(account: str, source_key: str) -> str:
    """The id of the grant that an account gets for a cause."""
    return "cg_" + blake2b(msgspec.json.encode([account, source_key]), digest_size=12).hexdigest()


def cost_of(covered: int, rate: Fraction) -> int:
    """The credits that a running total costs. One below 0, whose usage was taken back before its corrections, costs
    nothing."""
    return max(0, covered) * rate.numerator // (rate.denominator * UNITS)


def available(grant: CreditGrant, instant_ms: int) -> int:
    """The credits that usage of an instant may draw from a grant."""
    if grant.voided_ms is not None or instant_ms < grant.effective_ms:
        return 0
    if grant.expires_ms is None or instant_ms < grant.expires_ms:
        return grant.remaining
    if grant.rolls_until_ms is not None and instant_ms < grant.rolls_until_ms:
        return min(grant.remaining, max(0, grant.rollover_max - grant.rolled))
    return 0


def lapsed(grant: CreditGrant, now_ms: int) -> int:
    """The credits that nobody can draw any more, because the grant has expired. Late usage of the time before may still
    draw some of them."""
    if grant.voided_ms is not None or grant.expires_ms is None or now_ms < grant.expires_ms:
        return 0
    return grant.remaining - available(grant, now_ms)


def in_order(grants: Iterable[CreditGrant], pool: str, instant_ms: int) -> list[CreditGrant]:
    """The grants of a pool that usage of an instant draws, the first one first: by priority, the soonest end, the
    category, the earliest start."""

    def place(grant: CreditGrant) -> tuple[int, bool, int, int, int, str]:
        is_rolled = grant.expires_ms is not None and grant.expires_ms <= instant_ms
        end_ms = grant.rolls_until_ms if is_rolled else grant.expires_ms
        return (
            grant.priority, end_ms is None, end_ms or 0, _CATEGORIES.index(grant.category), grant.effective_ms,
            grant.id,
        )  # fmt: skip

    return sorted((each for each in grants if each.pool == pool and available(each, instant_ms)), key=place)


def moved(grant: CreditGrant, amount: int, instant_ms: int) -> CreditGrant:
    """A grant after usage of an instant drew credits from it; negative: gave some back."""
    is_rolled = grant.expires_ms is not None and grant.expires_ms <= instant_ms
    rolled = max(0, grant.rolled + amount) if is_rolled else grant.rolled
    return grant._replace(remaining=grant.remaining - amount, rolled=rolled)


def spend(
    usage: Usage,
    pools: Sequence[Pool],
    grants: Iterable[CreditGrant],
    coverage: Sequence[Coverage],
    entries: Sequence[CreditEntry] = (),
) -> Spent:
    """How the change of an intent is paid.

    `coverage` has the running totals of the intent's meter and period, `entries` the rows of the ledger of both, which
    only a negative change needs. More usage draws from the pools in their order, and Stripe gets the rest. Less usage
    is taken from Stripe first, then from the pools in the reverse order, so what was paid is as if the usage had been
    less from the start, unless grants have come or ended meanwhile.
    """
    step = 10 ** (SCALE_MAX - usage.scale)
    own = sorted((pool for pool in pools if pool.rates.get(usage.meter)), key=lambda pool: (pool.order, pool.name))
    if usage.delta_minor >= 0:
        moves, parts = _draw(usage, own, list(grants), coverage, step)
    else:
        moves, parts = _give_back(usage, own, list(grants), coverage, entries, step)
    drawn_minor = sum(part.covered for part in parts) // step
    remainder_minor = usage.delta_minor - drawn_minor
    if remainder_minor:
        parts.append(Coverage(STRIPE, _FREE, remainder_minor * step))
    draws: dict[str, int] = {}
    for move in moves:
        draws[move.grant] = draws.get(move.grant, 0) + move.credits
    return Spent(Allocated(drawn_minor, remainder_minor, draws), tuple(moves), tuple(parts))


def _draw(
    usage: Usage, pools: Sequence[Pool], grants: Sequence[CreditGrant], coverage: Sequence[Coverage], step: int
) -> tuple[list[Move], list[Coverage]]:
    left, moves, parts = usage.delta_minor * step, list[Move](), list[Coverage]()
    for pool in pools:
        rate = pool.rates[usage.meter]
        before = _covered(coverage, pool.name, rate)
        paid, usable = cost_of(before, rate), in_order(grants, pool.name, usage.instant_ms)
        at_hand = sum(available(grant, usage.instant_ms) for grant in usable)
        # Credits reach so far. A part of a credit pays for nothing that no whole credit stands behind.
        most = (paid + at_hand) * UNITS * rate.denominator // rate.numerator
        taken = max(0, min(left, (most - before) // step * step))
        if taken:
            parts.append(Coverage(pool.name, rate, taken))
            moves += _taken(usable, cost_of(before + taken, rate) - paid, usage.instant_ms)
            left -= taken
        if not left or pool.overdraft != "next":
            break
    return moves, parts


def _taken(grants: Iterable[CreditGrant], amount: int, instant_ms: int) -> Iterator[Move]:
    for grant in grants:
        taken = min(amount, available(grant, instant_ms))
        if taken:
            yield Move(grant.id, taken)
        amount -= taken


def _give_back(
    usage: Usage,
    pools: Sequence[Pool],
    grants: Sequence[CreditGrant],
    coverage: Sequence[Coverage],
    entries: Sequence[CreditEntry],
    step: int,
) -> tuple[list[Move], list[Coverage]]:
    order = {pool.name: number for number, pool in enumerate(pools)}
    at_stripe = max(0, _covered(coverage, STRIPE, _FREE))
    left = max(0, -usage.delta_minor * step - at_stripe // step * step)
    moves, parts = list[Move](), list[Coverage]()
    # A pool that the catalog does not have any more gives back first.
    last_first = sorted(coverage, key=lambda row: (order.get(row.pool, len(order)), row.pool, row.rate), reverse=True)
    for row in last_first:
        taken = min(left, row.covered // step * step)
        if row.pool == STRIPE or taken <= 0:
            continue
        parts.append(Coverage(row.pool, row.rate, -taken))
        of_pool = {grant.id for grant in grants if grant.pool == row.pool}
        back = cost_of(row.covered, row.rate) - cost_of(row.covered - taken, row.rate)
        moves += _returned(entries, of_pool, back, moves)
        left -= taken
    return moves, parts


def _returned(entries: Sequence[CreditEntry], of_pool: set[str], amount: int, before: Sequence[Move]) -> Iterator[Move]:
    """The grants that get credits back: those from which usage of the meter and period drew last."""
    returned: dict[str, int] = {}
    for move in before:
        returned[move.grant] = returned.get(move.grant, 0) - move.credits
    for entry in sorted(entries, key=lambda entry: entry.number, reverse=True):
        if entry.grant not in of_pool or amount <= 0:
            continue
        if entry.kind is EntryKind.RETURN:
            returned[entry.grant] = returned.get(entry.grant, 0) + entry.credits
        elif entry.kind is EntryKind.DRAW:
            # What was returned since stands for the newest draws.
            undone = min(-entry.credits, returned.get(entry.grant, 0))
            returned[entry.grant] = returned.get(entry.grant, 0) - undone
            taken = min(amount, -entry.credits - undone)
            if taken:
                yield Move(entry.grant, -taken)
            amount -= taken


def _covered(coverage: Iterable[Coverage], pool: str, rate: Fraction) -> int:
    return next((row.covered for row in coverage if (row.pool, row.rate) == (pool, rate)), 0)


def undo(
    usage: Usage,
    parts: Sequence[Coverage],
    grants: Sequence[CreditGrant],
    coverage: Sequence[Coverage],
    entries: Sequence[CreditEntry],
) -> tuple[tuple[Move, ...], tuple[Coverage, ...]]:
    """What takes an intent's `parts` out of the running totals again: moves, and what each total gains.

    Of a correction, a pool whose credits are gone meanwhile is charged what it has.
    """
    moves, gained, left = list[Move](), list[Coverage](), {grant.id: grant for grant in grants}
    for part in parts:
        if part.pool == STRIPE:
            gained.append(part._replace(covered=-part.covered))
            continue
        before = _covered(coverage, part.pool, part.rate)
        own = [grant for grant in left.values() if grant.pool == part.pool]
        if part.covered > 0:
            back = cost_of(before, part.rate) - cost_of(before - part.covered, part.rate)
            moves += _returned(entries, {grant.id for grant in own}, back, moves)
            gained.append(part._replace(covered=-part.covered))
            continue
        usable = in_order(own, part.pool, usage.instant_ms)
        paid = cost_of(before, part.rate)
        reach = paid + sum(available(grant, usage.instant_ms) for grant in usable)
        most = reach * UNITS * part.rate.denominator // part.rate.numerator
        taken = max(0, min(-part.covered, most - before))
        for move in _taken(usable, cost_of(before + taken, part.rate) - paid, usage.instant_ms):
            moves.append(move)
            # A part at another rate draws from the same grants.
            left[move.grant] = moved(left[move.grant], move.credits, usage.instant_ms)
        gained.append(part._replace(covered=taken))
    return tuple(moves), tuple(gained)


def with_parts(coverage: Sequence[Coverage], parts: Iterable[Coverage]) -> list[Coverage]:
    """The running totals after they gained parts."""
    totals = {(row.pool, row.rate): row.covered for row in coverage}
    for part in parts:
        totals[part.pool, part.rate] = totals.get((part.pool, part.rate), 0) + part.covered
    return [Coverage(pool, rate, covered) for (pool, rate), covered in totals.items()]


class IncludedChanges(NamedTuple):
    """The grants that a period still needs, and the known ones whose end or rollover changes."""

    new: tuple[NewGrant, ...]
    changed: tuple[CreditGrant, ...]


class Payer(NamedTuple):
    """A grant, and the credits of it that paid a debt."""

    grant: CreditGrant
    credits: int


def paid_back(grant: CreditGrant, credits_: int, payers: Sequence[Payer], source: str) -> Iterator[NewGrant]:
    """The grants of credits that had paid too much of the debt of a void grant, each with the category, the end and the
    priority of the grant that paid, the last one first. `source` names the usage that shrank."""
    for payer in reversed(payers):
        returned = min(credits_, payer.credits)
        credits_ -= returned
        if returned:
            terms = payer.grant
            # What a plan gives is one grant of each period.
            category = Category.PROMOTIONAL if terms.category is Category.INCLUDED else terms.category
            yield NewGrant(
                grant.account, grant.pool, category, returned, terms.effective_ms,
                f"{RETURNED}{source}:{grant.id}:{terms.id}", terms.expires_ms, terms.priority,
            )  # fmt: skip


def included_changes(
    account: str, start_ms: int, end_ms: int, included: Mapping[str, Included], known: Sequence[CreditGrant]
) -> IncludedChanges:
    """The grants that an account's plans include in the period `[start_ms, end_ms)`, each under the key
    `included:POOL:START`. `known` are all that were included before.

    A period ends where the next one begins, also if a change of plan begins that earlier: then its grant ends there,
    and what rolls over does so into the next period alone. Of a time without usage nobody asked for grants. What rolls
    over from it is that of one period, so one grant stands for all of it.
    """
    new: list[NewGrant] = []
    changed: list[CreditGrant] = []
    for pool in sorted({*included, *(grant.pool for grant in known)}):
        of_pool = [each for each in known if each.pool == pool]
        ends = {grant.effective_ms: grant.expires_ms or grant.effective_ms for grant in of_pool}
        gives = included.get(pool)
        if gives is not None or start_ms in ends:
            ends[start_ms] = end_ms
        before = [end for begin, end in ends.items() if begin < start_ms]
        if gives is not None and gives.rollover_max and before:
            idle_ms = max(gives.since_ms, *before)
            ends |= {idle_ms: start_ms} if idle_ms < start_ms else {}
        in_time = sorted(ends)
        ends = {each: min([ends[each], *(after for after in in_time if after > each)]) for each in in_time}
        rolls = {each: ends.get(end) for each, end in ends.items()}
        for grant in of_pool:
            rolls_until_ms = rolls[grant.effective_ms] if grant.rollover_max else None
            after = grant._replace(expires_ms=ends[grant.effective_ms], rolls_until_ms=rolls_until_ms)
            changed += [after] if after != grant else []
        if gives is None:
            continue
        for each in sorted(set(ends) - {grant.effective_ms for grant in of_pool}):
            key = f"included:{pool}:{each}"
            new.append(
                NewGrant(
                    account, pool, Category.INCLUDED, gives.credits, each, key, ends[each],
                    rollover_max=gives.rollover_max, rolls_until_ms=rolls[each] if gives.rollover_max else None,
                )
            )  # fmt: skip
    return IncludedChanges(tuple(new), tuple(changed))


def foreseen(account: AccountCredits, pools: Sequence[Pool], pending: Iterable[Usage]) -> list[CreditGrant]:
    """The grants as they will be when usage that is counted, or held, and has no intent yet was drawn."""
    grants = {grant.id: grant for grant in account.grants}
    for usage in pending:
        if usage.delta_minor > 0:
            coverage = account.coverage.get((usage.meter, usage.period_start_ms), ())
            for move in spend(usage, pools, grants.values(), coverage).moves:
                grants[move.grant] = moved(grants[move.grant], move.credits, usage.instant_ms)
    return list(grants.values())
