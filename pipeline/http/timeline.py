"""`GET /v1/accounts/{account}/timeline`: the past and the future of one account."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, Literal, NamedTuple

from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from pipeline.changes.parts import shop_of
from pipeline.http.access import opened_access
from pipeline.http.dependencies import GatewayDependencies, Reader
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.models import Answer, Instant, MoneyAnswer
from pipeline.http.queries import AccountInPath, TimelineParameters
from portal.account import Facts
from portal.timeline import Entry, Timeline, future, past
from schemas.account_records import AccountRecords
from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.dunning import DunningStore
from schemas.entitlements import Entitlements
from schemas.notices import ChannelName, DeliveryState, NoticeOutbox
from schemas.seats import Seats

CASES_MAX: Final = 20
INVOICES_MAX: Final = 20
NOTICES_MAX: Final = 50
SEATS_MAX: Final = 200


class EntryAnswer(Answer):
    """Something that happens or happened to an account."""

    at: Instant
    when: Literal["future", "past"]
    kind: str = Field(description="What it is, for programs; of the past, what it was about.")
    text: str = Field(description="In plain English.")
    about: str = Field(description="The id of what it is about.")
    amount: MoneyAnswer | None = Field(description="Before tax and discounts, without usage; null if there is none.")
    actor: str = Field(description="Who did it; empty of the future.")
    cause: str = Field(description="The event at Stripe or the command; empty of the future.")
    reason: str = Field(description="Why, if somebody said; empty of the future.")


class TimelineAnswer(Answer):
    """The future of an account, if nobody changes anything, and its past; the latest instant first."""

    account: str
    now: Instant
    entries: list[EntryAnswer]
    next_cursor: str = Field(default="", description="The `cursor` of the next page; absent on the last page.")


class TimelineStores(NamedTuple):
    """What a timeline is read from."""

    clock: Clock
    catalog: CatalogStore
    records: AccountRecords
    entitlements: Entitlements
    dunning: DunningStore
    notices: NoticeOutbox
    seats: Seats


async def read_timeline(stores: TimelineStores, account: str, limit: int, before: int | None) -> Timeline:
    """A page of an account's timeline: up to `limit` entries of the past, behind the number `before` of the audit, and
    on the first page the future. Raises `Transient`, and `InvalidInput` before the first catalog."""
    now_ms = stores.clock.now_ms()
    rows = await stores.records.audit_before(account, limit + 1, before)
    entries = tuple(past(row) for row in rows[:limit])
    if before is None:
        shop, seats = await asyncio.gather(shop_of(stores.catalog), stores.seats.listed(account, "", now_ms, SEATS_MAX))
        mirror, invoices, cases, overrides, waiting = await asyncio.gather(
            stores.records.mirrored_of(account, now_ms),
            stores.records.invoices(account, INVOICES_MAX),
            stores.dunning.listed(account=account, is_open=True, limit=CASES_MAX),
            stores.entitlements.overrides(account),
            # What goes to the finance system is nothing that the account hears.
            stores.notices.listed(DeliveryState.WAITING, account, NOTICES_MAX, "", but=ChannelName.FINANCE),
        )
        facts = Facts(account, now_ms, shop, mirror, cases=cases, invoices=invoices, seats=seats)
        entries = (*reversed(future(facts, overrides, waiting)), *entries)
    return Timeline(account, now_ms, entries, rows[limit - 1].seq if len(rows) > limit else None)


class TimelineEndpoint:
    """The handler. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def listed(
        self, account: AccountInPath, _key: Reader, parameters: Annotated[TimelineParameters, Query()]
    ) -> Response:
        """What will happen to an account and what happened, the latest first. The first page has the whole future, up
        to 100 entries, and `limit` entries of the past."""
        found = await read_timeline(await self.stores(), account, parameters.limit, parameters.cursor)
        return json_answer(timeline_answer(found))

    async def stores(self) -> TimelineStores:
        """The stores. Raises `ApiError` without PostgreSQL, or until it answers."""
        given, (checks, entitlements) = self._dependencies, opened_access(self._dependencies)
        dunning = given.dunning() if given.dunning else None
        notices = given.notices() if given.notices else None
        if dunning is None or notices is None or given.records is None or given.seats is None:
            raise ApiError(501, "not_configured", "this gateway shows no timelines: set TIDEMARK_SQL_URL")
        records, seats = await given.records(), await given.seats()
        return TimelineStores(given.clock, checks.catalog, records, entitlements, dunning, notices, seats)


def timeline_answer(found: Timeline) -> TimelineAnswer:
    """A page in JSON."""
    entries = [_answer(each) for each in found.entries]
    answer = TimelineAnswer(account=found.account, now=format_instant_ms(found.now_ms), entries=entries)
    return answer if found.before is None else answer.model_copy(update={"next_cursor": str(found.before)})


def _answer(entry: Entry) -> EntryAnswer:
    return EntryAnswer(
        at=format_instant_ms(entry.at_ms),
        when="future" if entry.is_future else "past",
        kind=entry.kind,
        text=entry.text,
        about=entry.about,
        amount=None if entry.amount is None else MoneyAnswer(**entry.amount._asdict()),
        actor=entry.actor,
        cause=entry.cause,
        reason=entry.reason,
    )
