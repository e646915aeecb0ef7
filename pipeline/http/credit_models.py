"""The bodies of the paths of credits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.http.models import Answer, Instant, MoneyAnswer

Category = Literal["included", "paid", "promotional"]


class CreditGrantAnswer(Answer):
    """Credits that an account was given."""

    id: str = Field(description="For `POST …/credits/grants/{id}/void`.")
    pool: str
    category: Category
    credits: int = Field(description="Whole credits; of a pool of mode `stripe`, minor units of its currency.")
    remaining: int | None = Field(description="Null: Stripe did not say.")
    priority: int = Field(description="0 is drawn first.")
    effective: Instant
    expires: Instant | None = Field(description="Null: never.")
    state: Literal["open", "coming", "ordered"] = Field(
        description="`coming`: it begins later. `ordered`: Stripe was asked for it, and the mirror has not seen it yet."
    )
    by_tidemark: bool = Field(default=True, description="False: somebody made the grant at Stripe.")


class PackAnswer(Answer):
    """Credits that can be bought at once."""

    pack: str
    credits: int
    amount: MoneyAnswer


class PoolAnswer(Answer):
    """The credits of one pool."""

    pool: str
    unit: str
    mode: Literal["ledger", "stripe"]
    overdraft: Literal["next", "bill", "block"] = Field(description="What happens to usage beyond the credits.")
    left: int | None = Field(description="What may be spent now. Null: not known.")
    estimate: bool = Field(
        description="True of mode `stripe`: what Stripe said last. Usage is taken off when its invoice is final."
    )
    as_of: Instant | None = Field(description="When Stripe said it; null of mode `ledger`.")
    owed: int = Field(description="Credits that were used and then taken back. The next grant pays them first.")
    undrawn: int = Field(description="What counted usage will draw; taken off `left` already.")
    held: int = Field(description="What holds promise to callers; taken off `left` already.")
    grants: list[CreditGrantAnswer] = Field(description="Those that can be drawn now or later.")
    packs: list[PackAnswer]


class PurchaseAnswer(Answer):
    """That an account buys a pack."""

    id: str
    pool: str
    pack: str
    quantity: int
    credits: int = Field(description="Of all packs together. They exist when the invoice is paid.")
    how: Literal["page", "top_up"]
    state: Literal["wanted", "open", "paid", "ended", "failed"]
    url: str | None = Field(description="The page of Stripe on which the customer pays, while it is open.")
    invoice: str = Field(default="", description="The invoice, once it is paid.")
    detail: str = Field(default="", description="Why it failed.")
    made_at: Instant


class CreditsAnswer(Answer):
    """The credits of an account by pool and grant."""

    account: str
    at: Instant
    complete_up_to: Instant | None = Field(description="Up to when usage is counted; null if no pool covers a meter.")
    pools: list[PoolAnswer]
    purchases: list[PurchaseAnswer] = Field(description="The newest ones.")


class TopUpWish(Answer):
    """A pack that is to be bought."""

    pool: str
    pack: str = Field(default="", description="Needed if the pool has several packs.")
    quantity: int = Field(default=1, ge=1, le=1000)
    currency: str = Field(default="", description="That of the customer, if absent.")
    return_url: str = Field(min_length=1, description="To which page the customer comes back.")
    by: str = Field(default="", description="Who asks, for the audit, which names the key too.")


class GrantWish(Answer):
    """Credits that a person gives to an account."""

    pool: str
    credits: int = Field(ge=1, description="Whole credits; of a pool of mode `stripe`, minor units of its currency.")
    category: Literal["promotional", "paid"] = "promotional"
    priority: int = Field(default=50, ge=0, le=100)
    effective: Instant | None = Field(default=None, description="Now, if absent.")
    expires: Instant | None = Field(default=None, description="Never, if absent.")
    by: str = Field(description="Who gives them, for the audit, which names the key too.")
    reason: str = Field(description="Why, for the audit.")


class VoidWish(Answer):
    """Credits that a person takes back."""

    by: str = Field(description="Who takes them back, for the audit, which names the key too.")
    reason: str = Field(description="Why, for the audit.")
    owes: bool = Field(default=False, description="Whether what was used is owed. Only of mode `ledger`.")
