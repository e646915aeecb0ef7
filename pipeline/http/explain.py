"""The paths that explain an invoice, a line of it, and where an event ended."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Final, Literal

from fastapi import Path, Query
from pydantic import Field
from starlette.responses import Response

from aggregators.instants import format_instant_ms
from aggregators.late_usage import text_of
from pipeline.explaining.events import explained_event
from pipeline.explaining.reading import explained_invoice, explained_line
from pipeline.explaining.stores import ExplainStores
from pipeline.http.dependencies import GatewayDependencies, Reader
from pipeline.http.errors import ApiError, json_answer
from pipeline.http.models import Answer, Instant, MoneyAnswer
from pipeline.http.queries import AccountInPath, ExplainParameters
from schemas.explained import Check, Ended, EventExplanation, InvoiceExplanation, LineExplanation
from schemas.upgrades import Money

INVOICE_PATH: Final = "/v1/accounts/{account:name}/invoices/{invoice:name}/explain"
LINE_PATH: Final = "/v1/accounts/{account:name}/invoices/{invoice:name}/lines/{line:name}/explain"
EVENT_PATH: Final = "/v1/accounts/{account:name}/events/{event:name}/explain"
InvoiceInPath = Annotated[str, Path(description="The id of the invoice at Stripe, in_….")]
LineInPath = Annotated[str, Path(description="The id of the line at Stripe, il_….")]
EventInPath = Annotated[str, Path(description="The id that the producer gave the event, percent-encoded.")]


class SpanAnswer(Answer):
    """A span of time, without its end."""

    start: Instant
    end: Instant


class PricedAnswer(Answer):
    """A part of a quantity that has one price and is rounded by itself."""

    text: str
    units: str
    amount: MoneyAnswer
    is_line: bool = Field(description="Whether the invoice has this part as the line that is explained.")


class CheckAnswer(Answer):
    """Two numbers that must be equal."""

    what: str
    expected: str
    found: str
    holds: bool


class HourUsageAnswer(Answer):
    """The usage of one hour, by the events' own time."""

    hour: Instant
    quantity: str


class LineExplanationAnswer(Answer):
    """Why a line of an invoice says what it says."""

    account: str
    invoice: str
    line: str
    kind: Literal["usage", "paid_ahead", "proration", "late_usage", "unknown"]
    text: str
    span: SpanAnswer
    quantity: str = Field(description="Stripe's quantity of the line; empty without one.")
    amount: MoneyAnswer
    holds: bool = Field(description="Whether all is explained and every check holds.")
    says: list[str] = Field(description="In plain English, the shortest answer first.")
    priced: list[PricedAnswer] = Field(description="How the quantity becomes the amount.")
    checks: list[CheckAnswer]
    unexplained: list[str] = Field(description="What nothing known explains; empty if all is.")
    meter: str = Field(description="The meter whose usage the line bills; empty if it bills none.")
    unit: str
    hours: list[HourUsageAnswer] = Field(description="The hours behind the quantity, by time; a page of them.")
    next_hour: Instant | None = Field(description="The `after` of the next page of hours; null on the last page.")


class InvoiceExplanationAnswer(Answer):
    """Why an invoice says what it says, line by line. The lines' hours are left out: ask for a line."""

    account: str
    invoice: str
    status: str
    total: MoneyAnswer
    holds: bool = Field(description="Whether every line is explained and all checks hold.")
    says: list[str]
    lines: list[LineExplanationAnswer]
    checks: list[CheckAnswer]
    unexplained: list[str]


class EndedAnswer(Answer):
    """Where an event ended for one meter."""

    meter: str
    value: str = Field(description="The quantity or the text that the meter takes from the event.")
    period: SpanAnswer | None = Field(description="The billing period that counts the event; null if none is known.")
    says: list[str]
    invoice: str = Field(description="The invoice that bills the period; empty while none does.")
    lines: list[str] = Field(description="The ids of its lines for the meter.")


class EventExplanationAnswer(Answer):
    """Where an event ended."""

    account: str
    id: str
    state: Literal["counted", "duplicate", "waiting", "dropped", "quarantined", "unknown"]
    says: list[str]
    facts: dict[str, str] = Field(description="What the archive has of the event.")
    ended: list[EndedAnswer]
    again: list[Instant] = Field(description="When the same id arrived again; the first ones.")
    unexplained: list[str]


