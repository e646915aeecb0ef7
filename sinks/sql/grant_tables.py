"""Credit grants that Stripe is to have, and packs of credits that are bought (`sinks/sql/tables.py` says more)."""

from __future__ import annotations

from typing import Final

from sqlalchemy import CheckConstraint, Column, Index, Text

from schemas.packs import How, PurchaseState
from schemas.stripe_credits import OrderState
from sinks.sql.tables import integer, mirror, table, text

_ORDER_STATES: Final = ", ".join(f"'{state}'" for state in OrderState)
_PURCHASE_STATES: Final = ", ".join(f"'{state}'" for state in PurchaseState)
_HOW: Final = ", ".join(f"'{how}'" for how in How)
_OPEN: Final = [PurchaseState.WANTED.value, PurchaseState.OPEN.value]
_WAITING: Final = [OrderState.WANTED.value, OrderState.ENDING.value]

# Authoritative and outbox. `schemas.stripe_credits.GrantOrder`. `touched_ms`: when somebody last asked Stripe, or
# decided.
grant_orders: Final = table(
    "stripe_grant_orders",
    text("key", key=True),
    text("account"),
    text("customer"),
    text("pool"),
    text("source"),
    integer("amount_minor"),
    text("currency"),
    text("prices_json"),
    integer("priority"),
    integer("effective_ms"),
    integer("expires_ms", nullable=True),
    integer("made_ms"),
    text("by"),
    text("reason"),
    text("state"),
    integer("sent_ms", nullable=True),
    Column("stripe_id", Text, nullable=False),
    text("detail"),
    integer("touched_ms"),
    CheckConstraint(f"state IN ({_ORDER_STATES})", name="stripe_grant_orders_state"),
)
Index("stripe_grant_orders_by_account", grant_orders.c.account, grant_orders.c.made_ms)
Index(
    "waiting_stripe_grant_orders",
    grant_orders.c.touched_ms,
    postgresql_where=grant_orders.c.state.in_(_WAITING),
    sqlite_where=grant_orders.c.state.in_(_WAITING),
)

# Authoritative. `schemas.packs.Purchase`. `touched_ms`: when somebody last asked Stripe, or looked there.
credit_purchases: Final = table(
    "credit_purchases",
    text("id", key=True),
    text("account"),
    text("customer"),
    text("pool"),
    text("pack"),
    integer("version"),
    text("price"),
    text("currency"),
    integer("credits"),
    integer("quantity"),
    text("how"),
    text("return_url"),
    text("by"),
    integer("made_ms"),
    text("state"),
    integer("sent_ms", nullable=True),
    text("session"),
    text("url"),
    text("invoice"),
    text("detail"),
    integer("ended_ms", nullable=True),
    integer("touched_ms"),
    CheckConstraint(f"state IN ({_PURCHASE_STATES})", name="credit_purchases_state"),
    CheckConstraint(f"how IN ({_HOW})", name="credit_purchases_how"),
)
Index("credit_purchases_by_account", credit_purchases.c.account, credit_purchases.c.made_ms)
Index(
    "open_credit_purchases",
    credit_purchases.c.touched_ms,
    postgresql_where=credit_purchases.c.state.in_(_OPEN),
    sqlite_where=credit_purchases.c.state.in_(_OPEN),
)
# A top-up charges a card without asking: one at a time.
Index(
    "one_top_up",
    credit_purchases.c.account,
    credit_purchases.c.pool,
    unique=True,
    postgresql_where=(credit_purchases.c.how == "top_up") & credit_purchases.c.state.in_(_OPEN),
    sqlite_where=(credit_purchases.c.how == "top_up") & credit_purchases.c.state.in_(_OPEN),
)
# Ledger. The lines of invoices whose credits were granted, under which key of a grant, and how often: a payment may be
# taken back and made again.
pack_lines: Final = table(
    "pack_lines",
    text("line", key=True),
    text("invoice"),
    text("account"),
    text("pool"),
    text("grant_key"),
    integer("number"),
    integer("is_granted"),
    integer("noted_ms"),
)
Index("pack_lines_by_pool", pack_lines.c.pool, pack_lines.c.account)
Index(
    "granted_pack_lines",
    pack_lines.c.invoice,
    postgresql_where=pack_lines.c.is_granted == 1,
    sqlite_where=pack_lines.c.is_granted == 1,
)
# The lines that sell packs are looked for by their prices among those of all invoices.
Index("invoice_lines_by_price", mirror["invoice_lines"].c.price_id)
