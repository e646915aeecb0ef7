"""Which view is the odd one out where Redis and `usage_hourly` agree with each other against the recount.

Redis and `usage_hourly` are made by the rollup, the recount from what the archive wrote on its own. Where two of three
differ from the third in the same way, the third is to attribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from reconciler.causes import Cause, direction
from reconciler.compare import Difference
from reconciler.recount import TotalName
from schemas.analytics import RecountKey

IsAdditive = Callable[[str], bool]
# Account, meter and the period's start, which is what it is known by.
StartName = tuple[str, str, int]


class Attribution(NamedTuple):
    """What the archive lacks (`missing`) or has too much of (`extra`): by total, by account and period, or, where its
    number of events is known to be wrong, altogether."""

    totals: Mapping[StartName, Cause] = {}
    periods: Mapping[tuple[str, int], Cause] = {}
    altogether: Cause | None = None

    def of_total(self, name: TotalName, by_sign: Cause) -> Cause | None:
        """What is wrong with the archive where a total differs, or None where the other view is to attribution."""
        return self._of(_by_start(name), by_sign)

    def _of(self, name: StartName, by_sign: Cause) -> Cause | None:
        held = self.totals.get(name)
        return held or (self.altogether if opposite(by_sign) is self.altogether else None)

    def of_cell(self, key: RecountKey, by_sign: Cause, *, additive: bool) -> Cause | None:
        """The same for a cell. An event lost from the archive moves distinct values between cells of other hours
        and may change a maximum or not, so that the sign says nothing there."""
        name = total_of(key)
        if additive:
            return self._of(name, by_sign)
        return self.periods.get((name[0], name[2])) or self.totals.get(name) or self.altogether


def attribution_of(
    totals: Iterable[Difference[TotalName]],
    cells: Iterable[Difference[RecountKey]],
    is_additive: IsAdditive,
    surplus: int,
) -> Attribution:
    """Weigh the differences; `surplus` is how many events too many the archive holds, 0 where it is not known."""
    sides: dict[StartName, int] = {}
    for cell in cells:
        name = total_of(cell.key)
        sides[name] = sides.get(name, 0) + (cell.found or 0) - (cell.expected or 0)
    odd = {_by_start(each.key): direction(each.expected, each.found) for each in totals}
    odd = {name: cause for name, cause in odd.items() if name in sides}
    made: dict[StartName, Cause] = {}
    periods: dict[tuple[str, int], Cause] = {}
    for name, cause in odd.items():
        if is_additive(name[1]) and (cause is Cause.EXTRA) == (sides[name] > 0):
            made[name] = periods[name[0], name[2]] = opposite(cause)
    for name, cause in odd.items():
        if not is_additive(name[1]):
            made[name] = periods.get((name[0], name[2])) or opposite(cause)
    altogether = (Cause.EXTRA if surplus > 0 else Cause.MISSING) if surplus else None
    return Attribution(made, periods, altogether)


def opposite(cause: Cause) -> Cause:
    """What is extra in the one view is missing in the other."""
    return Cause.MISSING if cause is Cause.EXTRA else Cause.EXTRA


def total_of(key: RecountKey) -> StartName:
    """The total a cell is part of."""
    return key.account, key.meter, key.period_start_ms


def _by_start(name: TotalName) -> StartName:
    account, meter, period = name
    return account, meter, period.start_ms
