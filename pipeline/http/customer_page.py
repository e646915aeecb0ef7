"""What the customer's page asks (`portal.account.Business`), answered from the gateway's stores."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final, TypeVar

from aggregators.deferred import complete_up_to_ms
from aggregators.entitlement_codec import decode
from aggregators.entitlements import segment_at
from aggregators.plan_offer import Shop
from pipeline.changes.operating import accept
from pipeline.changes.pages import portal_page
from pipeline.changes.parts import Parts, shop_of
from pipeline.changes.quoting import make_quote
from pipeline.changes.seating import SeatParts, standings
from pipeline.credits.balances import account_balance
from pipeline.credits.buying import PackWish, buy, carry_out
from pipeline.explaining.reading import explained_line
from pipeline.http.access import opened_access
from pipeline.http.changes import KEY_CHARACTERS_MAX
from pipeline.http.dependencies import CreditStores, GatewayDependencies
from pipeline.http.errors import ApiError
from pipeline.http.usage import UsageEndpoints, live_value
from portal.account import CountedEvent, Facts, Hour, Previewed, SeatCount, Used
from portal.subscribed import subscription_of
from schemas.account_records import AccountRecords, InvoiceRecord, invoice_cursor
from schemas.analytics import UsageQuery, UsageReader, Window
from schemas.catalog import FeatureType
from schemas.catalog_changes import CatalogStore
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.credit_balances import AccountBalance
from schemas.dunning import ListedCase
from schemas.entitlements import Resolved
from schemas.errors import InvalidInput, Refused, TidemarkError
from schemas.explained import LineExplanation
from schemas.meters import Meter
from schemas.packs import Purchase, PurchaseState
from schemas.periods import Period
from schemas.plan_changes import ChangeRequest, InvoicePreview, Operation, Quote, Refusal
from schemas.seats import Seats
from schemas.side_tables import Row
from schemas.usage_evidence import UsageEvidence

# Who asks, for the audit.
ACTOR: Final = "the customer's page"
CASES_MAX: Final = 20
INVOICES_SHOWN: Final = 6
AUDIT_MAX: Final = 50
SEATS_SHOWN: Final = 50
INVOICES_MAX: Final = 50
DAYS: Final = 30
CHARTS_MAX: Final = 4
# Stripe limits calls. A customer who looks twice in this time sees the same preview.
PREVIEW_AGE_MS_MAX: Final = MINUTE_MS
PREVIEWS_MAX: Final = 10_000
# A customer waits: what a store does not answer in this time is left out.
PART_TIMEOUT_S: Final = 4.0
# After a change the page waits for Stripe's webhook, so that it shows the change.
MIRRORED_TRIES: Final = 12
MIRRORED_INTERVAL_S: Final = 0.25

_NOT_CONFIGURED: Final = ApiError(501, "not_configured", "this gateway shows no pages: set TIDEMARK_SQL_URL")
_log: Final = logging.getLogger(__name__)
Found = TypeVar("Found")


class GatewayBusiness:
    """Implements `portal.account.Business`. Previews of Stripe are kept in memory for a minute."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies
        self._usage = UsageEndpoints(dependencies)
        # When Stripe was asked, and what it said, by what it was asked about.
        self._previews: OrderedDict[str, tuple[int, Previewed | None]] = OrderedDict()

    async def facts(self, account: str) -> Facts:
        """See `Business`."""
        records, (_, entitlements) = await self._records(), opened_access(self._dependencies)
        now_ms = self._dependencies.clock.now_ms()
        shop, cases = await asyncio.gather(self._shop(), self._cases(account))
        mirror, latest, invoices, overrides, audit = await asyncio.gather(
            records.mirrored_of(account, now_ms),
            entitlements.latest([account]),
            records.invoices(account, INVOICES_SHOWN),
            entitlements.overrides(account),
            records.audit_before(account, AUDIT_MAX),
        )
        seats = await self._seats()
        parts = SeatParts(self._dependencies.clock, await self._catalog(), entitlements, seats)
        counts = [
            SeatCount(each.feature, each.holders.held, each.holders.reserved, each.allowed, each.paid)
            for each in await standings(parts, account)
        ]
        held = await seats.listed(account, "", now_ms, SEATS_SHOWN)
        version = latest.get(account)
        features = segment_at(decode(version.segments), now_ms).features if version else _default_features(shop)
        meter_set = await _known(self._dependencies.meter_set())
        meters = meter_set.meters if meter_set else ()
        used, preview = await asyncio.gather(self._used(account, meters), self._preview(shop, account, mirror, now_ms))
        shown = [meter for meter in meters if used and used.units.get(meter.slug)][:CHARTS_MAX]
        return Facts(
            account=account,
            now_ms=now_ms,
            shop=shop,
            mirror=mirror,
            features=features,
            meters=meters,
            used=used,
            cases=cases,
            preview=preview,
            days=await self._days(account, shown, now_ms),
            invoices=invoices,
            overrides=overrides,
            audit=audit,
            seat_counts=counts,
            seats=held,
            credits=await self._balance(account, shop),
        )

    async def quote(self, account: str, request: ChangeRequest) -> Quote | Refusal:
        """See `Business`."""
        return await make_quote(await self._parts(), account, request, ACTOR)

    async def kept(self, account: str, quote: str) -> tuple[Quote, Operation | None] | None:
        """See `Business`."""
        changes = (await self._parts()).changes
        found = await changes.quote(account, quote)
        return None if found is None else (found, await changes.operation(quote))

    async def accept(self, account: str, quote: str, return_url: str) -> Refusal | str:
        """See `Business`. Waits a moment for the mirror, so that the next page shows the change."""
        parts, records = await self._parts(), await self._records()
        before = await records.mirrored_of(account, parts.clock.now_ms())
        found = await accept(parts, account, quote, ACTOR, return_url)
        if isinstance(found, Refusal):
            return found
        if found[1].url:
            return found[1].url
        await self._mirrored(account, lambda mirror: mirror != before)
        return ""

    async def awaited(self, account: str, since_ms: int) -> None:
        """See `Business`."""

        def has_begun(mirror: Mapping[str, Sequence[Row]]) -> bool:
            # Stripe's seconds are rounded down.
            return any(int(row["start_ms"] or 0) >= since_ms - SECOND_MS for row in mirror["subscriptions"])

        await self._mirrored(account, has_begun)

    async def _mirrored(self, account: str, is_there: Callable[[Mapping[str, Sequence[Row]]], bool]) -> None:
        """Wait until the mirror has something, or some seconds have passed."""
        records = await self._records()
        for _ in range(MIRRORED_TRIES):
            if is_there(await records.mirrored_of(account, self._dependencies.clock.now_ms())):
                return
            await asyncio.sleep(MIRRORED_INTERVAL_S)

    async def buy_pack(self, account: str, fields: Mapping[str, str], return_url: str) -> Purchase:
        """See `Business`."""
        named = {name: fields.get(name, "") for name in ("pool", "pack", "currency", "key")}
        if len(named["key"]) > KEY_CHARACTERS_MAX:
            raise InvalidInput("key", f"must have at most {KEY_CHARACTERS_MAX} characters")
        wish = PackWish(
            account, named["pool"], named["pack"], 1, named["currency"], return_url, ACTOR, f"page {named['key']}"
        )
        return await buy((await self._credits()).packs, wish, names_itself=True)

    async def bought(self, account: str, purchase: str) -> tuple[Purchase, bool] | None:
        """See `Business`."""
        parts = (await self._credits()).packs
        found = await parts.packs.purchase(account, purchase)
        if found is None:
            return None
        found = await _known(carry_out(parts, found)) or found
        for _ in range(MIRRORED_TRIES if found.state is PurchaseState.PAID else 0):
            if await parts.packs.is_unpacked(found.invoice):
                return found, True
            await asyncio.sleep(MIRRORED_INTERVAL_S)
        return found, False

    async def _credits(self) -> CreditStores:
        if self._dependencies.credits is None:
            raise _NOT_CONFIGURED
        return await self._dependencies.credits()

    async def _balance(self, account: str, shop: Shop) -> AccountBalance | None:
        if self._dependencies.credits is None or not shop.commerce.catalog.credit_pools:
            return None
        stores = await self._credits()
        return await _known(account_balance(stores.packs, stores.ledger, account))

    async def card_page(self, account: str, return_url: str) -> Refusal | str:
        """See `Business`."""
        return await portal_page(await self._parts(), account, return_url, only_card=True)

    async def invoices(self, account: str, before: str) -> tuple[Sequence[Row], str]:
        """See `Business`."""
        rows = await (await self._records()).invoices(account, INVOICES_MAX + 1, before)
        shown = rows[:INVOICES_MAX]
        return shown, invoice_cursor(shown[-1]) if len(rows) > INVOICES_MAX else ""

    async def invoice(
        self, account: str, identifier: str, lines_max: int
    ) -> tuple[InvoiceRecord, Shop, Sequence[Meter]] | None:
        """See `Business`."""
        found = await (await self._records()).invoice(account, identifier, lines_max)
        if found is None:
            return None
        meter_set = await self._dependencies.meter_set()
        return found, await self._shop(), meter_set.meters if meter_set else ()

    async def explained(self, account: str, invoice: str, line: str) -> LineExplanation | None:
        """See `Business`."""
        if self._dependencies.explain is None:
            return None
        return await _known(explained_line(await self._dependencies.explain(), account, invoice, line))

    async def hours(self, account: str, meter: Meter, span: Period, after_ms: int, limit: int) -> Sequence[Hour]:
        """See `Business`."""
        rows = await self._evidence().hours(account, meter, span, after_ms, limit)
        return [Hour(row.hour_ms, Decimal(row.value_minor).scaleb(-meter.scale)) for row in rows]

    async def events(
        self, account: str, meter: Meter, hour_ms: int, after: str, limit: int, span: Period
    ) -> Sequence[CountedEvent]:
        """See `Business`."""
        rows = await self._evidence().events(account, meter, hour_ms, after, limit, span)
        return [CountedEvent(*row) for row in rows]

    async def _cases(self, account: str) -> Sequence[ListedCase]:
        store = self._dependencies.dunning() if self._dependencies.dunning else None
        return () if store is None else await store.listed(account=account, is_open=True, limit=CASES_MAX)

    async def _used(self, account: str, meters: Sequence[Meter]) -> Used | None:
        live = self._dependencies.live
        counted = None if live is None else await _known(self._usage.counted(live, account))
        if counted is None:
            return None
        texts = {meter.slug: live_value(counted.totals.get(meter.slug), meter) for meter in meters}
        units = {slug: Decimal(text) for slug, text in texts.items() if text is not None}
        return Used(counted.period, units, complete_up_to_ms(counted.before, counted.waiting, counted.checkpoint))

    async def _preview(
        self, shop: Shop, account: str, mirror: Mapping[str, Sequence[Row]], now_ms: int
    ) -> Previewed | None:
        """Stripe's preview of the next invoice, at most a minute old. None if there is none, or Stripe does not say."""
        followed = subscription_of(shop, mirror)
        if followed is None:
            return None
        key = repr((account, followed, mirror["subscription_schedules"]))
        asked_ms, found = self._previews.get(key, (-PREVIEW_AGE_MS_MAX, None))
        if now_ms >= asked_ms + PREVIEW_AGE_MS_MAX:
            invoice = await _known(self._asked_stripe(followed.id))
            found = None if invoice is None else Previewed(invoice, now_ms)
            self._previews[key] = now_ms, found
            if len(self._previews) > PREVIEWS_MAX:
                self._previews.popitem(last=False)
        return found

    async def _asked_stripe(self, subscription: str) -> InvoicePreview:
        return await (await self._parts()).stripe.preview({"subscription": subscription})

    async def _days(self, account: str, meters: Sequence[Meter], now_ms: int) -> Mapping[str, Mapping[int, Decimal]]:
        reader = self._dependencies.usage
        if reader is None:
            return {}
        found = await asyncio.gather(*(_known(_by_day(reader, account, meter, now_ms)) for meter in meters))
        return {meter.slug: days for meter, days in zip(meters, found, strict=True) if days is not None}

    async def _parts(self) -> Parts:
        if self._dependencies.changes is None:
            raise _NOT_CONFIGURED
        return await self._dependencies.changes()

    async def _catalog(self) -> CatalogStore:
        if self._dependencies.catalog is None:
            raise _NOT_CONFIGURED
        return await self._dependencies.catalog()

    async def _shop(self) -> Shop:
        return await shop_of(await self._catalog())

    async def _seats(self) -> Seats:
        if self._dependencies.seats is None:
            raise _NOT_CONFIGURED
        return await self._dependencies.seats()

    async def _records(self) -> AccountRecords:
        if self._dependencies.records is None:
            raise _NOT_CONFIGURED
        return await self._dependencies.records()

    def _evidence(self) -> UsageEvidence:
        if self._dependencies.evidence is None:
            raise _NOT_CONFIGURED
        return self._dependencies.evidence


