"""The bodies of the paths that quote and change plans."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.http.models import Answer, Instant, MoneyAnswer


class QuoteWish(Answer):
    """The change that is wanted: a plan, or an end."""

    plan: str = Field(default="", description="A plan of the catalog; absent with `cancel`.")
    interval: Literal["day", "week", "month", "year"] | None = Field(
        default=None, description="That of the present plan if absent."
    )
    currency: str = Field(default="", description="That of the subscription if absent.")
    quantities: dict[str, int] = Field(default={}, description="How many to pay, by seat feature; as now if absent.")
    used: dict[str, str] = Field(default={}, description="How many are in use, by feature: decimal numbers.")
    trial: bool = Field(default=False, description="Begin with the trial of the plan.")
    cancel: Literal["", "period_end", "now"] = Field(default="", description="`now` is for operators.")
    by: str = Field(default="", description="Who asks, for the audit, which names the key too.")


class AcceptWish(Answer):
    """Who accepts a quote."""

    by: str = Field(default="", description="For the audit, which names the key too.")


class CheckoutWish(QuoteWish):
    """A first purchase or a trial at Stripe's page: a quote of it, or the plan that is wanted."""

    quote: str = Field(default="", description="A quote that was not accepted yet, instead of a plan.")
    return_url: str = Field(min_length=1, description="Where the customer comes back to, paid or not.")


class PortalWish(Answer):
    """A visit of the portal."""

    return_url: str = Field(min_length=1, description="Where the customer comes back to.")
    only_card: bool = Field(default=False, description="Only the page that replaces the card.")


class QuoteLineAnswer(Answer):
    """A line of the invoice of a change, as Stripe previews it."""

    text: str
    amount: MoneyAnswer
    proration: bool
    from_: Instant = Field(alias="from")
    until: Instant


class NextInvoiceAnswer(Answer):
    """The invoice that follows a change."""

    at: Instant
    amount: MoneyAnswer = Field(description="With tax, and without usage.")


class OperationAnswer(Answer):
    """How far an accepted change is."""

    id: str
    state: Literal["planned", "sent", "unknown", "done", "failed"]
    detail: str = Field(description="Why it failed, or what it waits for.")
    invoice: str = Field(description="The invoice of the change; empty if there is none.")
    charged: MoneyAnswer | None = Field(description="The total of that invoice.")
    differs: bool = Field(description="Whether the invoice differs from the quote.")
    checkout_url: str = Field(default="", description="Stripe's page on which the customer pays; empty without one.")


class QuoteAnswer(Answer):
    """What a change costs, and how it is made."""

    id: str
    account: str
    words: str = Field(description="The quote in English.")
    row: int = Field(description="The row of the table in docs/plan-changes.md.")
    when: Literal["now", "period_end", "trial_end"]
    due_now: MoneyAnswer = Field(
        description="What is charged: the total less the balance of the customer, and open invoices paid first."
    )
    total: MoneyAnswer = Field(description="The total of the invoice of the change, with tax.")
    tax: MoneyAnswer
    next: NextInvoiceAnswer | None = Field(description="Null if there is none.")
    lines: list[QuoteLineAnswer]
    checked: Literal["equal", "differs", "not_compared"] = Field(description="The lines by our own rating.")
    expires_at: Instant
    accepted_at: Instant | None
    operation: OperationAnswer | None = Field(description="Null until the quote is accepted.")


class CheckoutAnswer(Answer):
    """Where a customer pays, and what."""

    url: str | None = Field(description="Stripe's page, good for half an hour; null if Stripe has not answered yet.")
    quote: QuoteAnswer


class PortalAnswer(Answer):
    """Where a customer replaces the card, and finds invoices and tax numbers."""

    url: str = Field(description="Stripe's page, good for minutes.")


class PlanPriceAnswer(Answer):
    """What one component of a plan costs for an interval in a currency."""

    component: str
    interval: str
    currency: str
    amount: str = Field(description="In words, in major units.")
    quantity: str = Field(description="The seat feature whose number is paid; empty without.")
    metered: bool


class PlanAnswer(Answer):
    """A plan that is sold."""

    id: str
    name: str
    description: str
    rank: int
    trial_days: int | None
    prices: list[PlanPriceAnswer]


class PlansAnswer(Answer):
    """The plans of the active catalog, by rank."""

    plans: list[PlanAnswer]
