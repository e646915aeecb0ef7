"""Which entries of the journal follow from what Stripe has, and the form in which everyone gets an entry.

An entry follows from what the journal does not have yet, not from what the mirror had before: so a second delivery, a
resync, and a mirror that is filled again write nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from aggregators.instants import civil_from_days, format_instant_ms
from aggregators.notices import EXACT, notice_id
from schemas.billing_events import ObjectKind
from schemas.clock import DAY_MS
from schemas.currencies import currency_exponent
from schemas.journal import Heard, JournalEntry, JournalKind, PlanItem
from schemas.notices import Notice, NoticeKind
from schemas.side_tables import Row

COLUMNS: Final = (
    "number", "id", "kind", "account", "object", "invoice", "at", "recorded_at", "amount_minor", "tax_minor",
    "currency", "exponent", "cause", "reason", "before", "after",
)  # fmt: skip
_OF_INVOICES: Final = frozenset({JournalKind.INVOICE, JournalKind.PAYMENT, JournalKind.VOID, JournalKind.WRITE_OFF})
# In such a state of a dispute Stripe has taken the money back; an inquiry (`warning_…`) takes nothing.
_WITHDRAWN: Final = frozenset({"needs_response", "under_review", "lost"})
# A subscription in such a state has not begun, or never will.
_NOT_BEGUN: Final = frozenset({"incomplete", "incomplete_expired"})


class _Standing(NamedTuple):
    """How much of a kind there is by now, and since when; None: since the event."""

    kind: JournalKind
    amount_minor: int
    at_ms: object
    tax_minor: int | None = None


def money_entries(kind: ObjectKind, row: Row, known: Sequence[JournalEntry], heard: Heard) -> list[JournalEntry]:
    """What the journal lacks of an invoice, credit note, refund or dispute: of each kind of entry, the difference
    between what Stripe has now and what was booked. `known`: the entries about the invoice, or else about the object.
    """
    found: list[JournalEntry] = []
    for each in _standing(kind, row, known):
        own = [entry for entry in known if (entry.kind, entry.object) == (each.kind, row["id"])]
        booked = sum(entry.amount_minor or 0 for entry in own)
        # A final invoice is booked once, also one of nothing: what it says does not change any more.
        if not own if each.kind is JournalKind.INVOICE else booked != each.amount_minor:
            tax = sum(entry.tax_minor or 0 for entry in own)
            left = each._replace(
                amount_minor=each.amount_minor - booked,
                tax_minor=None if each.tax_minor is None else each.tax_minor - tax,
            )
            found.append(_entry(row, left, len(own) + 1, heard))
    return found


def _standing(kind: ObjectKind, row: Row, known: Iterable[JournalEntry]) -> Iterator[_Standing]:
    """The amounts of an object as Stripe has them now."""
    status, amount = row.get("status"), _whole(row, "amount_minor")
    if kind is ObjectKind.INVOICE:
        if status not in (None, "draft") and not row.get("deleted"):
            yield from _of_invoice(row, known)
    elif kind is ObjectKind.CREDIT_NOTE:
        is_issued = status == "issued"
        total, tax = (_whole(row, name) if is_issued else 0 for name in ("total_minor", "tax_minor"))
        at_ms = row.get("effective_ms") or row.get("created_ms") if is_issued else row.get("voided_ms")
        yield _Standing(JournalKind.CREDIT_NOTE, total, at_ms, tax)
    elif kind is ObjectKind.REFUND:
        at_ms = row.get("created_ms") if status == "succeeded" else None
        yield _Standing(JournalKind.REFUND, amount if status == "succeeded" else 0, at_ms)
    elif kind is ObjectKind.DISPUTE:
        yield _Standing(JournalKind.DISPUTE, amount if status in _WITHDRAWN else 0, None)


def _of_invoice(row: Row, known: Iterable[JournalEntry]) -> Iterator[_Standing]:
    total, tax = _whole(row, "total_minor"), _whole(row, "tax_minor")
    yield _Standing(JournalKind.INVOICE, total, row.get("finalized_ms"), tax)
    # A row from before the column does not say what was paid.
    if row.get("paid_minor") is not None:
        yield _Standing(JournalKind.PAYMENT, _whole(row, "paid_minor"), row.get("paid_ms"))
    notes = [each for each in known if each.kind is JournalKind.CREDIT_NOTE]
    is_void, is_lost = row["status"] == "void", row["status"] == "uncollectible"
    void, void_tax = (
        total - sum(each.amount_minor or 0 for each in notes),
        tax - sum(each.tax_minor or 0 for each in notes),
    )
    yield _Standing(JournalKind.VOID, *((void, row.get("voided_ms"), void_tax) if is_void else (0, None, 0)))
    lost = _whole(row, "remaining_minor") if is_lost else 0
    yield _Standing(JournalKind.WRITE_OFF, lost, row.get("uncollectible_ms") if is_lost else row.get("paid_ms"))


def _entry(row: Row, each: _Standing, number: int, heard: Heard) -> JournalEntry:
    name = str(row["id"])
    is_invoice = each.kind in _OF_INVOICES
    return JournalEntry(
        id=f"{name}/{each.kind}/{number}",
        number=0,
        kind=each.kind,
        account=heard.account,
        object=name,
        invoice=name if is_invoice else str(row.get("invoice_id") or ""),
        at_ms=each.at_ms if isinstance(each.at_ms, int) else heard.at_ms,
        made_ms=heard.now_ms,
        currency=str(row.get("currency") or ""),
        exponent=_whole(row, "exponent"),
        amount_minor=each.amount_minor,
        tax_minor=each.tax_minor,
        cause=heard.cause,
        reason=_reason(row, each.kind),
    )


def _reason(row: Row, kind: JournalKind) -> str:
    if kind in _OF_INVOICES:
        return str(row.get("billing_reason") or "") if kind is JournalKind.INVOICE else ""
    return str(row.get("reason") or "")


def _whole(row: Row, column: str) -> int:
    value = row.get(column)
    return value if isinstance(value, int) else 0


def plan_entries(
    row: Row, items: Iterable[Row], known: Sequence[JournalEntry], plans: Mapping[str, str], heard: Heard
) -> list[JournalEntry]:
    """The change of a subscription against the last one that the journal has. `plans`: the plan of each price."""
    if row.get("status") in (None, *_NOT_BEGUN):
        return []
    has_ended = row.get("ended_ms") is not None or bool(row.get("deleted"))
    own = [] if has_ended else [(str(item["price_id"] or ""), item.get("quantity")) for item in items]
    after = tuple(
        PlanItem(price, plans.get(price, ""), quantity if isinstance(quantity, int) else None)
        for price, quantity in sorted(own, key=repr)
    )
    booked = [each for each in known if each.kind is JournalKind.PLAN_CHANGE]
    before = max(booked, key=lambda each: _place(each.id)).after if booked else ()
    if [(each.price, each.quantity) for each in before] == [(each.price, each.quantity) for each in after]:
        return []
    at_ms = row.get("ended_ms") if has_ended else None if booked else row.get("start_ms")
    name = str(row["id"])
    return [
        JournalEntry(
            id=f"{name}/{JournalKind.PLAN_CHANGE}/{len(booked) + 1}",
            number=0,
            kind=JournalKind.PLAN_CHANGE,
            account=heard.account,
            object=name,
            invoice="",
            at_ms=at_ms if isinstance(at_ms, int) else heard.at_ms,
            made_ms=heard.now_ms,
            currency=str(row.get("currency") or ""),
            exponent=None,
            amount_minor=None,
            tax_minor=None,
            cause=heard.cause,
            before=before,
            after=after,
        )
    ]


def recognized_entry(currency: str, day: int, total_minor: int, booked_minor: int, now_ms: int) -> JournalEntry | None:
    """What the day before `day` recognized in a currency, and what was found late of the days before; None of nothing.
    `booked_minor`: the sum of the entries so far."""
    name = "{:04}-{:02}-{:02}".format(*civil_from_days(day - 1))
    if total_minor == booked_minor:
        return None
    return JournalEntry(
        id=f"{currency}/{JournalKind.RECOGNIZED}/{name}",
        number=0,
        kind=JournalKind.RECOGNIZED,
        account="",
        object="",
        invoice="",
        at_ms=day * DAY_MS,
        made_ms=now_ms,
        currency=currency,
        exponent=currency_exponent(currency),
        amount_minor=total_minor - booked_minor,
        tax_minor=0,
        cause="recognition",
        reason=name,
    )


def _place(identifier: str) -> int:
    return int(identifier.rpartition("/")[2])


def entry_document(entry: JournalEntry) -> dict[str, Any]:
    """An entry as JSON, with the names of `COLUMNS`; the feed, the webhook and the command give the same."""
    return {
        "number": entry.number,
        "id": entry.id,
        "kind": entry.kind.value,
        "account": entry.account,
        "object": entry.object,
        "invoice": entry.invoice,
        "at": format_instant_ms(entry.at_ms),
        "recorded_at": format_instant_ms(entry.made_ms),
        "amount_minor": entry.amount_minor,
        "tax_minor": entry.tax_minor,
        "currency": entry.currency,
        "exponent": entry.exponent,
        "cause": entry.cause,
        "reason": entry.reason,
        "before": [each._asdict() for each in entry.before],
        "after": [each._asdict() for each in entry.after],
    }


def entry_row(entry: JournalEntry) -> list[object]:
    """An entry as a row of a spreadsheet, with the columns of `COLUMNS`."""
    document = entry_document(entry)
    document |= {"before": items_text(entry.before), "after": items_text(entry.after)}
    return ["" if document[name] is None else document[name] for name in COLUMNS]


def entry_words(entry: JournalEntry) -> str:
    """An entry as a line for people, such as `7 2026-10-01T00:00:00Z acme invoice in_1 149.00 usd`."""
    what = f"{items_text(entry.before) or 'nothing'} -> {items_text(entry.after) or 'nothing'}"
    if entry.amount_minor is not None:
        what = f"{EXACT.scaleb(Decimal(entry.amount_minor), -(entry.exponent or 0)):f} {entry.currency}"
    return f"{entry.number} {format_instant_ms(entry.at_ms)} {entry.account} {entry.kind} {entry.object} {what}"


def items_text(items: Iterable[PlanItem]) -> str:
    """Items in words, such as `standard price_1 x 3`."""
    return "; ".join(
        " ".join(part for part in (each.plan, each.price, f"x {each.quantity}" if each.quantity else "") if part)
        for each in items
    )


def journal_notice(log_id: str, entry: JournalEntry, now_ms: int) -> Notice:
    """The notice that delivers an entry with its number."""
    identifier = notice_id(log_id, NoticeKind.JOURNAL_ENTRY, entry.account, entry.id, entry.at_ms, 0)
    body = {
        "id": identifier,
        "type": NoticeKind.JOURNAL_ENTRY.value,
        "timestamp": format_instant_ms(now_ms),
        "data": entry_document(entry),
    }
    text = msgspec.json.encode(body).decode()
    return Notice(identifier, NoticeKind.JOURNAL_ENTRY, entry.account, entry.id, entry.at_ms, now_ms, 0, text, now_ms)