async def _by_day(reader: UsageReader, account: str, meter: Meter, now_ms: int) -> Mapping[int, Decimal]:
    today_ms = now_ms - now_ms % DAY_MS
    from_ms, to_ms = today_ms - (DAYS - 1) * DAY_MS, now_ms - now_ms % HOUR_MS + HOUR_MS
    query = UsageQuery(meter.slug, from_ms, to_ms, account, Window.DAY)
    rows = await reader.usage(query, meter.aggregation, DAYS)
    days = dict.fromkeys(range(from_ms, today_ms + 1, DAY_MS), Decimal(0))
    return days | {row.window_start_ms or 0: Decimal(row.value_minor).scaleb(-meter.scale) for row in rows}


def _default_features(shop: Shop) -> Mapping[str, Resolved]:
    """What an account may do of whom nothing was computed yet: what the default plan gives."""
    catalog = shop.commerce.catalog
    plan = catalog.plans.get(catalog.defaults.plan or "")
    limits = {name for name, each in catalog.features.items() if each.type is FeatureType.LIMIT}
    grants = plan.grants if plan else {}
    return {name: Resolved(Decimal(value)) for name, value in grants.items() if name in limits and type(value) is int}


async def _known(answer: Awaitable[Found]) -> Found | None:
    """An answer of a store, or None if it does not come in time: the page is shown without it."""
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            return await answer
    except (TidemarkError, TimeoutError) as error:
        if not isinstance(error, ApiError | InvalidInput | Refused):
            _log.warning("the customer's page is shown without a part: %s", error)
        return None
