"""What accounts are warned about: the features of the active catalog, and each account's bounds, kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from aggregators.account_grants import features_of, granted
from aggregators.entitlement_codec import decode
from aggregators.entitlements import resolve, segment_at, settling_until_ms
from aggregators.notices import CARD_DAYS, Bound, bounds_of
from pipeline.access.changes import Changes
from pipeline.access.renewal import commerce_of
from schemas.catalog import Feature
from schemas.catalog_changes import CatalogStore
from schemas.clock import SECOND_MS, Clock
from schemas.entitlements import Entitlements, EntitlementVersion, Segment

CATALOG_INTERVAL_MS: Final = 5 * SECOND_MS
ACCOUNTS_MAX: Final = 200_000

# What holds from an instant on, for each segment that has not ended.
_Steps = tuple[tuple[int, tuple[Bound, ...]], ...]


class Terms:
    """The bounds of accounts. Accounts on one plan share their bounds, so an account takes some hundred bytes."""

    def __init__(
        self, catalog: CatalogStore, entitlements: Entitlements, clock: Clock, accounts_max: int = ACCOUNTS_MAX
    ) -> None:
        """`accounts_max`: accounts whose bounds are kept; those of others are read from SQL each time."""
        self._catalog = catalog
        self._entitlements = entitlements
        self._clock = clock
        self._accounts_max = accounts_max
        self._sha256 = ""
        self._default: Sequence[Segment] = ()
        self._read_ms: int | None = None
        self._changes = Changes(entitlements, clock)
        self._known: dict[str, _Steps] = {}
        self._shared: dict[tuple[Bound, ...], tuple[Bound, ...]] = {}
        self.features: Mapping[str, Feature] = {}
        self.card_days: Sequence[int] = CARD_DAYS

    @property
    def accounts(self) -> int:
        """How many accounts are in memory."""
        return len(self._known)

    async def refresh(self) -> None:
        """Take the active catalog, and forget the accounts that changed. Raises `Transient`; what is known stays."""
        now_ms = self._clock.now_ms()
        await self._read_catalog(now_ms)
        async for found in self._changes.pages():
            for renewed in found:
                self._known.pop(renewed.account, None)

    async def _read_catalog(self, now_ms: int) -> None:
        if self._read_ms is not None and 0 <= now_ms - self._read_ms < CATALOG_INTERVAL_MS:
            return
        found = await commerce_of(self._catalog)
        self._read_ms = now_ms
        if found is None or found[0] == self._sha256:
            return
        self._sha256, commerce = found
        features, self.card_days = commerce.catalog.features, commerce.catalog.dunning.card_expiry_days
        self.features = {name: each for name, each in features.items() if each.meter and each.warn_percent}
        nobody = granted(commerce, (), {}, ())
        self._default = resolve(features_of(commerce), nobody.entitled)
        self._known.clear()
        self._shared.clear()

    async def bounds(self, accounts: Sequence[str], now_ms: int) -> Mapping[str, tuple[Bound, ...]]:
        """The bounds of accounts now, as of the last `refresh` or later. Raises `Transient`."""
        steps = {account: self._known[account] for account in accounts if account in self._known}
        unknown = [account for account in accounts if account not in steps]
        read = await self._entitlements.latest(unknown) if unknown else {}
        for account in unknown:
            steps[account] = self._steps(read.get(account), now_ms)
            if len(self._known) < self._accounts_max:
                self._known[account] = steps[account]
        return {account: _at(found, now_ms) for account, found in steps.items()}

    async def newest(self, account: str) -> tuple[Bound, ...]:
        """The bounds of one account now, read from SQL. Raises `Transient`."""
        now_ms = self._clock.now_ms()
        await self._read_catalog(now_ms)
        version = (await self._entitlements.latest([account])).get(account)
        return _at(self._steps(version, now_ms), now_ms)

    def _segments(self, version: EntitlementVersion | None) -> Sequence[Segment]:
        return self._default if version is None else decode(version.segments)

    def _steps(self, version: EntitlementVersion | None, now_ms: int) -> _Steps:
        segments = self._segments(version)
        coming = [segment for segment in segments if segment.from_ms > now_ms]
        steps = [
            (segment.from_ms, self._share(bounds_of(segment, self.features)))
            for segment in (segment_at(segments, now_ms), *coming)
        ]
        if (settling := settling_until_ms(segments, now_ms)) is not None:
            # The usage may be that of the period before the purchase, to which the plan's bounds do not apply.
            steps = [(steps[0][0], ()), *((max(from_ms, settling[1]), bounds) for from_ms, bounds in steps)]
        return tuple(steps)

    def _share(self, bounds: tuple[Bound, ...]) -> tuple[Bound, ...]:
        if len(self._shared) >= self._accounts_max:
            self._shared.clear()
        return self._shared.setdefault(bounds, bounds)


def _at(steps: _Steps, now_ms: int) -> tuple[Bound, ...]:
    holding = steps[0][1]
    for from_ms, bounds in steps:
        if from_ms <= now_ms:
            holding = bounds
    return holding
