"""The side tables in SQL, and the protocol of their store.

Every table has a class. *Mirror*: what Stripe holds; dropped and fetched again, the rows are the same. *Authoritative*:
what people decided; only a backup restores it. *Ledger*: appended only. *Outbox*: what is still to be sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from schemas.billing_events import ObjectKind, ObjectName, StripeEvent, Via
from schemas.periods import Binding

# A row of a mirror table, by column. Text, integers and None only: money in minor units, times in ms UTC.
Row = Mapping[str, str | int | None]


# The columns of the mirror tables; the first is the key. `fetch_seq` and `fetched_ms` are the store's own, and only
# tables of objects that are fetched by themselves have them.
MIRROR_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "stripe_customers": (
        "id", "email", "currency", "default_payment_method", "country", "tax_exempt", "created_ms", "deleted",
    ),
    "payment_methods": ("id", "customer_id", "type", "expires_ms"),
    "subscriptions": (
        "id", "customer_id", "status", "billing_mode", "collection_method", "currency", "anchor_ms", "start_ms",
        "trial_end_ms", "cancel_at_ms", "ended_ms", "pause_reason", "schedule_id", "pending_update_until_ms",
        "latest_invoice_id", "default_payment_method", "discounts_json", "deleted", "cancellation_reason",
    ),
    "subscription_items": (
        "id", "subscription_id", "price_id", "meter_id", "usage_type", "interval", "interval_count", "quantity",
        "period_start_ms", "period_end_ms",
    ),
    "subscription_schedules": (
        "id", "customer_id", "subscription_id", "status", "end_behavior", "phases_json", "deleted",
    ),
    "invoices": (
        "id", "customer_id", "subscription_id", "status", "billing_reason", "currency", "exponent", "subtotal_minor",
        "tax_minor", "total_minor", "remaining_minor", "attempt_count", "next_attempt_ms", "created_ms", "finalizes_ms",
        "finalized_ms", "paid_ms", "hosted_url", "deleted", "decline_code", "finalization_error", "number",
        "paid_minor", "voided_ms", "uncollectible_ms",
    ),
    "invoice_lines": (
        "id", "invoice_id", "item_id", "price_id", "is_proration", "quantity", "amount_minor", "discount_minor",
        "tax_minor", "start_ms", "end_ms", "inclusive_tax_minor", "credit_minor",
    ),
    "credit_notes": (
        "id", "customer_id", "invoice_id", "number", "status", "reason", "currency", "exponent", "tax_minor",
        "total_minor", "refunds_json", "created_ms", "effective_ms", "voided_ms", "deleted",
    ),
    "credit_note_lines": (
        "id", "credit_note_id", "invoice_line_id", "amount_minor", "discount_minor", "tax_minor", "inclusive_tax_minor",
    ),
    "refunds": (
        "id", "customer_id", "invoice_id", "payment_intent_id", "status", "reason", "currency", "exponent",
        "amount_minor", "created_ms", "deleted",
    ),
    "disputes": (
        "id", "customer_id", "invoice_id", "payment_intent_id", "status", "reason", "currency", "exponent",
        "amount_minor", "created_ms", "deleted",
    ),
    "stripe_credit_grants": (
        "id", "customer_id", "name", "category", "currency", "exponent", "amount_minor", "available_minor", "priority",
        "prices_json", "source", "created_ms", "effective_ms", "expires_ms", "voided_ms", "deleted",
    ),
}  # fmt: skip
# The columns that name a person, or lead to a page that does. The audit has none of their values, and a customer or
# invoice that is gone at Stripe has none either.
PERSONAL: Final = frozenset({"email", "hosted_url"})
# The table of each object that is fetched, and the tables whose rows belong to one object, with the object's column.
TABLE_OF: Final[Mapping[ObjectKind, str]] = {
    ObjectKind.CUSTOMER: "stripe_customers",
    ObjectKind.SUBSCRIPTION: "subscriptions",
    ObjectKind.SCHEDULE: "subscription_schedules",
    ObjectKind.INVOICE: "invoices",
    ObjectKind.CREDIT_GRANT: "stripe_credit_grants",
    ObjectKind.CREDIT_NOTE: "credit_notes",
    ObjectKind.REFUND: "refunds",
    ObjectKind.DISPUTE: "disputes",
}
PARTS_OF: Final[Mapping[ObjectKind, tuple[str, str]]] = {
    ObjectKind.CUSTOMER: ("payment_methods", "customer_id"),
    ObjectKind.SUBSCRIPTION: ("subscription_items", "subscription_id"),
    ObjectKind.INVOICE: ("invoice_lines", "invoice_id"),
    ObjectKind.CREDIT_NOTE: ("credit_note_lines", "credit_note_id"),
}


# The entity of an audit row about two subscriptions that cannot both be right; `entity_id` has both ids.
OVERLAP: Final = "overlap"


class Outcome(StrEnum):
    """What became of an event. `HELD`: its customer belongs to no account yet; linking the customer re-reads it.
    `SET_ASIDE`: an object that the event names could not be fetched or stored; the event is read again later."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    IGNORED = "ignored"
    HELD = "held"
    SET_ASIDE = "set_aside"


