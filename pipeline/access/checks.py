"""Answers "may this account do this?" from memory.

The gateway keeps the entitlements of the accounts that it was asked about, and reads every half a second which accounts
have a newer version. If SQL does not answer, what is known goes on being the answer, and the answer says how old it is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.access import decide, fallback
from aggregators.account_grants import INCLUDED, Commerce, features_of, granted, upgrade_for
from aggregators.entitlements import is_given, next_change_ms, resolve, segment_at
from pipeline.access.known import ACCOUNTS_MAX, Known, KnownAccounts
from pipeline.access.renewal import commerce_of
from schemas import catalog as terms
from schemas.access import Decision, Standing, Usage
from schemas.catalog_changes import CatalogStore
from schemas.clock import SECOND_MS, Clock
from schemas.entitlements import (
    Entitlements,
    Feature,
    Grant,
    Resolved,
    Segment,
    SourceKind,
)
from schemas.errors import InvalidInput, Transient

CATALOG_INTERVAL_MS: Final = 5 * SECOND_MS
NOTHING: Final = Decimal(0)

_log: Final = logging.getLogger(__name__)


class Counted(NamedTuple):
    """The usage of a meter in the account's running period. `complete_up_to_ms` is None if that is not known."""

    used: Decimal
    period_end_ms: int
    complete_up_to_ms: int | None


# The live usage of (account, meter); raises `Transient` if Redis does not answer.
UsageSource = Callable[[str, str], Awaitable[Counted]]


class Answer(NamedTuple):
    """A decision with what a person may want to know of it.

    `version` and `computed_ms`: of the entitlements. `read_ms`: when SQL last said which versions are the newest.
    `changes_ms`: when the answer may change by itself. `upgrade`: the plan or add-on that would allow it, or "".
    """

    feature: Feature
    decision: Decision
    version: int
    computed_ms: int
    read_ms: int
    changes_ms: int | None
    upgrade: str = ""
    counted: Counted | None = None


class AccessChecks:
    """The checks of one gateway. `refresh` must be called every half a second; it also reads the catalog."""

    def __init__(
        self,
        catalog: CatalogStore,
        entitlements: Entitlements,
        usage: UsageSource,
        clock: Clock,
        accounts_max: int = ACCOUNTS_MAX,
    ) -> None:
        """`accounts_max`: accounts that are kept in memory; the one that was asked about longest ago goes first."""
        self._catalog = catalog
        self._usage = usage
        self._clock = clock
        self._accounts = KnownAccounts(entitlements, accounts_max)
        self._commerce: Commerce | None = None
        self._sha256 = ""
        self._features: dict[str, Feature] = {}
        self._default: Sequence[Segment] = ()
        self._catalog_read_ms = 0
        self.read_ms = 0

    @property
    def accounts(self) -> int:
        """How many accounts are in memory."""
        return len(self._accounts)

    async def refresh(self) -> None:
        """Take what changed in SQL since the last call. Raises `Transient`; what is known stays then."""
        now_ms = self._clock.now_ms()
        # First, because no account is read before a catalog is known.
        await self._accounts.refresh()
        if self._commerce is None or now_ms >= self._catalog_read_ms + CATALOG_INTERVAL_MS:
            await self._read_catalog()
            self._catalog_read_ms = now_ms
        self.read_ms = now_ms

    async def _read_catalog(self) -> None:
        if await self._catalog.active_sha256() == self._sha256:
            # Reading all terms takes milliseconds, in which no check is answered.
            return
        found = await commerce_of(self._catalog)
        if found is not None:
            self._sha256, self._commerce = found
            self._features = {feature.name: feature for feature in features_of(self._commerce)}
            nobody = granted(self._commerce, (), {}, ())
            self._default = resolve(nobody.features, nobody.entitled)

    async def check(self, account: str, feature: str, quantity: Decimal, used: Decimal | None = None) -> Answer:
        """Whether the account may use `quantity` more of a feature, or as many seats more than `used`.

        Raises `InvalidInput` for a feature that the catalog does not have, and `Transient` before the catalog was read.
        A store that does not answer makes an answer by the feature's `on_error`.
        """
        commerce = self._commerce
        if commerce is None:
            await self.refresh()
            commerce = self._commerce
        if commerce is None:
            raise InvalidInput("feature", "no catalog is active: see `tidemark catalog plan --help`")
        term = commerce.catalog.features.get(feature)
        if term is None:
            raise InvalidInput("feature", f"{feature[:100]!r} is no feature of the catalog: `tidemark catalog show`")
        what, now_ms = self._features[feature], self._clock.now_ms()
        try:
            known = await self._accounts.get(account)
            counted = await self._usage(account, term.meter) if term.meter else None
        except Transient as error:
            _log.warning("a check is answered without a store: %s", error)
            decision = fallback(what, allow=term.on_error is terms.OnError.ALLOW)
            return Answer(what, decision, 0, 0, self.read_ms, None)
        if not known.version:
            known = known._replace(segments=self._default)
        segment = segment_at(known.segments, now_ms)
        taken = counted.used if counted else used or NOTHING
        decision = decide(
            what,
            segment.features.get(feature, Resolved(False)),
            Usage(taken),
            quantity,
            _standing(known, feature, now_ms),
            included=_included(segment, term.meter),
            soft=term.soft,
        )
        upgrade = ""
        if not decision.allowed:
            plan = next((made.source.partition("@")[0] for made in _plans(segment)), "")
            upgrade = upgrade_for(commerce, feature, taken + quantity, plan)
        changes_ms = next_change_ms(known.segments, now_ms)
        return Answer(what, decision, known.version, known.computed_ms, self.read_ms, changes_ms, upgrade, counted)


def _included(segment: Segment, meter: str | None) -> Decimal | None:
    """The usage that the base price covers; None if no plan in force sells the meter."""
    found = segment.features.get(f"{INCLUDED}{meter}")
    return found.value if found and found.gives and isinstance(found.value, Decimal) else None


def _standing(known: Known, feature: str, now_ms: int) -> Standing:
    """What the account had of a feature before, and whether it has its plan."""
    past = [segment for segment in known.segments if segment.from_ms <= now_ms]
    before = next(
        (
            found.gives
            for segment in reversed(past[:-1])
            if (found := segment.features.get(feature)) and is_given(found)
        ),
        (),
    )
    is_downgraded = any(grant.kind is SourceKind.FALLBACK for grant in _grants(past[-1])) if past else False
    return Standing(before, is_downgraded=is_downgraded, is_known=known.version > 0)


def _grants(segment: Segment) -> Sequence[Grant]:
    return [grant for found in segment.features.values() for grant in found.gives]


def _plans(segment: Segment) -> Sequence[Grant]:
    return [grant for grant in _grants(segment) if grant.kind is SourceKind.PLAN]
