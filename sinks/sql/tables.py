"""The side tables as SQLAlchemy sees them. `migrations/` makes the same tables in PostgreSQL; a test compares the two.

Each table is marked with its class: *mirror*, *authoritative*, *ledger* or *outbox* (`schemas/side_tables.py`), or
*view*: of a topic. Instants are ms UTC, spans are `[starts, ends)`. Integers have 64 bits in both engines.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, CheckConstraint, Column, Dialect, Index, Integer, MetaData, Numeric, Table, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from schemas.billing_events import ObjectKind
from schemas.bills import InvoiceItemState
from schemas.catalog_changes import PlanState
from schemas.intent_ledger import IntentState
from schemas.notices import DeliveryState
from schemas.plan_moves import MoveState
from schemas.side_tables import MIRROR_COLUMNS, OVERLAP, PARTS_OF, TABLE_OF, Outcome

metadata: Final = MetaData()
# A strict table of SQLite knows no BIGINT; its INTEGER has 64 bits.
INTEGER: Final = BigInteger().with_variant(Integer, "sqlite")


class WholeNumber(TypeDecorator[int]):
    """An integer of any size: NUMERIC, and in SQLite, which has no such type, text."""

    impl = Numeric
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else Numeric())

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        return str(value) if dialect.name == "sqlite" and value is not None else value

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:  # noqa: ARG002  # a protocol
        return None if value is None else int(value)


def _table(name: str, *parts: Any) -> Table:
    # SQLite checks types only in a strict table.
    return Table(name, metadata, *parts, sqlite_strict=True)


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False)


def _integer(name: str, *, key: bool = False, nullable: bool = False) -> Column[int]:
    return Column(name, INTEGER, primary_key=key, nullable=nullable, autoincrement=False)


# For the modules of further tables.
table, text, integer = _table, _text, _integer

_ITEM_STATES: Final = ", ".join(f"'{state}'" for state in InvoiceItemState)
_STATES: Final = ", ".join(f"'{state}'" for state in IntentState)
_DELIVERY_STATES: Final = ", ".join(f"'{state}'" for state in DeliveryState)
_OUTCOMES: Final = ", ".join(f"'{outcome}'" for outcome in Outcome)

# Authoritative. The database's only row of its kind: whose data it is.
meta: Final = _table(
    "meta",
    _integer("one", key=True),
    _text("scope"),
    _text("log_id"),
    CheckConstraint("one = 1", name="meta_has_one_row"),
)
# Authoritative. Where each reader of the log goes on.
positions: Final = _table(
    "positions", _text("reader", key=True), _integer("log_partition", key=True), _integer("next_offset")
)
# Ledger. Each event that was read, so that a second delivery changes nothing. `customer_id` is "" if none is known.
processed_events: Final = _table(
    "processed_events",
    _text("event_id", key=True),
    _text("type"),
    _text("customer_id"),
    _integer("created_s"),
    _text("via"),
    _text("outcome"),
    _integer("log_partition"),
    _integer("log_offset"),
    _integer("processed_ms"),
    CheckConstraint(f"outcome IN ({_OUTCOMES})", name="processed_events_outcome"),
)
# Only events that wait are looked for by another column than the key.
Index(
    "held_events",
    processed_events.c.customer_id,
    processed_events.c.processed_ms,
    postgresql_where=processed_events.c.outcome == "held",
    sqlite_where=processed_events.c.outcome == "held",
)
Index(
    "set_aside_events",
    processed_events.c.processed_ms,
    postgresql_where=processed_events.c.outcome == "set_aside",
    sqlite_where=processed_events.c.outcome == "set_aside",
)
# The canary's events, and those of other customers, because an index knows no settings.
Index(
    "delivered_customer_updates",
    processed_events.c.customer_id,
    processed_events.c.processed_ms,
    postgresql_where=(processed_events.c.type == "customer.updated") & (processed_events.c.via == "webhook"),
    sqlite_where=(processed_events.c.type == "customer.updated") & (processed_events.c.via == "webhook"),
)
# Authoritative. A transaction that changes anything of an account locks the account's row first. The row has the ends
# of the account's sequences: the last audit row's number and hash, and the last binding's number. `entitled_seq` is the
# audit row up to which the entitlements were computed; -1: not yet, or by another catalog.
accounts: Final = _table(
    "accounts",
    _text("account", key=True),
    _integer("created_ms"),
    _integer("audit_seq"),
    _text("audit_hash"),
    _integer("binding_number"),
    Column("entitled_seq", INTEGER, nullable=False, server_default="-1"),
)
Index(
    "stale_accounts",
    accounts.c.account,
    postgresql_where=accounts.c.entitled_seq != accounts.c.audit_seq,
    sqlite_where=accounts.c.entitled_seq != accounts.c.audit_seq,
)
# Authoritative. A link ends where the account's next link starts. A row with the customer "" ends the link before it.
account_customers: Final = _table(
    "account_customers",
    _text("account", key=True),
    _integer("starts_ms", key=True),
    _text("customer_id"),
)
Index("account_customers_by_customer", account_customers.c.customer_id)
# Ledger and outbox. Every binding that was ever planned; `sent_ms` is NULL until the usage log has the binding.
account_bindings: Final = _table(
    "account_bindings",
    _text("account", key=True),
    _integer("number", key=True),
    _integer("effective_from_ms"),
    _integer("anchor_ms"),
    _text("interval"),
    _integer("interval_count"),
    _text("billing"),
    _text("stripe_customer"),
    _integer("planned_ms"),
    _integer("sent_ms", nullable=True),
)
Index(
    "due_bindings",
    account_bindings.c.account,
    account_bindings.c.number,
    postgresql_where=account_bindings.c.sent_ms.is_(None),
    sqlite_where=account_bindings.c.sent_ms.is_(None),
)
# Ledger. Who changed what. Each row's hash covers the row and the hash of the account's row before.
audit: Final = _table(
    "audit",
    _text("account", key=True),
    _integer("seq", key=True),
    _integer("at_ms"),
    _text("actor"),
    _text("cause"),
    _text("entity"),
    _text("entity_id"),
    Column("before_json", Text),
    Column("after_json", Text),
    _text("reason"),
    _text("hash"),
)
Index(
    "audit_overlaps",
    audit.c.account,
    audit.c.seq,
    postgresql_where=audit.c.entity == OVERLAP,
    sqlite_where=audit.c.entity == OVERLAP,
)
# Authoritative. Up to where each walker has read Stripe's list of events.
cursors: Final = _table("cursors", _text("name", key=True), _integer("until_s"), _integer("moved_ms"))
# Mirror. The prices of metered lines and items. Stripe changes nothing of what a row has, so a row stays.
prices: Final = _table("prices", _text("id", key=True), _text("event_name"), _text("title"), _text("terms"))
# Mirror. What the period-close controller noted of an invoice: where its bills stand, and when to look again.
closings: Final = _table(
    "closings",
    _text("invoice", key=True),
    _text("state"),
    _text("detail"),
    _integer("due_ms"),
    _text("summary"),
)
# Authoritative. The invoice items of late usage: a chain for each customer, meter and span, without gaps.
invoice_items: Final = _table(
    "invoice_items",
    _text("identifier", key=True),
    _text("stripe_customer"),
    _text("subscription"),
    _text("invoice"),
    _text("event_name"),
    _text("price"),
    _integer("start_ms"),
    _integer("end_ms"),
    _integer("number"),
    _text("from_quantity"),
    _text("to_quantity"),
    _integer("amount_minor"),
    _text("currency"),
    _integer("exponent"),
    _text("description"),
    _text("state"),
    _text("stripe_item"),
    _text("detail"),
    _integer("created_ms"),
    _integer("sent_ms", nullable=True),
    _integer("attempt"),
    CheckConstraint(f"state IN ({_ITEM_STATES})", name="invoice_items_state"),
)
Index(
    "invoice_items_by_chain",
    invoice_items.c.stripe_customer,
    invoice_items.c.event_name,
    invoice_items.c.start_ms,
    invoice_items.c.end_ms,
    invoice_items.c.number,
    unique=True,
)
Index(
    "unsent_invoice_items",
    invoice_items.c.created_ms,
    postgresql_where=invoice_items.c.state.in_(["intended", "held"]),
    sqlite_where=invoice_items.c.state.in_(["intended", "held"]),
)
# View of `billing.reports`. Each intent with its attempt in force, its outcome and the sender's progress. `at_ms` is
# the timestamp of the event, or the instant of the usage without an attempt.
intents: Final = _table(
    "intents",
    _text("identifier", key=True),
    _integer("log_partition"),
    _integer("log_offset"),
    _integer("livemode"),
    _text("stripe_account"),
    _text("log_id"),
    _text("meter"),
    _text("event_name"),
    _text("account"),
    _integer("period_start_ms"),
    _integer("period_end_ms"),
    _integer("bucket_start_ms"),
    _integer("bucket_end_ms"),
    Column("delta_minor", WholeNumber, nullable=False),
    _integer("scale"),
    _integer("revision"),
    _text("state"),
    Column("attempt_customer", Text),
    _integer("timestamp_s", nullable=True),
    Column("value", Text),
    _integer("attempted_at_ms", nullable=True),
    _integer("replaces_ms", nullable=True),
    _text("stripe_customer"),
    _integer("at_ms"),
    _text("hold"),
    _text("detail"),
    _integer("settled_at_ms", nullable=True),
    _integer("in_doubt"),
    _integer("not_before_ms"),
    _integer("failures"),
    _integer("absent_at_ms", nullable=True),
    Column("drawn_minor", WholeNumber),
    CheckConstraint(f"state IN ({_STATES})", name="intents_state"),
)
Index("intents_by_customer", intents.c.stripe_customer, intents.c.event_name, intents.c.at_ms)
Index("intents_by_account", intents.c.account, intents.c.identifier)
Index(
    "pending_intents",
    intents.c.log_partition,
    intents.c.not_before_ms,
    intents.c.log_offset,
    postgresql_where=intents.c.state == "pending",
    sqlite_where=intents.c.state == "pending",
)
# What Stripe does not bill is looked for across all accounts.
Index(
    "unbilled_intents",
    intents.c.identifier,
    postgresql_where=intents.c.state.in_(["dead", "late"]),
    sqlite_where=intents.c.state.in_(["dead", "late"]),
)

_PLAN_STATES: Final = ", ".join(f"'{state}'" for state in PlanState)
# Authoritative. Each catalog that was applied, whole. At most one is `active`, and at most one is being applied.
catalog_versions: Final = _table(
    "catalog_versions",
    _integer("version", key=True),
    _text("sha256"),
    _text("body"),
    _text("state"),
    _integer("applied_ms"),
    _text("applied_by"),
    _text("reason"),
    CheckConstraint("state IN ('applying', 'active', 'replaced')", name="catalog_versions_state"),
)
# Authoritative. Each version of a plan or an add-on with its terms, for ever.
plan_versions: Final = _table(
    "plan_versions",
    _text("plan", key=True),
    _integer("version", key=True),
    _text("kind"),
    _integer("catalog_version"),
    _text("body"),
    _text("state"),
    CheckConstraint("kind IN ('plan', 'addon')", name="plan_versions_kind"),
    CheckConstraint(f"state IN ({_PLAN_STATES})", name="plan_versions_state"),
)
# Authoritative. Which object at Stripe a key of the catalog names. A price's row says for ever what it is the price of.
stripe_objects: Final = _table(
    "stripe_objects",
    _text("lookup_key", key=True),
    _text("kind", key=True),
    _text("stripe_id"),
    Column("plan", Text),
    _integer("plan_version", nullable=True),
    _text("component"),
    _text("price_interval"),
    _text("currency"),
)
Index("stripe_objects_by_stripe_id", stripe_objects.c.stripe_id, unique=True)

# Authoritative. What people granted to an account, or took from it.
overrides: Final = _table(
    "overrides",
    _text("account", key=True),
    _integer("number", key=True),
    _text("feature"),
    _text("kind"),
    _text("source"),
    _text("operation"),
    _text("value_json"),
    _integer("starts_ms"),
    _integer("ends_ms", nullable=True),
    _text("actor"),
    _text("reason"),
    _integer("made_ms"),
    _integer("revoked_ms", nullable=True),
)
# Derived, and a ledger: recomputed from the other tables, and each version stays. `number` rises over all accounts.
entitlement_versions: Final = _table(
    "entitlement_versions",
    _text("account", key=True),
    _integer("version", key=True),
    _integer("computed_ms"),
    _text("inputs_sha256"),
    _text("segments_json"),
    _text("cause"),
    _integer("number"),
)
Index("entitlement_versions_by_number", entitlement_versions.c.number)
# Authoritative. What is promised to a caller, or was. Quantities are decimal text. `request_key`: the caller's name of
# the request, or "". `until_ms`: up to when the usage may have arrived.
holds: Final = _table(
    "holds",
    _text("id", key=True),
    _text("account"),
    _text("feature"),
    _text("quantity"),
    _integer("taken_ms"),
    _integer("expires_ms"),
    _integer("is_metered"),
    _text("request_key"),
    Column("used", Text),
    _integer("ended_ms", nullable=True),
    _integer("until_ms"),
)
Index(
    "holds_by_request",
    holds.c.account,
    holds.c.request_key,
    unique=True,
    postgresql_where=holds.c.request_key != "",
    sqlite_where=holds.c.request_key != "",
)
Index("open_holds", holds.c.account, holds.c.until_ms)
Index("holds_by_end", holds.c.until_ms, holds.c.account)

# Outbox and ledger. Each notice through each channel, once: the id follows from the fact, so the fact is the key twice.
notices: Final = _table(
    "notices",
    _text("id", key=True),
    _text("channel", key=True),
    _text("kind"),
    _text("account"),
    _text("subject"),
    _integer("period_start_ms"),
    _integer("period_end_ms"),
    _integer("percent"),
    _text("body"),
    _integer("made_ms"),
    _text("state"),
    _integer("attempts"),
    _integer("failures"),
    _integer("due_ms"),
    _text("detail"),
    _integer("settled_ms", nullable=True),
    CheckConstraint(f"state IN ({_DELIVERY_STATES})", name="notices_state"),
)
Index(
    "notices_by_fact",
    notices.c.account,
    notices.c.kind,
    notices.c.subject,
    notices.c.period_start_ms,
    notices.c.percent,
    notices.c.channel,
    unique=True,
)
Index("notices_by_time", notices.c.made_ms, notices.c.id, notices.c.channel)
Index("notices_by_period_end", notices.c.period_end_ms)
Index(
    "waiting_notices",
    notices.c.due_ms,
    notices.c.id,
    postgresql_where=notices.c.state == "waiting",
    sqlite_where=notices.c.state == "waiting",
)
Index(
    "dead_notices",
    notices.c.id,
    postgresql_where=notices.c.state == "dead",
    sqlite_where=notices.c.state == "dead",
)

_MOVE_STATES: Final = ", ".join(f"'{state}'" for state in MoveState)
# Authoritative. The moves of subscriptions to another version of their plan; `stripe_schedule` is "" until it is known.
plan_moves: Final = _table(
    "plan_moves",
    _text("subscription", key=True),
    _integer("number", key=True),
    _text("plan"),
    _integer("from_version"),
    _integer("to_version"),
    _text("account"),
    _text("state"),
    _integer("made_ms"),
    _integer("sent_ms", nullable=True),
    _text("stripe_schedule"),
    _text("detail"),
    CheckConstraint(f"state IN ({_MOVE_STATES})", name="plan_moves_state"),
)

_FETCHED: Final = frozenset(TABLE_OF.values())
_COUNTS: Final = frozenset({"attempt_count", "deleted", "exponent", "interval_count", "is_proration", "priority"})
# An item has a number of seats. A line may have a decimal fraction, so its quantity is text.
_SEATS: Final = ("subscription_items", "quantity")


def _mirror(name: str) -> Table:
    """A mirror table. Only the key is required: Stripe may be in any state, and of an object that was gone before the
    first fetch no more than the id is known."""
    key, *others = MIRROR_COLUMNS[name]
    columns: list[Column[Any]] = [_text(key, key=True)]
    for other in others:
        whole = other.endswith(("_ms", "_minor")) or other in _COUNTS or (name, other) == _SEATS
        columns.append(Column(other, INTEGER if whole else Text()))
    if name in _FETCHED:
        columns += [_integer("fetch_seq"), _integer("fetched_ms")]
    return _table(name, *columns)


# Mirror. `fetch_seq` counts the fetches that were written, `fetched_ms` is the time of the last one.
mirror: Final = {name: _mirror(name) for name in MIRROR_COLUMNS}
for _name, _owner in (
    *PARTS_OF.values(),
    *((name, "customer_id") for name in TABLE_OF.values() if name != "stripe_customers"),
):
    Index(f"{_name}_by_{_owner}", mirror[_name].c[_owner])
Index("credit_notes_by_invoice", mirror["credit_notes"].c.invoice_id)
_drafts: Final = mirror["invoices"].c
Index(
    "draft_invoices",
    _drafts.finalizes_ms,
    postgresql_where=_drafts.status == "draft",
    sqlite_where=_drafts.status == "draft",
)
Index(
    "unfinalized_invoices",
    _drafts.created_ms,
    postgresql_where=_drafts.finalization_error.is_not(None),
    sqlite_where=_drafts.finalization_error.is_not(None),
)


def customer_column(kind: ObjectKind) -> str:
    """The column of a kind's own table that has the customer's id."""
    return "id" if kind is ObjectKind.CUSTOMER else "customer_id"