# An event with such an outcome is processed when it is read again.
WAITING: Final = frozenset({Outcome.HELD, Outcome.SET_ASIDE})


class Fetched(NamedTuple):
    """An object fetched at Stripe. `fetch_seq` is what the store had before the fetch began, 0 without a row.

    `rows` are all rows of the object by table; the object's own table has one. An object that does not exist at Stripe
    any more has no rows, and its own row stays, with `deleted` 1.
    """

    name: ObjectName
    fetch_seq: int
    rows: Mapping[str, Sequence[Row]]


class Arrived(NamedTuple):
    """An event of the log with its place."""

    event: StripeEvent
    via: Via
    offset: int


class Step(NamedTuple):
    """The events of one read of a partition, the objects fetched for them, and the position to move from and to.

    `set_aside` has the ids of the events some of whose objects are not among `fetched`. The objects of a held event
    need not be among them: what the store has goes into the audit.
    """

    partition: int
    believed_offset: int
    next_offset: int
    now_ms: int
    arrived: Sequence[Arrived]
    fetched: Sequence[Fetched]
    set_aside: frozenset[str] = frozenset()


class Stale(Exception):
    """An object was fetched again by someone else since its `fetch_seq` was read: fetch it again, then repeat."""


class Unstorable(Exception):
    """The database refuses a row of the step, and would refuse it again. Nothing was written."""


class Link(NamedTuple):
    """An account's Stripe customer from `starts_ms` on, until `ends_ms`; None: until another link.

    `customer` "": the account belongs to no customer, since it was unlinked.
    """

    account: str
    customer: str
    starts_ms: int
    ends_ms: int | None = None


class DueBinding(NamedTuple):
    """A binding that the usage log may not have yet. `number` orders the bindings of an account in SQL; the revision of
    its control record is chosen when the record is appended, because people bind and close too."""

    account: str
    number: int
    binding: Binding


class Due(NamedTuple):
    """The number of bindings to send. `oldest_ms` is when the oldest one was planned; None if there is none."""

    bindings: int
    oldest_ms: int | None


class AuditRow(NamedTuple):
    """Who changed what, and why: `actor` is a person or `stripe`; `cause` is the event's id or the command."""

    account: str
    seq: int
    at_ms: int
    actor: str
    cause: str
    entity: str
    entity_id: str
    before: str | None
    after: str | None
    reason: str


class HeldEvent(NamedTuple):
    """An event that waits: its customer belongs to no account, or the event is set aside."""

    event_id: str
    type: str
    customer: str
    partition: int
    offset: int


class HeldCustomer(NamedTuple):
    """A customer with held events. `period_end_ms` is the first end of a period of the customer's metered items,
    `finalizes_ms` the first instant at which Stripe finalizes a draft of theirs; None without such."""

    customer: str
    period_end_ms: int | None
    finalizes_ms: int | None


class Cursor(NamedTuple):
    """Up to which instant a walker has read, and when it said so."""

    until_s: int
    moved_ms: int


class Timeline(Protocol):
    """Derives an account's bindings from what Stripe holds; a pure function that the store calls within `commit`."""

    def __call__(
        self, links: Sequence[Link], mirror: Mapping[str, Sequence[Row]], sent: Sequence[Binding], now_ms: int
    ) -> Sequence[Binding]:
        """The bindings that must be sent besides those that were planned before, by effective date.

        `sent` has those planned before, in the order of their planning. `mirror` has the rows of the account's
        customers, except invoices and their lines: they decide no binding. Equal inputs give an equal answer, and a
        second call gives nothing.
        """
        ...


class Overlap(NamedTuple):
    """Two subscriptions of a customer that bill at one time and cannot both be right; `subscription` is followed."""

    customer: str
    subscription: str
    other: str
    reason: str


class Overlaps(Protocol):
    """Finds overlaps among the subscriptions of an account; a pure function like `Timeline`, with its `mirror`."""

    def __call__(self, mirror: Mapping[str, Sequence[Row]], now_ms: int) -> Sequence[Overlap]:
        """The overlaps from now on. The store writes one audit row for each pair."""
        ...


