"""What SQL has of one account, for people who look at it: what it subscribes to, its invoices and its audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from schemas.side_tables import AuditRow, Row


class InvoiceRecord(NamedTuple):
    """An invoice with its lines, as rows of the mirror."""

    invoice: Row
    lines: Sequence[Row]


class AccountRecords(Protocol):
    """Reads one account. Every call may raise `Transient`; an unknown account has no rows."""

    async def mirrored_of(self, account: str, now_ms: int) -> Mapping[str, Sequence[Row]]:
        """The mirror's rows of the customer to whom the account is linked now, without invoices and their lines."""
        ...

    async def invoices(self, account: str, limit: int, before: str = "") -> Sequence[Row]:
        """A page of the account's invoices that are no drafts, newest first; `before` is `invoice_cursor` of the last
        one of the page before. Of a customer that belonged to several accounts, those of this account's time. Raises
        `InvalidInput` for another `before`."""
        ...

    async def invoice(self, account: str, identifier: str, lines_max: int) -> InvoiceRecord | None:
        """One of the invoices that `invoices` lists, with its first lines."""
        ...

    async def accounts_of_invoice(self, identifier: str) -> Sequence[str]:
        """The accounts whose customer an invoice is for, and that see it."""
        ...

    async def audit_before(self, account: str, limit: int, before: int | None = None) -> Sequence[AuditRow]:
        """A page of the account's audit rows, the newest first, behind the number `before`."""
        ...


def invoice_cursor(row: Row) -> str:
    """The text behind which the next page of `AccountRecords.invoices` begins."""
    return f"{row['created_ms']}.{row['id']}"
