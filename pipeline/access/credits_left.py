"""Whether an account's credits pay for more usage of a meter, for checks: read again after a second."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

from pipeline.access.credits import CreditParts, balance_of
from schemas.clock import SECOND_MS

AGE_MS_MAX: Final = SECOND_MS


class CreditsLeft:
    """Reads balances of the pools of ours. An answer is at most a second old, so it may be wrong by what is used and
    asked for meanwhile."""

    def __init__(self, parts: CreditParts, accounts_max: int) -> None:
        """`accounts_max`: accounts that are kept; the one that was asked about longest ago goes first."""
        self._parts = parts
        self._accounts_max = accounts_max
        self._reads: OrderedDict[str, tuple[int, Mapping[str, int]]] = OrderedDict()

    async def __call__(self, account: str, rates: Mapping[str, Fraction], quantity: Decimal) -> bool:
        """Whether the pools pay for a quantity. `rates`: by pool, what one unit costs there. Raises `Transient`."""
        now_ms = self._parts.clock.now_ms()
        read_ms, left = self._reads.get(account, (now_ms - AGE_MS_MAX, {}))
        if not 0 <= now_ms - read_ms < AGE_MS_MAX:
            left = {pool.pool: pool.left for pool in (await balance_of(self._parts, account)).pools}
            self._reads[account] = now_ms, left
            if len(self._reads) > self._accounts_max:
                self._reads.popitem(last=False)
        self._reads.move_to_end(account)
        return sum((left.get(name, 0) / rate for name, rate in rates.items()), Fraction(0)) >= Fraction(quantity)
