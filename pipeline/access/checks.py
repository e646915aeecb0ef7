"""Answers "may this account do this?" from memory.

The gateway keeps the entitlements of the accounts that it was asked about, and reads every half a second which accounts
have a newer version. If SQL does not answer, what is known goes on being the answer, and the answer says how old it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from aggregators.access import decide, fallback
from aggregators.account_grants import INCLUDED, Commerce, features_of, granted, upgrade_for
from aggregators.entitlement_codec import decode
from aggregators.entitlements import next_change_ms, resolve, segment_at
from pipeline.access.renewal import commerce_of
from schemas import catalog as terms
from schemas.access import Decision, Standing, Usage
from schemas.catalog_changes import CatalogStore
from schemas.clock import MINUTE_MS, SECOND_MS, Clock
from schemas.entitlements import (
    UNLIMITED,
    Entitlements,
    EntitlementVersion,
    Feature,
    Grant,
    Resolved,
    Segment,
    SourceKind,
)
from schemas.errors import InvalidInput, Transient

ACCOUNTS_MAX: Final = 100_000
# A version may become visible after a later one: a transaction takes at most half a minute.
OVERLAP_MS: Final = MINUTE_MS
# How many names of changed accounts, and how many entitlements, one read takes.
CHANGED_AT_ONCE: Final = 10_000
READ_AT_ONCE: Final = 100
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


class Known(NamedTuple):
    """The segments of an account. `version` 0: the account has none, so the default plan holds."""

    version: int
    computed_ms: int
    segments: Sequence[Segment]


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
        self._entitlements = entitlements
        self._usage = usage
        self._clock = clock
        self._accounts_max = accounts_max
        self._accounts: OrderedDict[str, Known] = OrderedDict()
        self._reading: dict[str, asyncio.Future[Mapping[str, EntitlementVersion]]] = {}
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
        if self._commerce is None or now_ms >= self._catalog_read_ms + CATALOG_INTERVAL_MS:
            await self._read_catalog()
            self._catalog_read_ms = now_ms
        if self.read_ms:
            await self._read_changed(max(0, self.read_ms - OVERLAP_MS))
        self.read_ms = now_ms

    async def _read_changed(self, since_ms: int) -> None:
        """Read the newer versions of the accounts in memory, of which another catalog may make many at once."""
        while True:
            found = await self._entitlements.changed(since_ms, CHANGED_AT_ONCE)
            newer = sorted({each.account for each in found if self._is_older(each.account, each.version)})
            for start in range(0, len(newer), READ_AT_ONCE):
                latest = await self._entitlements.latest(newer[start : start + READ_AT_ONCE])
                for account, version in latest.items():
                    # Versions only rise: a late answer of SQL brings no older one back.
                    if self._is_older(account, version.version):
                        self._accounts[account] = _known(version)
            if len(found) < CHANGED_AT_ONCE or found[-1].computed_ms == since_ms:
                return
            since_ms = found[-1].computed_ms

    def _is_older(self, account: str, version: int) -> bool:
        known = self._accounts.get(account)
        return known is not None and known.version < version

    async def _read_catalog(self) -> None:
        found = await commerce_of(self._catalog)
        if found is not None and found[0] != self._sha256:
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
            known = await self._known(account)
            counted = await self._usage(account, term.meter) if term.meter else None
        except Transient as error:
            _log.warning("a check is answered without a store: %s", error)
            decision = fallback(what, allow=term.on_error is terms.OnError.ALLOW)
            return Answer(what, decision, 0, 0, self.read_ms, None)
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

    async def _known(self, account: str) -> Known:
        known = self._accounts.get(account)
        if known is None:
            found = await self._read(account)
            known = _known(found[account]) if account in found else Known(0, 0, ())
            self._accounts[account] = known
            while len(self._accounts) > self._accounts_max:
                self._accounts.popitem(last=False)
        self._accounts.move_to_end(account)
        return known if known.version else known._replace(segments=self._default)

    async def _read(self, account: str) -> Mapping[str, EntitlementVersion]:
        """Read an account once for all checks that ask about it at the same time."""
        reading = self._reading.get(account)
        if reading is None:
            reading = self._reading[account] = asyncio.ensure_future(self._entitlements.latest([account]))
            reading.add_done_callback(lambda read: self._has_read(account, read))
        return await asyncio.shield(reading)

    def _has_read(self, account: str, read: asyncio.Future[Mapping[str, EntitlementVersion]]) -> None:
        del self._reading[account]
        if not read.cancelled():
            # Who asked may have gone away. An exception that nobody looks at would be logged as a fault.
            read.exception()


def _known(version: EntitlementVersion) -> Known:
    return Known(version.version, version.computed_ms, decode(version.segments))


def _included(segment: Segment, meter: str | None) -> Decimal | None:
    """The usage that the base price covers; None if no plan in force sells the meter."""
    found = segment.features.get(f"{INCLUDED}{meter}")
    return found.value if found and found.gives and isinstance(found.value, Decimal) else None


def _standing(known: Known, feature: str, now_ms: int) -> Standing:
    """What the account had of a feature before, and whether it has its plan."""
    past = [segment for segment in known.segments if segment.from_ms <= now_ms]
    before = next(
        (found.gives for segment in reversed(past[:-1]) if (found := segment.features.get(feature)) and _gives(found)),
        (),
    )
    is_downgraded = any(grant.kind is SourceKind.FALLBACK for grant in _grants(past[-1])) if past else False
    return Standing(before, is_downgraded=is_downgraded, is_known=known.version > 0)


def _gives(found: Resolved) -> bool:
    return found.value is UNLIMITED or found.value not in (False, "null", NOTHING)


def _grants(segment: Segment) -> Sequence[Grant]:
    return [grant for found in segment.features.values() for grant in found.gives]


def _plans(segment: Segment) -> Sequence[Grant]:
    return [grant for grant in _grants(segment) if grant.kind is SourceKind.PLAN]
