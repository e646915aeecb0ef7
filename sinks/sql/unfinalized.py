"""Invoices that cannot become final, in the mirror."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import func, select

from schemas.invoices import UnfinalizedInvoice
from sinks.sql.intents import Run
from sinks.sql.tables import account_customers, mirror

_INVOICE: Final = mirror["invoices"].c
_IS_STUCK: Final = (_INVOICE.finalization_error.is_not(None), _INVOICE.status == "draft")


class SqlUnfinalized:
    """Implements `schemas.invoices.UnfinalizedInvoices`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def count(self) -> int:
        wanted = select(func.count()).where(*_IS_STUCK)
        return await self._run(lambda connection: connection.execute(wanted).scalar_one())

    async def listed(self, limit: int = 100) -> Sequence[UnfinalizedInvoice]:
        link = account_customers.c
        account = select(func.max(link.account)).where(link.customer_id == _INVOICE.customer_id).scalar_subquery()
        wanted = select(
            _INVOICE.id, account, _INVOICE.customer_id, _INVOICE.subscription_id, _INVOICE.finalization_error,
            _INVOICE.created_ms, _INVOICE.total_minor, _INVOICE.currency, _INVOICE.exponent,
        ).where(*_IS_STUCK).order_by(_INVOICE.created_ms, _INVOICE.id).limit(limit)  # fmt: skip
        return await self._run(lambda connection: [_read(row) for row in connection.execute(wanted)])


def _read(row: Any) -> UnfinalizedInvoice:
    invoice, account, customer, subscription, error, created_ms, total_minor, currency, exponent = row
    places = 2 if exponent is None else exponent
    return UnfinalizedInvoice(
        invoice, account or "", customer or "", subscription or "", error, created_ms or 0, total_minor or 0,
        currency or "", places,
    )  # fmt: skip
