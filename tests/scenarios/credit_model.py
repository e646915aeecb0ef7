"""What credits pay of usage, unit by unit, as docs/credits.md says. Shares no code with the product.

Each unit of usage asks the pools in their order; a pool takes the unit if its credits reach so far. Each credit is
taken from the best grant at that moment and put on a pile. A unit that is taken back undoes the last step.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

CHEAP_FIRST = {"promotional": 0, "included": 1, "paid": 2}


@dataclass
class ModelGrant:
    """Credits that usage of `[begins, ends)` may draw, and `roll_most` of them after the end until `rolls_until`."""

    name: str
    pool: str
    category: str
    left: int
    priority: int
    begins: int
    ends: int | None
    roll_most: int = 0
    rolls_until: int | None = None
    rolled: int = 0
    size: int = 0
    is_void: bool = False
    # Among grants of the same terms, the first by this name is drawn first.
    tie: str = ""

    def is_over(self, at: int) -> bool:
        return self.ends is not None and at >= self.ends

    def usable(self, at: int) -> int:
        if self.is_void or at < self.begins:
            return 0
        if not self.is_over(at):
            return self.left
        if self.rolls_until is None or at >= self.rolls_until:
            return 0
        return min(self.left, max(0, self.roll_most - self.rolled))

    def rank(self, at: int) -> tuple[float | str, ...]:
        end = self.rolls_until if self.is_over(at) else self.ends
        soon = float("inf") if end is None else float(end)
        return (self.priority, soon, CHEAP_FIRST[self.category], self.begins, self.tie)


@dataclass(frozen=True)
class ModelPool:
    """`rates`: credits for one unit of each meter."""

    name: str
    rates: dict[str, Fraction]
    goes_on: bool


Place = tuple[str, int, str]


@dataclass
class Model:
    """One account. Pools stand in their order; a scale says how many units of a meter make one."""

    pools: list[ModelPool]
    scales: dict[str, int]
    grants: dict[str, ModelGrant] = field(default_factory=dict)
    totals: dict[Place, int] = field(default_factory=lambda: defaultdict(int))
    piles: dict[Place, list[str]] = field(default_factory=lambda: defaultdict(list))
    owed: dict[str, int] = field(default_factory=dict)
    # Who paid a debt, credit by credit; and by void grant and payer, what was paid too much.
    payers: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    again: dict[tuple[str, str], int] = field(default_factory=dict)
    _rates: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def rate(self, pool: ModelPool, meter: str) -> tuple[int, int]:
        """Credits for so many smallest units of a meter, as numerator and denominator; (0, 1): not covered."""
        found = self._rates.get((pool.name, meter))
        if found is None:
            rate = pool.rates.get(meter, Fraction(0)) / Fraction(10 ** self.scales[meter])
            found = self._rates[pool.name, meter] = (rate.numerator, rate.denominator)
        return found

    def cost(self, place: Place, pool: ModelPool) -> int:
        credits_, units = self.rate(pool, place[0])
        return max(0, self.totals[place]) * credits_ // units

    def grant(self, grant: ModelGrant) -> None:
        """The oldest debts of the pool are paid first."""
        grant.size = grant.left
        for name, owed in self.owed.items():
            if self.grants[name].pool == grant.pool:
                paid = min(owed, grant.left)
                self.owed[name] -= paid
                grant.left -= paid
                self.payers[name] += [grant.name] * paid
        self.grants[grant.name] = grant

    def void(self, name: str, *, owes: bool) -> None:
        grant = self.grants[name]
        if grant.is_void:
            return
        used, grant.left, grant.is_void = grant.size - grant.left, 0, True
        if owes and used:
            self.owed[name] = used

    def use(self, meter: str, period: int, at: int, change: int) -> int:
        """A change of the meter's total; returns what is left of it for Stripe."""
        step = self._more if change > 0 else self._less
        return sum(step(meter, period, at) for _ in range(abs(change)))

    def _more(self, meter: str, period: int, at: int) -> int:
        for pool in self.pools:
            if self.rate(pool, meter)[0]:
                if self._take(pool, meter, period, at):
                    return 0
                if not pool.goes_on:
                    break
        self.totals[meter, period, ""] += 1
        return 1

    def _take(self, pool: ModelPool, meter: str, period: int, at: int) -> bool:
        """Whether a pool pays for one more unit."""
        place = (meter, period, pool.name)
        usable = [each for each in self.grants.values() if each.pool == pool.name and each.usable(at)]
        reach = self.cost(place, pool) + sum(each.usable(at) for each in usable)
        credits_, units = self.rate(pool, meter)
        if (self.totals[place] + 1) * credits_ > reach * units:
            return False
        before = self.cost(place, pool)
        self.totals[place] += 1
        for _ in range(self.cost(place, pool) - before):
            best = min((each for each in usable if each.usable(at)), key=lambda each: each.rank(at))
            best.left -= 1
            best.rolled += best.is_over(at)
            self.piles[place].append(best.name)
        return True

    def _less(self, meter: str, period: int, at: int) -> int:
        if self.totals[meter, period, ""] > 0:
            self.totals[meter, period, ""] -= 1
            return -1
        for pool in reversed(self.pools):
            place = (meter, period, pool.name)
            if self.totals[place] > 0:
                before = self.cost(place, pool)
                self.totals[place] -= 1
                for _ in range(before - self.cost(place, pool)):
                    self._return(self.grants[self.piles[place].pop()], at)
                return 0
        self.totals[meter, period, ""] -= 1
        return -1

    def _return(self, grant: ModelGrant, at: int) -> None:
        if grant.is_void:
            if self.owed.get(grant.name):
                self.owed[grant.name] -= 1
            elif grant.name in self.owed:
                place = grant.name, self.payers[grant.name].pop()
                self.again[place] = self.again.get(place, 0) + 1
            return
        grant.left += 1
        if grant.is_over(at) and grant.rolled:
            grant.rolled -= 1
