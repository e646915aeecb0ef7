"""A share of the random histories of credits, and deliberate defects that they must find.

`python -m tests.scenarios.credit_histories` runs a million draws.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from aggregators import credits as rules
from schemas.credits import CreditGrant, Usage
from tests.scenarios.credit_histories import Differs, History, SqlBook, run_all

HISTORIES_MAX: Final = 60


@pytest.mark.parametrize("first", [1, 11])
async def test_the_rules_pay_what_the_model_says(first: int) -> None:
    assert await run_all(first, 10, 150) > 1_000


async def test_the_ledger_pays_what_the_model_says_wherever_transactions_end() -> None:
    ended = 0
    for seed in range(501, 505):
        history = History(seed, store=True)
        await history.run(90)
        assert isinstance(history.book, SqlBook)
        ended += history.book.ended
    assert ended > 50


def _expired_too(original: Any) -> Any:
    def available(grant: CreditGrant, instant_ms: int) -> Any:
        return original(grant._replace(expires_ms=None), instant_ms)

    return available


def _rolls_over_all(original: Any) -> Any:
    def moved(grant: CreditGrant, amount: int, instant_ms: int) -> Any:
        return original(grant, amount, instant_ms)._replace(rolled=0)

    return moved


def _first_first(original: Any) -> Any:
    def returned(entries: Any, *others: Any) -> Any:
        return original([entry._replace(number=-entry.number) for entry in entries], *others)

    return returned


def _each_by_itself(original: Any) -> Any:
    """Round each draw, and not the running total."""

    def covered(coverage: Any, pool: str, *others: Any) -> int:
        return original(coverage, pool, *others) if pool == rules.STRIPE else 0

    return covered


def _pools_backwards(original: Any) -> Any:
    def draw(usage: Usage, pools: Any, *others: Any) -> Any:
        return original(usage, pools[::-1], *others)

    return draw


MUTANTS: Final = {
    "expired credits are drawn": ("available", _expired_too),
    "what rolled over is not counted": ("moved", _rolls_over_all),
    "what was drawn first comes back first": ("_returned", _first_first),
    "each draw is rounded by itself": ("_covered", _each_by_itself),
    "the last pool pays first": ("_draw", _pools_backwards),
    "a part of a credit costs a whole one": (
        "cost_of", lambda original: lambda covered, rate: original(covered, rate) + bool(covered % 7),
    ),
    "what was given first is drawn first": (
        "in_order", lambda original: lambda grants, pool, at: sorted(original(grants, pool, at), key=lambda g: g.id),
    ),
    "periods without usage lose what rolls over": (
        "included_changes",
        lambda original: lambda account, start, end, gives, known: original(
            account, start, end, gives, [each for each in known if (each.expires_ms or 0) >= start]
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_deliberate_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, broken = MUTANTS[name]
    monkeypatch.setattr(rules, attribute, broken(getattr(rules, attribute)))
    with pytest.raises((Differs, IndexError, StopIteration)):
        await run_all(1, HISTORIES_MAX, 150)
