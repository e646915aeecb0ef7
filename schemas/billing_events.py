"""The records of the topic `billing.events`: what Stripe says has happened, as it came.

A record's value is an event as Stripe delivered or listed it, unchanged. A resync record is ours: it names an object
that must be fetched although no event says so. The key is Stripe's customer, or the object's id if it has no customer,
so the events of a customer are on one partition in the order of their arrival. The header `tidemark-via` says how the
event came. Nothing but the ids and the type of an event is believed: the processor fetches the objects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

VIA_HEADER: Final = "tidemark-via"
RESYNC_TYPE: Final = "tidemark.resync"
EVENT_BYTES_MAX: Final = 1024 * 1024
# Stripe's ids have at most 255 characters (docs.stripe.com/upgrades).
CUSTOMER_ID: Final = re.compile(r"cus_[A-Za-z0-9_]{1,251}")


# So many objects at the end of a page may be deleted before the next page is read.
CURSOR_IDS_MAX: Final = 10


def cursor_of(ids: Sequence[str]) -> str:
    """The place in a list of Stripe after the objects of a page: the last one, and those before it, in case it is
    deleted before the next page is read; "" for no object."""
    return ",".join(reversed(ids[-CURSOR_IDS_MAX:]))


# The events that may change an object that the side tables mirror. Stripe lists events of 20 types at once
# (docs.stripe.com/api/events/list). Others, such as those of charges, are several times as many.
MIRRORED_TYPES: Final = (
    "customer.created", "customer.updated", "customer.deleted",
    "customer.discount.created", "customer.discount.updated", "customer.discount.deleted",
    "customer.subscription.created", "customer.subscription.updated", "customer.subscription.deleted",
    "customer.subscription.paused", "customer.subscription.resumed", "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired", "customer.subscription.trial_will_end",
    "subscription_schedule.created", "subscription_schedule.updated", "subscription_schedule.canceled",
    "subscription_schedule.completed", "subscription_schedule.released", "subscription_schedule.aborted",
    "subscription_schedule.expiring",
    "invoice.created", "invoice.updated", "invoice.deleted", "invoice.finalized", "invoice.finalization_failed",
    "invoice.paid", "invoice.payment_succeeded", "invoice.payment_failed", "invoice.payment_action_required",
    "invoice.marked_uncollectible", "invoice.voided", "invoice.overdue", "invoice.overpaid", "invoice.sent",
    "checkout.session.completed",
    "payment_method.attached", "payment_method.updated", "payment_method.automatically_updated",
    "billing.credit_grant.created", "billing.credit_grant.updated", "billing.credit_balance_transaction.created",
    "credit_note.created", "credit_note.updated", "credit_note.voided",
    "refund.created", "refund.updated", "refund.failed",
    "charge.dispute.created", "charge.dispute.updated", "charge.dispute.closed",
    "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated",
)  # fmt: skip


class Via(StrEnum):
    """How an event came: delivered by Stripe, found in Stripe's list of events, or made by a resync."""

    WEBHOOK = "webhook"
    LIST = "list"
    RESYNC = "resync"


class ObjectKind(StrEnum):
    """The kinds of Stripe object that the side tables mirror, by Stripe's name of the object."""

    CUSTOMER = "customer"
    SUBSCRIPTION = "subscription"
    SCHEDULE = "subscription_schedule"
    INVOICE = "invoice"
    CREDIT_GRANT = "billing.credit_grant"
    CREDIT_NOTE = "credit_note"
    REFUND = "refund"
    DISPUTE = "dispute"


# There are ever more of these, and those of earlier months change no more.
OLD_CHANGE_NO_MORE: Final = frozenset(
    {ObjectKind.INVOICE, ObjectKind.CREDIT_NOTE, ObjectKind.REFUND, ObjectKind.DISPUTE}
)


class ObjectName(NamedTuple):
    """One object at Stripe."""

    kind: ObjectKind
    id: str


class StripeEvent(NamedTuple):
    """What is believed of an event. `objects` must be fetched; none for a type that the side tables do not mirror.

    `customer` is "" if the event names none. `idempotency_key` is that of the request that caused the event, or "".
    """

    id: str
    type: str
    created_s: int
    customer: str
    objects: tuple[ObjectName, ...]
    idempotency_key: str = ""


class StripeObjects(Protocol):
    """Reads objects at Stripe. Every call may raise `Transient` if no answer came, or `Refused` if the key is wrong."""

    async def fetch(self, name: ObjectName) -> dict[str, object] | None:
        """The object as JSON, with all pages of its nested lists. None if Stripe says that it does not exist; a deleted
        customer has `deleted: true`. If the key may read them, a customer has `payment_methods` beside, an open
        invoice whose payment failed has `last_payment_error`, that of its payment intent, a subscription has its
        discounts with their coupons instead of ids, and a refund or dispute has the `invoice` that was paid and the
        `customer`. A credit grant has `available`, what is left of it in minor units."""
        ...

    async def events(self, since_s: int, until_s: int) -> list[dict[str, object]]:
        """The events of `MIRRORED_TYPES` created in `[since_s, until_s)` that Stripe keeps (30 days), oldest first,
        with all pages (docs.stripe.com/api/events/list); those of one second in any order. An event that appears while
        the list is read may be left out."""
        ...

    async def names(self, kind: ObjectKind, after: str = "", customer: str = "") -> list[tuple[ObjectName, str]]:
        """One page of all objects of a kind, or of one customer's, each with its customer; `after` is the place of the
        last one (`cursor_of`). Empty at the end. Canceled subscriptions and deleted customers' subscriptions are among
        them. Of one customer no refunds and disputes are listed, because Stripe has no such list. Raises `Transient` if
        all objects of the place are gone: the list must be read anew."""
        ...

    async def touch(self, customer: str, beat: str) -> None:
        """Set `metadata.tidemark_beat` of a customer, so that Stripe makes an event."""
        ...

    async def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
