"""Final invoices as revenue reads them: lines, credit notes, and the usage behind the lines of meters, page by page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from schemas.clock import DAY_MS
from schemas.credits import EntryKind
from schemas.intent_ledger import IntentState
from schemas.recognition import CreditUse, InvoiceBook
from sinks.sql.credit_tables import credit_grants, credit_ledger
from sinks.sql.grant_tables import grant_orders, pack_lines
from sinks.sql.intents import Run
from sinks.sql.queries import Values, mirror_row, rows_where
from sinks.sql.tables import intents, mirror, prices, stripe_objects

# Invoices of a page. Each may have a hundred lines.
PAGE_INVOICES: Final = 500
# The lookup keys of packs (`aggregators.packs.name_of`).
_PACK: Final = "tm.pack."
# A draw, what a correction gave back, and a debt that was paid: those are usage.
_DRAWN: Final = (EntryKind.DRAW, EntryKind.RETURN, EntryKind.DEBT)
# What an invoice bills; late usage has an item of its own.
_BILLED: Final = (IntentState.ACCEPTED, IntentState.PENDING)
_INVOICES: Final = mirror["invoices"]
_PAGE: Final = (
    select(_INVOICES)
    .where(_INVOICES.c.id > bindparam("after"), _INVOICES.c.finalized_ms.is_not(None))
    .order_by(_INVOICES.c.id)
    .limit(bindparam("rows"))
)
_ITEMS: Final = mirror["subscription_items"].c
_METERED: Final = (
    select(_ITEMS.price_id)
    .distinct()
    .where(_ITEMS.usage_type == "metered", _ITEMS.price_id.in_(bindparam("wanted", expanding=True)))
)


class SqlInvoiceBooks:
    """Implements `schemas.recognition.InvoiceBooks`, whose docstrings hold."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def books(self) -> AsyncIterator[Sequence[InvoiceBook]]:
        after = ""
        while page := await self._run(partial(_page, after)):
            after = str(page[-1].invoice["id"])
            yield page


def _page(after: str, connection: Connection) -> list[InvoiceBook]:
    found = connection.execute(_PAGE, {"after": after, "rows": PAGE_INVOICES}).mappings()
    invoices = [mirror_row("invoices", dict(row)) for row in found]
    ids = [row["id"] for row in invoices]
    lines = _by(_rows(connection, "invoice_lines", "invoice_id", ids), "invoice_id")
    notes = _by(_rows(connection, "credit_notes", "invoice_id", ids), "invoice_id")
    note_ids = [note["id"] for own in notes.values() for note in own]
    note_lines = _by(_rows(connection, "credit_note_lines", "credit_note_id", note_ids), "credit_note_id")
    metered, credits_of = _usage(connection, invoices, lines), _credits(connection, lines)
    return [
        InvoiceBook(
            row,
            lines[row["id"]],
            notes[row["id"]],
            [line for note in notes[row["id"]] for line in note_lines[note["id"]]],
            {line["id"]: metered[line["id"]] for line in lines[row["id"]] if line["id"] in metered},
            {line["id"]: credits_of[line["id"]] for line in lines[row["id"]] if line["id"] in credits_of},
        )
        for row in invoices
    ]


def _rows(connection: Connection, name: str, column: str, values: Sequence[str]) -> list[Values]:
    found = [mirror_row(name, row) for row in rows_where(connection, mirror[name], column, values)]
    return sorted(found, key=lambda row: str(row["id"]))


def _by(rows: Sequence[Values], column: str) -> Mapping[str, list[Values]]:
    found: dict[str, list[Values]] = defaultdict(list)
    for row in rows:
        found[row[column]].append(row)
    return found


def _usage(
    connection: Connection, invoices: Sequence[Values], lines: Mapping[str, Sequence[Values]]
) -> dict[str, Sequence[tuple[int, int]]]:
    """The reported quantities behind each line of a meter, by day."""
    listed = [(row, line) for row in invoices for line in lines[row["id"]]]
    wanted = {line["price_id"] for _, line in listed if line["price_id"]}
    meters = {row["id"]: row["event_name"] for row in rows_where(connection, prices, "id", wanted) if row["event_name"]}
    # The period-close controller notes the prices of meters; a line of which it knows none yet is usage all the same.
    metered = set(connection.execute(_METERED, {"wanted": sorted(wanted)}).scalars()) | meters.keys()
    return {
        line["id"]: _days(connection, row["customer_id"], meters.get(line["price_id"], ""), line)
        for row, line in listed
        if line["price_id"] in metered and not line["is_proration"]
    }


def _days(connection: Connection, customer: str, event_name: str, line: Values) -> Sequence[tuple[int, int]]:
    day = (intents.c.at_ms // DAY_MS).label("day")
    # What credits paid is not on the invoice.
    billed_minor = intents.c.delta_minor - func.coalesce(intents.c.drawn_minor, 0)
    found = connection.execute(
        select(day, func.sum(billed_minor))
        .where(intents.c.stripe_customer == customer, intents.c.event_name == event_name)
        .where(intents.c.at_ms >= line["start_ms"], intents.c.at_ms < line["end_ms"])
        .where(intents.c.state.in_([state.value for state in _BILLED]))
        .group_by(day)
        .order_by(day)
    )
    return [(int(at), int(quantity)) for at, quantity in found]


def _credits(connection: Connection, lines: Mapping[str, Sequence[Values]]) -> dict[str, CreditUse]:
    """What became of the credits of each line that sells a pack. Of one that is not granted yet, nothing is earned.

    Credits of a pool at Stripe are left out: Stripe's invoices say what they paid for, and not when.
    """
    listed = [line for own in lines.values() for line in own if line["price_id"]]
    wanted = {line["price_id"] for line in listed}
    packs = {
        row["stripe_id"]
        for row in rows_where(connection, stripe_objects, "stripe_id", wanted)
        if row["lookup_key"].startswith(_PACK)
    }
    sold = [line["id"] for line in listed if line["price_id"] in packs]
    keys = {row["line"]: (row["account"], row["grant_key"]) for row in rows_where(connection, pack_lines, "line", sold)}
    at_stripe = {row["key"] for row in rows_where(connection, grant_orders, "key", {key for _, key in keys.values()})}
    grants = {
        (row["account"], row["source_key"]): row
        for row in rows_where(connection, credit_grants, "source_key", {key for _, key in keys.values()})
    }
    moves = _by(rows_where(connection, credit_ledger, "grant_id", {row["id"] for row in grants.values()}), "grant_id")
    found = {}
    for line in sold:
        grant = grants.get(keys.get(line, ("", "")))
        if grant is not None:
            by_day = Counter[int]()
            for move in moves[grant["id"]]:
                if move["kind"] in _DRAWN:
                    by_day[move["at_ms"] // DAY_MS] -= move["credits"]
            found[line] = CreditUse(
                grant["credits"], sorted(by_day.items()), grant["expires_ms"], grant["voided_ms"]
            )  # fmt: skip
        elif line not in keys or keys[line][1] not in at_stripe:
            found[line] = CreditUse(1)
    return found
