"""Decides which view is wrong when Redis and `usage_hourly` agree with each other and differ from the recount.

The rollup writes Redis and `usage_hourly`. Independently, the archive writes what the recount counts. If two of the
three differ from the third in the same way, the third is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from reconciler.causes import Cause, direction
from reconciler.compare import Difference
from reconciler.recount import TotalName
from schemas.analytics import RecountKey

IsAdditive = Callable[[str], bool]
# Account, meter and the start of the period, which identifies it.
StartName = tuple[str, str, int]


class Attribution(NamedTuple):
    """What the archive lacks (`missing`) or has too much of (`extra`): by total, by (account, period start), or for the
    whole partition if its number of events is known to be wrong."""

    totals: Mapping[StartName, Cause] = {}
    periods: Mapping[tuple[str, int], Cause] = {}
    partition: Cause | None = None

    def of_total(self, name: TotalName, by_sign: Cause) -> Cause | None:
        """What is wrong with the archive if a total differs, or None if the other view is wrong."""
        return self._of(_by_start(name), by_sign)

    def of_cell(self, key: RecountKey, by_sign: Cause, *, additive: bool) -> Cause | None:
        """The same for a cell. For meters that are not additive, the sign proves nothing: an event that the archive
        lacks may move distinct values between cells, or leave a maximum unchanged."""
        name = total_of(key)
        if additive:
            return self._of(name, by_sign)
        return self.periods.get((name[0], name[2])) or self.totals.get(name) or self.partition

    def _of(self, name: StartName, by_sign: Cause) -> Cause | None:
        return self.totals.get(name) or (self.partition if opposite(by_sign) is self.partition else None)


def attribution_of(
    totals: Iterable[Difference[TotalName]],
    cells: Iterable[Difference[RecountKey]],
    is_additive: IsAdditive,
    surplus: int,
) -> Attribution:
    """Find what is wrong with the archive. `surplus` is how many events too many it has, or 0 if unknown."""
    sums: dict[StartName, int] = {}
    for cell in cells:
        name = total_of(cell.key)
        sums[name] = sums.get(name, 0) + (cell.found or 0) - (cell.expected or 0)
    in_both = {_by_start(total.key): direction(total.expected, total.found) for total in totals}
    in_both = {name: cause for name, cause in in_both.items() if name in sums}
    wrong: dict[StartName, Cause] = {}
    periods: dict[tuple[str, int], Cause] = {}
    for name, cause in in_both.items():
        if is_additive(name[1]) and (cause is Cause.EXTRA) == (sums[name] > 0):
            wrong[name] = periods[name[0], name[2]] = opposite(cause)
    for name, cause in in_both.items():
        if not is_additive(name[1]):
            wrong[name] = periods.get((name[0], name[2])) or opposite(cause)
    partition = (Cause.EXTRA if surplus > 0 else Cause.MISSING) if surplus else None
    return Attribution(wrong, periods, partition)


def opposite(cause: Cause) -> Cause:
    """`missing` for `extra`, and the other way round: what one view lacks, the other has too much."""
    return Cause.MISSING if cause is Cause.EXTRA else Cause.EXTRA


def total_of(key: RecountKey) -> StartName:
    """The total that a cell is part of."""
    return key.account, key.meter, key.period_start_ms


def _by_start(name: TotalName) -> StartName:
    account, meter, period = name
    return account, meter, period.start_ms
