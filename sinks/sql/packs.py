"""Purchases of packs, and the lines of invoices that sell them, in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, RowMapping, and_, cast, func, or_, select, update

from schemas.catalog_changes import CatalogKind
from schemas.packs import How, LostLine, PackLine, Purchase, PurchaseState
from sinks.sql import audit
from sinks.sql.credit_tables import credit_grants
from sinks.sql.grant_tables import credit_purchases, pack_lines
from sinks.sql.intents import Run
from sinks.sql.queries import Head, insert_new, links_of, lock_accounts, save_heads
from sinks.sql.tables import INTEGER, account_customers, catalog_versions, mirror, stripe_objects

ENTITY: Final = "credit_purchase"
CAUSE: Final = "credits"
_OPEN: Final = (PurchaseState.WANTED.value, PurchaseState.OPEN.value)
_PACK: Final = "tm.pack."


class SqlPacks:
    """Implements `schemas.packs.Packs`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def buy(self, purchase: Purchase) -> Purchase:
        return await self._run(lambda connection: _bought(connection, purchase))

    async def purchase(self, account: str, identifier: str) -> Purchase | None:
        here = (credit_purchases.c.id == identifier) & (credit_purchases.c.account == account)
        found = await self._listed(select(credit_purchases).where(here))
        return found[0] if found else None

    async def sent(self, identifier: str, now_ms: int) -> Purchase:
        here = credit_purchases.c.id == identifier

        def body(connection: Connection) -> Purchase:
            row = connection.execute(select(credit_purchases).where(here).with_for_update()).mappings().one()
            first_ms = now_ms if row["sent_ms"] is None else row["sent_ms"]
            connection.execute(update(credit_purchases).where(here).values(sent_ms=first_ms, touched_ms=now_ms))
            return _purchase({**row, "sent_ms": first_ms})

        return await self._run(body)

    async def settle(
        self, purchase: Purchase, state: PurchaseState, now_ms: int, *, session: str = "", url: str = "",
        invoice: str = "", detail: str = "",
    ) -> Purchase:  # fmt: skip
        changes: dict[str, Any] = {
            "state": state.value, "session": session or purchase.session, "url": url,
            "invoice": invoice or purchase.invoice, "detail": detail,
            "ended_ms": None if state.value in _OPEN else now_ms,
        }  # fmt: skip
        return await self._run(lambda connection: _moved(connection, purchase, changes, now_ms))

    async def due(self, wanted_ms: int, open_ms: int, limit: int) -> Sequence[Purchase]:
        column = credit_purchases.c
        is_wanted = and_(column.state == PurchaseState.WANTED.value, column.touched_ms <= wanted_ms)
        is_open = and_(column.state == PurchaseState.OPEN.value, column.touched_ms <= open_ms)
        wanted = select(credit_purchases).where(column.state.in_(_OPEN), or_(is_wanted, is_open))
        return await self._listed(wanted.order_by(column.touched_ms, column.id).limit(limit))

    async def of_account(self, account: str, limit: int = 100) -> Sequence[Purchase]:
        column = credit_purchases.c
        wanted = select(credit_purchases).where(column.account == account)
        return await self._listed(wanted.order_by(column.made_ms.desc(), column.id).limit(limit))

    async def unpacked(self, limit: int) -> Sequence[PackLine]:
        return await self._run(lambda connection: _unpacked(connection, limit))

    async def granted(self, line: PackLine, pool: str, grant: str) -> None:
        row = {
            "line": line.line, "invoice": line.invoice, "account": line.account, "pool": pool, "grant_key": grant,
            "number": line.number + 1, "is_granted": 1, "noted_ms": line.paid_ms,
        }  # fmt: skip
        here = (pack_lines.c.line == line.line) & (pack_lines.c.number == line.number)

        def body(connection: Connection) -> None:
            if not insert_new(connection, pack_lines, [row]):
                connection.execute(update(pack_lines).where(here).values(**row))

        await self._run(body)

    async def lost(self, limit: int) -> Sequence[LostLine]:
        return await self._run(lambda connection: _lost(connection, limit))

    async def taken_back(self, line: LostLine) -> None:
        here = (pack_lines.c.line == line.line) & (pack_lines.c.grant_key == line.grant)
        await self._run(lambda connection: connection.execute(update(pack_lines).where(here).values(is_granted=0)))

    async def low(self, pool: str, below: int, now_ms: int, limit: int) -> Sequence[str]:
        row, grant, top_up = pack_lines.c, credit_grants.c, credit_purchases.c
        left = _sum(grant.remaining).where(
            grant.account == row.account, grant.pool == pool, grant.voided_ms.is_(None),
            or_(grant.expires_ms.is_(None), grant.expires_ms > now_ms),
        )  # fmt: skip
        last = select(func.max(top_up.made_ms)).where(top_up.account == row.account, top_up.pool == pool)
        wanted = select(row.account).where(row.pool == pool, row.is_granted == 1, left.scalar_subquery() < below)
        wanted = wanted.group_by(row.account).order_by(func.coalesce(last.scalar_subquery(), 0), row.account)
        return await self._run(lambda connection: list(connection.execute(wanted.limit(limit)).scalars()))

    async def topped(self, account: str, pool: str, since_ms: int) -> Sequence[Purchase]:
        column = credit_purchases.c
        own = and_(column.account == account, column.pool == pool, column.how == How.TOP_UP.value)
        wanted = select(credit_purchases).where(own, or_(column.made_ms >= since_ms, column.state.in_(_OPEN)))
        return await self._listed(wanted.order_by(column.made_ms.desc(), column.id))

    async def pack_credits(self, pool: str, pack: str, version: int) -> int | None:
        wanted = select(catalog_versions.c.body).order_by(catalog_versions.c.version.desc())

        def body(connection: Connection) -> int | None:
            for text in connection.execute(wanted).scalars():
                pools = msgspec.json.decode(text).get("credit_pools") or {}
                terms = (pools.get(pool) or {}).get("packs", {}).get(pack)
                if terms and terms.get("version", 1) == version:
                    return int(terms["credits"])
            return None

        return await self._run(body)

    async def is_unpacked(self, invoice: str) -> bool:
        wanted = select(pack_lines.c.line).where(pack_lines.c.invoice == invoice, pack_lines.c.is_granted == 1)
        return await self._run(lambda connection: connection.execute(wanted.limit(1)).first() is not None)

    async def currency(self, customer: str) -> str:
        row = mirror["stripe_customers"].c
        wanted = select(row.currency).where(row.id == customer)
        return await self._run(lambda connection: connection.execute(wanted).scalar() or "")

    async def _listed(self, wanted: Any) -> Sequence[Purchase]:
        return await self._run(lambda connection: [_purchase(row) for row in connection.execute(wanted).mappings()])


