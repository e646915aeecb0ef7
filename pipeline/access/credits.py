"""The credits of an account as it may spend them now: what the ledger has, less what usage and holds will draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from aggregators.credit_terms import terms_of
from aggregators.credits import UNITS, available, foreseen, lapsed
from aggregators.holds import held_by, is_open, open_since_ms
from aggregators.instants import format_instant_ms
from aggregators.stripe_sums import SCALE_MAX
from pipeline.access.checks import Counted
from pipeline.access.renewal import commerce_of
from schemas.catalog import Catalog
from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.credits import AccountCredits, CreditEntry, CreditGrant, Credits, Pool, Usage
from schemas.errors import Fenced, Transient
from schemas.holds import Holds


class LiveUsage(Protocol):
    """The usage of a meter in the account's running period, as `pipeline.access.usage.LiveUsageSource`."""

    async def __call__(self, account: str, meter: str, *, fresh: bool = False) -> Counted: ...


class CreditParts(NamedTuple):
    """What a balance is read from."""

    credits: Credits
    catalog: CatalogStore
    holds: Holds
    usage: LiveUsage
    clock: Clock


class PoolBalance(NamedTuple):
    """The credits of one pool. `left` = `remaining` of the grants − `undrawn`, which counted usage will draw − `held`.

    `owed` is paid by the next grant. `grants` are those that can be drawn now or later.
    """

    pool: str
    unit: str
    left: int
    remaining: int
    undrawn: int
    held: int
    owed: int
    grants: tuple[CreditGrant, ...]


class CreditBalance(NamedTuple):
    """The balance of an account's pools. Usage is counted up to `complete_up_to_ms`; None: no pool covers a meter."""

    account: str
    at_ms: int
    complete_up_to_ms: int | None
    pools: tuple[PoolBalance, ...]


async def balance_of(parts: CreditParts, account: str) -> CreditBalance:
    """The balance of an account. Makes the grants that its plans include in the running period, if they are missing.

    Raises `Transient` if a store does not answer, or if nothing was counted yet.
    """
    now_ms = parts.clock.now_ms()
    found = await commerce_of(parts.catalog)
    if found is None:
        return CreditBalance(account, now_ms, None, ())
    terms, catalog = terms_of(found[1], found[0]), found[1].catalog
    meters = sorted({meter for pool in terms.pools for meter, rate in pool.rates.items() if rate})
    counted = {meter: await parts.usage(account, meter) for meter in meters}
    for start_ms, end_ms in {_period(each) for each in counted.values()}:
        try:
            await parts.credits.include(account, start_ms, end_ms, terms, now_ms)
        except Fenced as error:
            raise Transient(str(error)) from error
    known = await parts.credits.of_account(account)
    complete_ms = min(
        (each.complete_up_to_ms for each in counted.values() if each.complete_up_to_ms is not None), default=None
    )
    undrawn = [_undrawn(account, meter, each, known, now_ms) for meter, each in counted.items()]
    open_holds = await parts.holds.open(account, open_since_ms(complete_ms, now_ms)) if counted else ()
    counting = [each for each in open_holds if is_open(each, complete_ms, now_ms)]
    held = [
        _usage(account, meter, each, held_by(counting, _features(catalog, meter), complete_ms, now_ms), now_ms)
        for meter, each in counted.items()
    ]
    return CreditBalance(account, now_ms, complete_ms, tuple(_pools(terms.pools, known, undrawn, held, now_ms)))


def _pools(
    pools: Sequence[Pool], known: AccountCredits, undrawn: Sequence[Usage], held: Sequence[Usage], now_ms: int
) -> Iterable[PoolBalance]:
    drawn = foreseen(known, pools, undrawn)
    both = [one._replace(delta_minor=one.delta_minor + two.delta_minor) for one, two in zip(undrawn, held, strict=True)]
    spent = foreseen(known, pools, both)
    for pool in pools:
        remaining, after, left = (
            sum(available(grant, now_ms) for grant in grants if grant.pool == pool.name)
            for grants in (known.grants, drawn, spent)
        )
        grants = (
            grant
            for grant in known.grants
            if grant.pool == pool.name and grant.voided_ms is None and grant.remaining > lapsed(grant, now_ms)
        )
        owed = sum(debt.open for debt in known.debts if debt.pool == pool.name)
        yield PoolBalance(
            pool.name, pool.unit, left, remaining, remaining - after, after - left, owed, tuple(grants)
        )  # fmt: skip


def _period(counted: Counted) -> tuple[int, int]:
    return counted.period_start_ms or 0, counted.period_end_ms


def _undrawn(account: str, meter: str, counted: Counted, known: AccountCredits, now_ms: int) -> Usage:
    """The usage that is counted and has no allocation yet."""
    coverage = known.coverage.get((meter, _period(counted)[0]), ())
    allocated = Decimal(sum(row.covered for row in coverage)).scaleb(-SCALE_MAX)
    return _usage(account, meter, counted, max(Decimal(0), counted.used - allocated), now_ms)


def _usage(account: str, meter: str, counted: Counted, quantity: Decimal, now_ms: int) -> Usage:
    return Usage("", account, meter, *_period(counted), now_ms, int(quantity * UNITS), SCALE_MAX)


def _features(catalog: Catalog, meter: str) -> frozenset[str]:
    """The features whose holds promise usage of a meter."""
    return frozenset(name for name, feature in catalog.features.items() if feature.meter == meter)


def balance_document(balance: CreditBalance) -> dict[str, Any]:
    """A balance as a JSON object."""
    complete_ms = balance.complete_up_to_ms
    return {
        "account": balance.account,
        "at": format_instant_ms(balance.at_ms),
        "complete_up_to": None if complete_ms is None else format_instant_ms(complete_ms),
        "pools": [
            {
                **{name: getattr(pool, name) for name in PoolBalance._fields if name != "grants"},
                "grants": [grant_document(grant) for grant in pool.grants],
            }
            for pool in balance.pools
        ],
    }


def grant_document(grant: CreditGrant) -> dict[str, Any]:
    """A grant as a JSON object."""
    paid = grant.paid
    return {
        "id": grant.id,
        "pool": grant.pool,
        "category": grant.category.value,
        "credits": grant.credits,
        "remaining": grant.remaining,
        "priority": grant.priority,
        "effective": format_instant_ms(grant.effective_ms),
        "expires": None if grant.expires_ms is None else format_instant_ms(grant.expires_ms),
        "source_key": grant.source_key,
        "rollover_max": grant.rollover_max,
        "voided": None if grant.voided_ms is None else format_instant_ms(grant.voided_ms),
        "paid": None if paid is None else {"minor": paid.minor, "currency": paid.currency, "exponent": paid.exponent},
    }


def entry_document(entry: CreditEntry) -> dict[str, Any]:
    """A row of the ledger as a JSON object."""
    start_ms = entry.period_start_ms
    return {
        "number": entry.number,
        "at": format_instant_ms(entry.at_ms),
        "kind": entry.kind.value,
        "credits": entry.credits,
        "grant": entry.grant,
        "source_key": entry.source_key,
        "meter": entry.meter or None,
        "period_start": None if start_ms is None else format_instant_ms(start_ms),
    }