class ExplainEndpoints:
    """The handlers. An app has one object."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self._dependencies = dependencies

    async def invoice(self, account: AccountInPath, invoice: InvoiceInPath, _key: Reader) -> Response:
        """Explain an invoice, line by line: prices, tiers, hours, late usage, prorations, discounts, and what cannot be
        explained."""
        found = await explained_invoice(await self._stores(), account, invoice)
        if found is None:
            raise ApiError(404, "not_found", f"account {account!r} has no invoice {invoice!r}", "invoice")
        return json_answer(invoice_answer(found))

    async def line(
        self,
        account: AccountInPath,
        invoice: InvoiceInPath,
        line: LineInPath,
        _key: Reader,
        parameters: Annotated[ExplainParameters, Query()],
    ) -> Response:
        """Explain one line of an invoice. A line of usage has its hours; `tidemark explain INVOICE --out FILE` has the
        events too."""
        found = await explained_line(await self._stores(), account, invoice, line)
        if found is None:
            raise ApiError(404, "not_found", f"account {account!r} has no such line of {invoice!r}", "line")
        return json_answer(line_answer(found, parameters.limit, parameters.after))

    async def event(self, account: AccountInPath, event: EventInPath, _key: Reader) -> Response:
        """Explain where an event ended: the meters that count it, the period, the invoice and its line; or why it was
        not counted."""
        return json_answer(event_answer(await explained_event(await self._stores(), account, event)))

    async def _stores(self) -> ExplainStores:
        if self._dependencies.explain is None:
            message = "this gateway explains nothing: set TIDEMARK_SQL_URL and TIDEMARK_STRIPE_API_KEY"
            raise ApiError(501, "not_configured", message)
        return await self._dependencies.explain()


def invoice_answer(found: InvoiceExplanation) -> InvoiceExplanationAnswer:
    """An invoice in JSON, without the hours of its lines."""
    return InvoiceExplanationAnswer(
        account=found.account,
        invoice=found.invoice,
        status=found.status,
        total=_money(found.total),
        holds=found.holds,
        says=list(found.says),
        lines=[line_answer(each, 0, None) for each in found.lines],
        checks=[_check(each) for each in found.checks],
        unexplained=list(found.unexplained),
    )


def line_answer(found: LineExplanation, hours_max: int, after_ms: int | None) -> LineExplanationAnswer:
    """A line in JSON with at most `hours_max` hours behind `after_ms`."""
    behind = [each for each in found.hours if after_ms is None or each[0] > after_ms]
    shown = behind[:hours_max]
    return LineExplanationAnswer(
        account=found.account,
        invoice=found.invoice,
        line=found.line,
        kind=found.kind,
        text=found.text,
        span=_span(*found.span),
        quantity=found.quantity.replace(",", ""),
        amount=_money(found.amount),
        holds=found.holds,
        says=list(found.says),
        priced=[
            PricedAnswer(
                text=each.text,
                units=text_of(each.units),
                amount=_money(found.amount._replace(minor=each.amount_minor)),
                is_line=each.is_line,
            )
            for each in found.priced
        ],
        checks=[_check(each) for each in found.checks],
        unexplained=list(found.unexplained),
        meter=found.meter,
        unit=found.unit,
        hours=[_hour(*each) for each in shown],
        next_hour=format_instant_ms(shown[-1][0]) if shown and len(shown) < len(behind) else None,
    )


def event_answer(found: EventExplanation) -> EventExplanationAnswer:
    """An event in JSON."""
    return EventExplanationAnswer(
        account=found.account,
        id=found.id,
        state=found.state,
        says=list(found.says),
        facts=dict(found.facts),
        ended=[_ended(each) for each in found.ended],
        again=[format_instant_ms(each) for each in found.again],
        unexplained=list(found.unexplained),
    )


def _ended(each: Ended) -> EndedAnswer:
    return EndedAnswer(
        meter=each.meter,
        value=each.value,
        period=None if each.period is None else _span(*each.period),
        says=list(each.says),
        invoice=each.invoice,
        lines=list(each.lines),
    )


def _money(money: Money) -> MoneyAnswer:
    return MoneyAnswer(**money._asdict())


def _check(check: Check) -> CheckAnswer:
    return CheckAnswer(what=check.what, expected=check.expected, found=check.found, holds=check.holds)


def _hour(hour_ms: int, units: Decimal) -> HourUsageAnswer:
    return HourUsageAnswer(hour=format_instant_ms(hour_ms), quantity=text_of(units))


def _span(start_ms: int, end_ms: int) -> SpanAnswer:
    return SpanAnswer(start=format_instant_ms(start_ms), end=format_instant_ms(end_ms))