def _bought(connection: Connection, purchase: Purchase) -> Purchase:
    heads, column = lock_accounts(connection, {purchase.account}), credit_purchases.c
    is_same = column.id == purchase.id
    if purchase.how is How.TOP_UP:
        in_flight = and_(column.account == purchase.account, column.pool == purchase.pool, column.how == "top_up")
        is_same = or_(is_same, and_(in_flight, column.state.in_(_OPEN)))
    known = connection.execute(select(credit_purchases).where(is_same)).mappings().first()
    if known is not None:
        return _purchase(known)
    row = _row(purchase)
    insert_new(connection, credit_purchases, [{**row, "touched_ms": purchase.made_ms}])
    _note(connection, heads[purchase.account], purchase, purchase.made_ms, purchase.by, {}, row)
    save_heads(connection, heads)
    return purchase


def _moved(connection: Connection, purchase: Purchase, changes: Mapping[str, Any], now_ms: int) -> Purchase:
    heads, here = lock_accounts(connection, {purchase.account}), credit_purchases.c.id == purchase.id
    is_so = here & (credit_purchases.c.state == purchase.state.value)
    if connection.execute(update(credit_purchases).where(is_so).values(**changes, touched_ms=now_ms)).rowcount:
        before = _row(purchase)
        differs = {name for name, value in changes.items() if before[name] != value}
        if differs:
            sides = {name: before[name] for name in differs}, {name: changes[name] for name in differs}
            _note(connection, heads[purchase.account], purchase, now_ms, CAUSE, *sides)
            save_heads(connection, heads)
    return _purchase(connection.execute(select(credit_purchases).where(here)).mappings().one())


def _note(
    connection: Connection, head: Head, purchase: Purchase, now_ms: int, by: str, before: Any, after: Any
) -> None:
    # Whoever has the address of a page can pay there, or act there for the customer.
    shown = [{name: value for name, value in side.items() if not name.endswith("url")} for side in (before, after)]
    trail = audit.next_row(
        head, purchase.account, now_ms, actor=by, cause=CAUSE, entity=(ENTITY, purchase.id), before=shown[0],
        after=shown[1], reason=f"{purchase.quantity} x {purchase.pool}.{purchase.pack}",
    )  # fmt: skip
    audit.append(connection, [(trail, head.audit_hash)])


