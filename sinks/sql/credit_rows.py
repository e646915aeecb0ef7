"""The rows of credits: grants, debts, coverage and the ledger, read and written in a transaction of the caller."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, select, update

from schemas.credits import AccountCredits, Category, Coverage, CreditEntry, CreditGrant, Debt, EntryKind, Money
from sinks.sql.credit_tables import credit_coverage, credit_debts, credit_grants

_MONEY: Final = ("paid_minor", "currency", "exponent")


def of_account(connection: Connection, account: str) -> AccountCredits:
    """All of an account."""
    coverage: dict[tuple[str, int], list[Coverage]] = {}
    wanted = select(credit_coverage).where(credit_coverage.c.account == account)
    for row in connection.execute(wanted).mappings():
        each = Coverage(row["pool"], Fraction(row["rate"]), row["covered"])
        coverage.setdefault((row["meter"], row["period_start_ms"]), []).append(each)
    grants = grants_where(connection, credit_grants.c.account == account)
    debts = debts_of(connection, account, is_open=False)
    return AccountCredits(grants, debts, coverage)


def grants_where(connection: Connection, where: Any) -> list[CreditGrant]:
    """Some grants, in the order in which they were made."""
    wanted = select(credit_grants).where(where).order_by(credit_grants.c.made_ms, credit_grants.c.id)
    return [grant_of(row) for row in connection.execute(wanted).mappings()]


def debts_of(connection: Connection, account: str, *, is_open: bool = True) -> list[Debt]:
    """The debts of an account, the oldest first; those that are paid too unless `is_open`."""
    wanted = select(credit_debts).where(credit_debts.c.account == account)
    if is_open:
        wanted = wanted.where(credit_debts.c.open > 0)
    wanted = wanted.order_by(credit_debts.c.made_ms, credit_debts.c.source_key)
    return [Debt(**row) for row in connection.execute(wanted).mappings()]


def save_debt(connection: Connection, debt: Debt, now_ms: int) -> None:
    """Write what is still open of a debt."""
    is_it = (credit_debts.c.account == debt.account) & (credit_debts.c.source_key == debt.source_key)
    values = {"open": debt.open, "settled_ms": None if debt.open else now_ms}
    connection.execute(update(credit_debts).where(is_it).values(values))


def save_grant(connection: Connection, grant: CreditGrant) -> None:
    """Write what usage and people change of a grant."""
    values = {name: getattr(grant, name) for name in ("remaining", "rolled", "voided_ms")}
    connection.execute(update(credit_grants).where(credit_grants.c.id == grant.id).values(values))


def grant_of(row: Mapping[Any, Any]) -> CreditGrant:
    """The grant of a row."""
    values = {name: row[name] for name in CreditGrant._fields if name != "paid"}
    values["category"] = Category(values["category"])
    return CreditGrant(
        **values, paid=None if row["paid_minor"] is None else Money(*(row[name] for name in _MONEY))
    )  # fmt: skip


def grant_row(grant: CreditGrant) -> dict[str, Any]:
    """The row of a grant."""
    row = {**grant._asdict(), "category": grant.category.value}
    del row["paid"]
    return row | dict(zip(_MONEY, grant.paid or (None, None, None), strict=True))


def entry_of(row: RowMapping) -> CreditEntry:
    """The entry of a row of the ledger."""
    return CreditEntry(
        row["account"], row["number"], row["grant_id"], EntryKind(row["kind"]), row["credits"], row["source_key"],
        row["at_ms"], row["meter"], row["period_start_ms"],
    )  # fmt: skip
