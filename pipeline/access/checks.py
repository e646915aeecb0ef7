"""Answers "may this account do this?" from memory.

The gateway keeps the entitlements of the accounts that it was asked about, and reads four times a second which accounts
have a newer version. If SQL does not answer, what is known goes on being the answer, and the answer says how old it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple, Protocol

from aggregators.access import decide, fallback, overshoot_bound
from aggregators.account_grants import INCLUDED, Commerce, features_of, granted
from aggregators.credit_terms import blocked_meters
from aggregators.entitlements import is_given, next_change_ms, place_at, resolve, segment_at, settling_until_ms
from aggregators.overage import Tariff, is_capped, sole_currencies, tariff_of, tariff_of_sole_currency
from aggregators.price_list import PriceList, price_list
from aggregators.upgrade import Denied, upgrade_of
from pipeline.access.billed import BilledAccounts
from pipeline.access.holds import GatewayHolds, HoldRequest, check_hold
from pipeline.access.known import ACCOUNTS_MAX, Known, KnownAccounts
from pipeline.access.renewal import commerce_of
from schemas import catalog as terms
from schemas.access import Decision, Reason, Standing, Usage
from schemas.catalog import PlanId
from schemas.catalog_changes import CatalogStore
from schemas.clock import MINUTE_MS, SECOND_MS, Clock
from schemas.entitlements import IN_GRACE, Entitlements, Feature, Grant, Resolved, Segment
from schemas.errors import InvalidInput, Transient
from schemas.holds import Hold, Holds
from schemas.upgrades import Upgrade

CATALOG_INTERVAL_MS: Final = 5 * SECOND_MS
# How often the log says that checks are answered without a store. A metric counts them all.
WARNING_INTERVAL_MS: Final = MINUTE_MS
NOTHING: Final = Decimal(0)
# No other plan would allow what these deny.
_NOT_OF_THE_PLAN: Final = frozenset({Reason.SPEND_CAP_REACHED, Reason.CREDITS_EXHAUSTED})

_log: Final = logging.getLogger(__name__)


class Counted(NamedTuple):
    """The usage of a meter in the account's running period. `complete_up_to_ms` is None if that is not known.

    `a_minute`: the usage of a minute at the present rate, None if that is not known. `is_cached`: it was read before.
    `period_start_ms` is None if that is not known.
    """

    used: Decimal
    period_end_ms: int
    complete_up_to_ms: int | None
    a_minute: Decimal | None = None
    is_cached: bool = False
    period_start_ms: int | None = None


class UsageSource(Protocol):
    """The live usage."""

    async def __call__(self, account: str, meter: str, /, *, fresh: bool = False) -> Counted:
        """The usage of an account's meter, with `fresh` from the store in any case. Raises `Transient` if the store
        does not answer."""
        ...


class CreditsSource(Protocol):
    """The credits that are left."""

    async def __call__(self, account: str, rates: Mapping[str, Fraction], quantity: Decimal, /) -> bool:
        """Whether the pools pay for a quantity of usage that costs so many credits a unit. Raises `Transient`."""
        ...


class Answer(NamedTuple):
    """A decision with what a person may want to know of it.

    `version` and `computed_ms`: of the entitlements. `read_ms`: when SQL last said which versions are the newest.
    `changes_ms`: when the answer may change by itself. `upgrade`: the plan or add-on that would allow it; None if there
    is none, or if it is not known what the account pays. `hold`: what was taken for the caller. `overshoot_bound`: by
    how much "allowed" may be wrong; None: not known.
    """

    feature: Feature
    decision: Decision
    version: int
    computed_ms: int
    read_ms: int
    changes_ms: int | None
    upgrade: Upgrade | None = None
    counted: Counted | None = None
    hold: Hold | None = None
    overshoot_bound: Decimal | None = None


class _Asked(NamedTuple):
    """One check, with what the catalog says of its feature. `together`: the features that count the same usage."""

    account: str
    feature: Feature
    term: terms.Feature
    together: frozenset[str]
    quantity: Decimal
    used: Decimal | None


class _Found(NamedTuple):
    """What is known of an account at one instant."""

    now_ms: int
    known: Known
    segment: Segment
    counted: Counted | None
    used: Decimal
    tariff: Tariff | None = None


class AccessChecks:
    """The checks of one gateway. `refresh` must be called some times a second; it also reads the catalog."""

    def __init__(
        self,
        catalog: CatalogStore,
        entitlements: Entitlements,
        usage: UsageSource,
        clock: Clock,
        accounts_max: int = ACCOUNTS_MAX,
        *,
        holds: Holds | None = None,
        credits_left: CreditsSource | None = None,
        on_fallback: Callable[[], None] = lambda: None,
    ) -> None:
        """`accounts_max`: accounts that are kept in memory; the one that was asked about longest ago goes first.
        Without `holds` no hold can be taken, and without `credits_left` no credits are looked at. `on_fallback` is
        called for each answer without a store."""
        self.catalog = catalog
        self._usage = usage
        self._clock = clock
        self._accounts = KnownAccounts(entitlements, clock, accounts_max)
        self._billed = BilledAccounts(entitlements, clock, accounts_max)
        self._commerce: Commerce | None = None
        self._prices: PriceList = {}
        self._sole_currencies: Mapping[PlanId, str] = {}
        self._sha256 = ""
        self._features: dict[str, Feature] = {}
        self._together: Mapping[str, frozenset[str]] = {}
        self._default: Sequence[Segment] = ()
        self._catalog_read_ms = 0
        self._blocked: Mapping[str, Mapping[str, Fraction]] = {}
        self._credits_left = credits_left
        self._on_fallback = on_fallback
        self._warned_ms = 0
        self.holds = None if holds is None else GatewayHolds(holds, clock)
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
        if self.holds is not None:
            await self.holds.refresh()
        self.read_ms = now_ms

    async def _read_catalog(self) -> None:
        if await self.catalog.active_sha256() == self._sha256:
            # Reading all terms takes milliseconds, in which no check is answered.
            return
        found = await commerce_of(self.catalog)
        if found is not None:
            self._sha256, self._commerce = found
            self._prices = price_list(self._commerce)
            self._sole_currencies = sole_currencies(self._prices)
            self._features = {feature.name: feature for feature in features_of(self._commerce)}
            self._together = _together(self._commerce.catalog.features)
            self._blocked = blocked_meters(self._commerce.catalog)
            nobody = granted(self._commerce, (), {}, ())
            self._default = resolve(nobody.features, nobody.entitled)

    async def check(
        self,
        account: str,
        feature: str,
        quantity: Decimal,
        used: Decimal | None = None,
        hold: HoldRequest | None = None,
    ) -> Answer:
        """Whether the account may use `quantity` more of a feature, or as many seats more than `used`. With `hold`, the
        quantity is held for the caller if it is allowed.

        Raises `InvalidInput` for a feature that the catalog does not have, or a hold that cannot be taken, and
        `Transient` before the catalog was read. A store that does not answer makes an answer by the feature's
        `on_error`, without a hold.
        """
        commerce = self._commerce
        if commerce is None:
            await self.refresh()
            commerce = self._commerce
        if commerce is None:
            raise InvalidInput("feature", "no catalog is active: see `tidemark catalog plan --help`")
        asked = self._asked(commerce, account, feature, quantity, used)
        holds = None if hold is None else self._holds_for(asked, hold)
        try:
            if hold is None or holds is None:
                return await self._plain(commerce, asked)
            return await self._with_hold(commerce, asked, holds, hold)
        except Transient as error:
            return self._fallen_back(asked, error)

    def _asked(self, commerce: Commerce, account: str, feature: str, quantity: Decimal, used: Decimal | None) -> _Asked:
        term = commerce.catalog.features.get(feature)
        if term is None:
            raise InvalidInput("feature", f"{feature[:100]!r} is no feature of the catalog: `tidemark catalog show`")
        return _Asked(account, self._features[feature], term, self._together[feature], quantity, used)

    def _holds_for(self, asked: _Asked, hold: HoldRequest) -> GatewayHolds:
        """Where a hold is taken. Raises `InvalidInput` if it cannot be taken."""
        check_hold(hold, asked.quantity)
        if self.holds is None:
            raise InvalidInput("hold_s", "no holds can be taken here")
        if asked.feature.type not in (terms.FeatureType.LIMIT, terms.FeatureType.SEAT):
            raise InvalidInput("hold_s", f"{asked.feature.name} is a {asked.feature.type.value}: leave hold_s out")
        return self.holds

    async def _plain(self, commerce: Commerce, asked: _Asked) -> Answer:
        found = await self._found(commerce, asked)
        held = await self._held(asked, found)
        if found.counted and found.counted.is_cached and _is_near(asked, found, held):
            found = await self._found(commerce, asked, fresh=True)
            held = await self._held(asked, found)
        return await self._answer(commerce, asked, found, held, is_paid=await self._is_paid(asked))

    async def _is_paid(self, asked: _Asked) -> bool:
        """Whether credits pay for the quantity, if the catalog refuses usage beyond them."""
        rates = self._blocked.get(asked.term.meter or "")
        return not rates or self._credits_left is None or await self._credits_left(asked.account, rates, asked.quantity)

    async def _with_hold(self, commerce: Commerce, asked: _Asked, holds: GatewayHolds, request: HoldRequest) -> Answer:
        found = await self._found(commerce, asked, fresh=True)
        if not await self._is_paid(asked):
            return await self._answer(commerce, asked, found, await self._held(asked, found), is_paid=False)
        wanted = holds.wanted(
            asked.account, asked.feature.name, asked.quantity, request, is_metered=asked.term.meter is not None
        )

        def allows(held: Decimal) -> bool:
            return _decided(asked, found, held).allowed

        taken = await holds.take(wanted, asked.together, allows, _complete_up_to_ms(found))
        answer = await self._answer(commerce, asked, found, taken.held)
        if taken.is_repeated and not answer.decision.allowed:
            # It was allowed when the hold was taken.
            decision = answer.decision._replace(allowed=True, reason=Reason.WITHIN_LIMIT)
            answer = answer._replace(decision=decision, upgrade=None)
        return answer._replace(hold=taken.hold)

    async def _found(self, commerce: Commerce, asked: _Asked, *, fresh: bool = False) -> _Found:
        now_ms = self._clock.now_ms()
        known = await self._accounts.get(asked.account)
        counted = await self._usage(asked.account, asked.term.meter, fresh=fresh) if asked.term.meter else None
        if not known.version:
            known = known._replace(segments=self._default)
        used = counted.used if counted else asked.used or NOTHING
        if counted and _is_of_before(known, counted, now_ms):
            used = NOTHING
        found = _Found(now_ms, known, segment_at(known.segments, now_ms), counted, used)
        if counted is None:
            return found
        return found._replace(tariff=await self._tariff(commerce, asked, found))

    async def _tariff(self, commerce: Commerce, asked: _Asked, found: _Found) -> Tariff | None:
        """What usage beyond the included quantity costs, if that may decide, if there is any, or if it is known."""
        meter, covered = asked.term.meter, found.segment.features.get(f"{INCLUDED}{asked.term.meter}")
        if meter is None or covered is None or not isinstance(covered.value, Decimal) or not covered.gives:
            return None
        decides = is_capped(commerce, covered, meter)
        if not decides and found.used <= covered.value:
            # It costs nothing yet; in which currency is not worth a read of SQL.
            return tariff_of_sole_currency(commerce, self._prices, self._sole_currencies, covered, meter)
        try:
            # What was paid before says the currency too, and no subscription changes its currency.
            billed = await self._billed.get(asked.account, found.known.version, may_be_old=True)
        except Transient:
            if decides:
                raise
            return None
        return tariff_of(commerce, self._prices, billed, covered, meter)

    async def _held(self, asked: _Asked, found: _Found) -> Decimal:
        if self.holds is None or asked.feature.type not in (terms.FeatureType.LIMIT, terms.FeatureType.SEAT):
            return NOTHING
        is_metered = asked.term.meter is not None
        return await self.holds.held(asked.account, asked.together, _complete_up_to_ms(found), is_metered=is_metered)

    async def _answer(
        self, commerce: Commerce, asked: _Asked, found: _Found, held: Decimal, *, is_paid: bool = True
    ) -> Answer:
        decision = _decided(asked, found, held)
        if decision.allowed and not is_paid:
            decision = decision._replace(allowed=False, reason=Reason.CREDITS_EXHAUSTED)
        upgrade = None
        if not decision.allowed and decision.reason not in _NOT_OF_THE_PLAN:
            denied = Denied(asked.feature, _resolved(asked, found), found.used + held + asked.quantity, asked.term.soft)
            upgrade = await self._upgrade(commerce, asked.account, found.known.version, denied)
        known, counted, bound = found.known, found.counted, None
        if counted and counted.complete_up_to_ms is not None and counted.a_minute is not None:
            bound = overshoot_bound(counted.a_minute, found.now_ms - counted.complete_up_to_ms, held)
        changes_ms = next_change_ms(known.segments, found.now_ms)
        return Answer(
            asked.feature, decision, known.version, known.computed_ms, self.read_ms, changes_ms, upgrade, counted,
            overshoot_bound=bound,
        )  # fmt: skip

    async def _upgrade(self, commerce: Commerce, account: str, version: int, denied: Denied) -> Upgrade | None:
        """What would allow a denied check. Another answer of the check does not depend on it."""
        try:
            billed = await self._billed.get(account, version)
        except Transient as error:
            self._warn("denied checks name no upgrade, because SQL does not answer", error)
            return None
        return upgrade_of(commerce, self._prices, billed, denied, self._clock.now_ms())

    def _fallen_back(self, asked: _Asked, error: Transient) -> Answer:
        """The answer without a store."""
        self._on_fallback()
        self._warn("checks are answered without a store, by on_error of their features", error)
        decision = fallback(asked.feature, allow=asked.term.on_error is terms.OnError.ALLOW)
        return Answer(asked.feature, decision, 0, 0, self.read_ms, None)

    def _warn(self, what: str, error: Transient) -> None:
        now_ms = self._clock.now_ms()
        if now_ms >= self._warned_ms + WARNING_INTERVAL_MS:
            self._warned_ms = now_ms
            _log.warning("%s: %s", what, error)


def _complete_up_to_ms(found: _Found) -> int | None:
    """Up to when the usage is complete; None: not known. The caller's own count of seats is of now."""
    return found.counted.complete_up_to_ms if found.counted else found.now_ms