def _unpacked(connection: Connection, limit: int) -> list[PackLine]:
    """Each line with the account that its customer is linked to, or was linked to last."""
    line, invoice, sold, known = mirror["invoice_lines"].c, mirror["invoices"].c, stripe_objects.c, pack_lines.c
    wanted = (
        select(
            invoice.id.label("invoice"), line.id.label("line"), invoice.customer_id, sold.lookup_key, line.quantity,
            (line.amount_minor - line.discount_minor).label("paid_minor"), invoice.currency, invoice.exponent,
            invoice.paid_ms, func.coalesce(known.number, 0).label("number"),
        )
        .join(mirror["invoice_lines"], line.price_id == sold.stripe_id)
        .join(mirror["invoices"], invoice.id == line.invoice_id)
        .join(pack_lines, known.line == line.id, isouter=True)
        .where(sold.kind == CatalogKind.PRICE.value, sold.lookup_key.like(f"{_PACK}%"), invoice.status == "paid")
        .where(or_(line.quantity.is_(None), line.quantity != "0"))
        # A payment that was given back stays `paid`; one that failed later is paid anew, at a later instant than the
        # payment for which the line was granted.
        .where(or_(known.is_granted.is_(None), and_(known.is_granted == 0, invoice.paid_ms > known.noted_ms)))
        .where(invoice.customer_id.in_(select(account_customers.c.customer_id)))
        .order_by(invoice.paid_ms, line.id)
        .limit(limit)
    )  # fmt: skip
    rows = connection.execute(wanted).mappings().all()
    accounts = {row["customer_id"]: _account(connection, row["customer_id"]) for row in rows}
    return [
        PackLine(
            row["invoice"], row["line"], accounts[row["customer_id"]], row["customer_id"], row["lookup_key"],
            int(Decimal(row["quantity"] or 1)), row["paid_minor"] or 0, row["currency"], row["exponent"],
            row["paid_ms"] or 0, row["number"],
        )
        for row in rows
        if accounts[row["customer_id"]]
    ]  # fmt: skip


def _lost(connection: Connection, limit: int) -> list[LostLine]:
    """The whole invoice was given back, or a credit note took the line back. Part of an invoice takes no credits."""
    row, invoice, line = pack_lines.c, mirror["invoices"].c, mirror["invoice_lines"].c
    refund, dispute, note = mirror["refunds"].c, mirror["disputes"].c, mirror["credit_notes"].c
    noted = mirror["credit_note_lines"].c
    refunded = _sum(refund.amount_minor).where(refund.invoice_id == row.invoice, refund.status == "succeeded")
    disputed = _sum(dispute.amount_minor).where(dispute.invoice_id == row.invoice, dispute.status == "lost")
    credited = _sum(note.total_minor).where(note.invoice_id == row.invoice, note.status == "issued")
    of_line = _sum(noted.amount_minor).join(mirror["credit_notes"], note.id == noted.credit_note_id)
    of_line = of_line.where(noted.invoice_line_id == row.line, note.status == "issued")
    is_given_back = or_(
        refunded.scalar_subquery() + disputed.scalar_subquery() >= invoice.total_minor,
        credited.scalar_subquery() >= invoice.total_minor,
        of_line.scalar_subquery() >= line.amount_minor,
    )
    was_paid = and_(invoice.total_minor > 0, line.amount_minor > 0)
    is_lost = or_(invoice.status != "paid", invoice.deleted == 1, and_(was_paid, is_given_back))
    wanted = (
        select(row.invoice, row.line, row.account, row.pool, row.grant_key, invoice.status)
        .join(mirror["invoices"], invoice.id == row.invoice)
        .join(mirror["invoice_lines"], line.id == row.line)
        .where(row.is_granted == 1, is_lost)
        .order_by(row.noted_ms, row.line)
        .limit(limit)
    )
    return [LostLine(*each[:5], _why(each.status)) for each in connection.execute(wanted)]


def _sum(column: Any) -> Any:
    # The fake's sums are text.
    return select(cast(func.coalesce(func.sum(column), 0), INTEGER))


def _account(connection: Connection, customer: str) -> str:
    wanted = select(account_customers.c.account).where(account_customers.c.customer_id == customer)
    names = set(connection.execute(wanted).scalars())
    links = [link for own in links_of(connection, names).values() for link in own if link.customer == customer]
    return max(links, key=lambda link: link.starts_ms).account if links else ""


def _why(status: str | None) -> str:
    words = {
        "void": "the invoice was voided", "uncollectible": "the invoice was written off",
        "paid": "the payment was given back",
    }  # fmt: skip
    return words.get(status or "", "the payment failed later")


def _row(purchase: Purchase) -> dict[str, Any]:
    return {**purchase._asdict(), "how": purchase.how.value, "state": purchase.state.value}


def _purchase(row: RowMapping | Mapping[str, Any]) -> Purchase:
    fields = {name: row[name] for name in Purchase._fields if name not in ("how", "state")}
    return Purchase(**fields, how=How(row["how"]), state=PurchaseState(row["state"]))