class SideTables(Protocol):
    """The store of the side tables. Every call may raise `Transient`; no call holds a lock when it returns."""

    async def migrate(self, scope: str, log_id: str) -> None:
        """Bring the schema to this version. `scope` is `test:acct_…` or `live:acct_…`. Raises `OperatorNeeded` if the
        database belongs to another scope or log, or to a newer version."""
        ...

    async def position(self, partition: int) -> int | None:
        """The next offset of `billing.events` to read, or None."""
        ...

    async def unknown(self, event_ids: Sequence[str]) -> set[str]:
        """Those of the ids that were not processed, or wait."""
        ...

    async def held_among(self, event_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose events are held. The store has their objects, fetched after the events."""
        ...

    async def seen(self, event_ids: Sequence[str]) -> dict[str, Via]:
        """Those of the ids that were committed with any outcome, also held ones, and how the events came."""
        ...

    async def fetch_seqs(self, names: Sequence[ObjectName]) -> dict[ObjectName, int]:
        """The `fetch_seq` of each object, 0 without a row."""
        ...

    async def commit(self, step: Step) -> Mapping[str, Outcome]:
        """Apply a step in one transaction: rows, audit, bindings to send, position. Returns the outcome by event id.

        An event that was processed before changes nothing but the position, and has the outcome of that time. Raises
        `Stale` if an object's `fetch_seq` moved, `Fenced` if the stored position is not the believed one, `Unstorable`
        if the database refuses a row; then nothing was written. A partition without a position takes any. After
        `Transient` the step may have been written: then a repeat raises `Fenced`, and `position` says so.
        """
        ...

    async def link(self, account: str, customer: str, starts_ms: int, actor: str, reason: str, now_ms: int) -> Link:
        """Link an account to a customer. The same link again changes nothing.

        Raises `InvalidInput` if the customer belongs to another account at that time, or if the account has a link
        already and `starts_ms` is before the current minute: usage before now stays with the payer before.
        """
        ...

    async def unlink(self, account: str, actor: str, reason: str, now_ms: int) -> Link:
        """End the account's link with the current minute, and take back the links that begin later; returns the link
        to nobody. The same again changes nothing. Raises `InvalidInput` if the account has no link."""
        ...

    async def links(self, account: str) -> Sequence[Link]:
        """The links of an account, oldest first."""
        ...

    async def held(self, customer: str = "", limit: int = 1_000) -> Sequence[HeldEvent]:
        """Held events, oldest first, of one customer if named."""
        ...

    async def held_customers(self, limit: int = 1_000) -> Sequence[HeldCustomer]:
        """The customers of held events, and until when their usage can be billed."""
        ...

    async def set_aside(self, limit: int = 1_000) -> Sequence[HeldEvent]:
        """Events that are set aside, oldest first."""
        ...

    async def overdue(self, ended_ms: int, limit: int = 1_000) -> Sequence[tuple[ObjectName, str]]:
        """The subscriptions that bill by the mirror, and whose period was over at an instant, each with its customer.
        Those whose period ended last come first."""
        ...

    async def ignored(self, canary: str = "", limit: int = 10_000) -> Mapping[str, int]:
        """How many events named no object that the mirror copies, by type, without those of the customer `canary`;
        `limit` of all are counted."""
        ...

    async def due_bindings(self, limit: int = 500, *, account: str = "", after: str = "") -> Sequence[DueBinding]:
        """Bindings to send, by account and then by number; of one account if named, else of those behind `after` in
        the store's order of accounts."""
        ...

    async def due(self) -> Due:
        """How many bindings there are to send, and since when the oldest one."""
        ...

    async def sent(self, bindings: Sequence[DueBinding], now_ms: int) -> None:
        """Mark bindings as sent."""
        ...

    async def audit(self, account: str, limit: int = 1_000) -> Sequence[AuditRow]:
        """An account's audit rows, oldest first."""
        ...

    async def overlaps(self, now_ms: int, limit: int = 1_000) -> Sequence[Overlap]:
        """The overlaps that hold from now on, of the customers that accounts are linked to; of at most `limit` accounts
        that ever had one. The audit keeps a row of each, also of those that are over."""
        ...

    async def mirror(self) -> Mapping[str, Sequence[Row]]:
        """All rows of the mirror tables without `fetch_seq` and `fetched_ms`, sorted by key: for comparisons in tests.
        An account of years has more rows than a process has memory."""
        ...

    async def mirrored(self, kind: ObjectKind, ids: Sequence[str]) -> Mapping[str, Sequence[Row]]:
        """The rows of objects of a kind, and of their parts, by table; none of an unknown id."""
        ...

    async def counts(self) -> Mapping[str, int]:
        """The number of rows of each mirror table."""
        ...

    async def known(
        self, kind: ObjectKind, after: str = "", customer: str = "", limit: int = 1_000
    ) -> Sequence[tuple[ObjectName, str]]:
        """One page of the mirror's objects of a kind, or of one customer's, each with its customer or "", by id.

        `after` is the id of the last one. Empty at the end.
        """
        ...

    async def heard_ms(self, customer: str, since_ms: int) -> int | None:
        """When an event `customer.updated` of the customer that came as a webhook was last processed, at `since_ms` or
        later; None if none was."""
        ...

    async def cursor(self, name: str) -> Cursor | None:
        """A walker's cursor, or None."""
        ...

    async def move_cursor(self, name: str, until_s: int, now_ms: int) -> None:
        """Move a walker's cursor."""
        ...

    async def close(self) -> None:
        """Release connections. Safe to call twice."""
        ...
