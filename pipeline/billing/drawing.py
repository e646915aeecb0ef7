"""Draws credits for intents before anything is sent to Stripe.

The steps, and the state after a crash behind each:
1. One SQL transaction draws, keyed by the identifier of the intent's first revision: the repetition, also by another
   sender or for another revision, gets the same answer.
2. The allocation is in the log: everybody who reads the log knows what is left for Stripe.
3. It was read back, like an attempt: the rest is sent under the intent's identifier, or the intent is credited.
"""

from __future__ import annotations

from aggregators.credit_terms import terms_of
from aggregators.intents import root_of
from pipeline.access.renewal import commerce_of
from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.credits import Credits, Terms, Usage
from schemas.errors import Fenced, Transient
from schemas.intent_ledger import LedgerIntent
from schemas.reports import Allocation, Intent


class Drawing:
    """The credits of the active catalog's pools. A meter that no pool in ledger mode covers is left alone.

    Reads the catalog once for all intents of a round; `forget()` ends the round.
    """

    def __init__(self, credits_: Credits, catalog: CatalogStore, clock: Clock) -> None:
        self._credits = credits_
        self._catalog = catalog
        self._clock = clock
        self._terms: Terms | None = None
        self._sha256 = ""
        self._is_current = False

    def forget(self) -> None:
        """Look at the catalog again before the next draw."""
        self._is_current = False

    async def allocation(self, intent: Intent, period_end_ms: int) -> Allocation | None:
        """What credits pay of an intent, whose period ends at `period_end_ms` as is known now; None if they pay
        nothing. Repeatable. Raises `Transient`."""
        terms = await self._covering(intent)
        if terms is None:
            return None
        try:
            found = await self._credits.allocate(_usage(intent, period_end_ms), terms, self._clock.now_ms())
        except Fenced as error:
            self.forget()
            raise Transient(str(error)) from error
        if not found.drawn_minor:
            return None
        return Allocation(
            identifier=intent.identifier,
            drawn_minor=found.drawn_minor,
            remainder_minor=found.remainder_minor,
            draws=dict(found.draws),
        )

    async def take_back(self, known: LedgerIntent, period_end_ms: int) -> None:
        """Give back what an intent drew, because it is not to be paid; also if no pool covers its meter any more and
        the log has its allocation. Repeatable. Raises `Transient`."""
        if known.drawn_minor is not None or await self._covering(known.intent) is not None:
            await self._credits.take_back(_usage(known.intent, period_end_ms), self._clock.now_ms())

    async def _covering(self, intent: Intent) -> Terms | None:
        """The terms, if a pool covers the intent's meter."""
        if not self._is_current:
            active = await self._catalog.active_sha256()
            if active != self._sha256:
                found = await commerce_of(self._catalog)
                self._terms = None if found is None else terms_of(found[1], found[0])
                self._sha256 = active
            self._is_current = True
        return self._terms if self._terms is not None and self._terms.covers(intent.meter) else None


def _usage(intent: Intent, period_end_ms: int) -> Usage:
    return Usage(
        root_of(intent.identifier), intent.account, intent.meter, intent.period_start_ms, period_end_ms,
        intent.instant_ms, intent.delta_minor, intent.scale,
    )  # fmt: skip