def _resolved(asked: _Asked, found: _Found) -> Resolved:
    return found.segment.features.get(asked.feature.name, Resolved(False))


def _together(features: Mapping[str, terms.Feature]) -> dict[str, frozenset[str]]:
    """For each feature the features that count the same usage, itself among them."""
    by_meter: dict[str, set[str]] = {}
    for name, each in features.items():
        by_meter.setdefault(each.meter or "", set()).add(name)
    return {name: frozenset(by_meter[each.meter] if each.meter else {name}) for name, each in features.items()}


def _decided(asked: _Asked, found: _Found, held: Decimal) -> Decision:
    """The decision while holds promise `held`."""
    return decide(
        asked.feature,
        _resolved(asked, found),
        Usage(found.used, held),
        asked.quantity,
        _standing(found.known, asked.feature.name, found.now_ms),
        included=_included(found.segment, asked.term.meter),
        soft=asked.term.soft,
        tariff=found.tariff,
    )


def _is_near(asked: _Asked, found: _Found, held: Decimal) -> bool:
    """Whether the account would have used 90 % of its limit or of its cap or more, so that no old total may decide."""
    limit = _resolved(asked, found).value
    if isinstance(limit, Decimal) and not limit:
        # Nothing is given, whatever is used.
        return False
    after, cap_minor = found.used + held + asked.quantity, found.tariff.cap_minor if found.tariff else None
    if found.tariff and cap_minor is not None and found.tariff.cost_minor(after) * 10 >= cap_minor * 9:
        return True
    return isinstance(limit, Decimal) and after * 10 >= limit * 9


def _included(segment: Segment, meter: str | None) -> Decimal | None:
    """The usage that the base price covers; None if no plan in force sells the meter."""
    found = segment.features.get(f"{INCLUDED}{meter}")
    return found.value if found and found.gives and isinstance(found.value, Decimal) else None


def _standing(known: Known, feature: str, now_ms: int) -> Standing:
    """What the account had of a feature before, and whether it has its plan."""
    last = place_at(known.segments, now_ms)
    before: tuple[Grant, ...] = ()
    for place in range(last - 1, -1, -1):
        given = known.segments[place].features.get(feature)
        if given and is_given(given):
            before = given.gives
            break
    found = known.segments[last].features.get(feature) if last >= 0 else None
    if found is None:
        return Standing(before, is_known=known.version > 0)
    in_grace = any(grant.reason == IN_GRACE for grant in found.gives)
    return Standing(found.lost or before, bool(found.lost), in_grace, is_known=known.version > 0)


def _is_of_before(known: Known, counted: Counted, now_ms: int) -> bool:
    """Whether the usage is that of a period before the account bought its plan, which is cut in the next minutes."""
    settling = settling_until_ms(known.segments, now_ms)
    # A period begins with a whole minute, so that of the purchase may begin some seconds before.
    return settling is not None and (counted.period_start_ms or now_ms) < settling[0] - MINUTE_MS
