"""Recognition: how much of each line of a final invoice is earned until a day. docs/revenue.md has the rules.

Everything is a function of the line and a day, so each figure can be computed again, and the days of a line always add
up to the line.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from schemas.clock import DAY_MS
from schemas.recognition import (
    ChangeKind,
    Effect,
    FinalLine,
    InvoiceBook,
    LineChange,
    Pace,
    Recognized,
    Schedule,
    Segment,
)
from schemas.side_tables import Row

_EFFECTS: Final = {
    ChangeKind.CREDIT_NOTE: Effect.CREDIT_NOTE,
    ChangeKind.NOTE_VOIDED: Effect.CREDIT_NOTE,
    ChangeKind.VOID: Effect.VOID,
    # What was earned stays earned.
    ChangeKind.UNCOLLECTIBLE: Effect.EARNED,
    ChangeKind.ENDED: Effect.EARNED,
}


def schedule_of(line: FinalLine) -> Schedule:
    """The revisions of a line."""
    segments = [Segment(line.finalized_ms // DAY_MS, Effect.EARNED, line.amount_minor)]
    for change in sorted(line.changes, key=lambda each: each.at_ms):
        segments.append(_changed(line, segments[-1], change))
    return Schedule(line, tuple(segments))


def _changed(line: FinalLine, last: Segment, change: LineChange) -> Segment:
    """The revision that a change makes. Nothing changes before the invoice is final."""
    day, bad_debt = max(last.day, change.at_ms // DAY_MS), 0
    amount, kept, released = last.amount, last.kept, last.released
    if change.kind is ChangeKind.CREDIT_NOTE:
        # What was written off can still be credited, after what goes on.
        free = _nearer(change.minor, released)
        taken = _nearer(change.minor - free, amount)
        amount, released = amount - taken, released - free
        kept -= _nearer(change.minor - free - taken, kept)
    elif change.kind is ChangeKind.NOTE_VOIDED:
        # No more than was taken, and nothing of an invoice that is void.
        lacks = 0 if last.effect is Effect.VOID else line.amount_minor - amount - kept - released
        amount += _nearer(change.minor, lacks)
    elif change.kind is ChangeKind.VOID:
        amount = kept = released = 0
    elif change.kind is ChangeKind.ENDED:
        done = earned(line, amount, day)
        amount, kept, released = 0, kept + done, released + amount - done
    else:
        paid = part(amount, change.minor, change.whole)
        bad_debt = earned(line, amount, day) - earned(line, paid, day)
        amount, kept = paid, kept + bad_debt
    return Segment(day, _EFFECTS[change.kind], amount, kept, bad_debt, released)


def _nearer(wanted: int, there: int) -> int:
    """As much of a change as there is; nothing of another sign."""
    return min(wanted, there) if wanted > 0 < there else max(wanted, there) if wanted < 0 > there else 0


def part(amount: int, numerator: int, denominator: int) -> int:
    """A part of an amount, rounded towards nothing; all of the amount beyond the whole."""
    if denominator <= 0 or numerator >= denominator:
        return amount
    found = abs(amount) * max(0, numerator) // denominator
    return found if amount >= 0 else -found


def earned(line: FinalLine, amount: int, day: int) -> int:
    """What of an amount the days before `day` earn at the line's pace."""
    if line.pace is not None:
        return _paced(line.pace, amount, day)
    first = line.start_ms // DAY_MS
    days = max(1, line.end_ms // DAY_MS - first)
    return part(amount, min(max(0, day - first), days), days)


def _paced(pace: Pace, amount: int, day: int) -> int:
    if pace.last_day is not None and day > pace.last_day:
        return amount
    # A correction takes usage of an earlier day back.
    used = min(max(0, sum(quantity for at, quantity in pace.by_day if at < day)), pace.whole)
    return part(amount, used, pace.whole) if pace.whole > 0 else 0


def _in_force(schedule: Schedule, day: int) -> Segment | None:
    """The revision at the start of a day; None before the invoice is final."""
    return next((each for each in reversed(schedule.segments) if each.day < day), None)


def recognized_until(schedule: Schedule, day: int) -> int:
    """What the days before `day` recognize."""
    segment = _in_force(schedule, day)
    if segment is not None:
        return segment.kept + earned(schedule.line, segment.amount, day)
    return unbilled_at(schedule, day)


def unbilled_at(schedule: Schedule, day: int) -> int:
    """What is earned at the start of a day of an invoice that is not final yet: usage."""
    line = schedule.line
    is_early = line.pace is not None and line.pace.is_usage and _in_force(schedule, day) is None
    return earned(line, line.amount_minor, day) if is_early else 0


def deferred_at(schedule: Schedule, day: int) -> int:
    """What is billed and not earned at the start of a day."""
    segment = _in_force(schedule, day)
    return 0 if segment is None else segment.amount - earned(schedule.line, segment.amount, day)


def billed_until(schedule: Schedule, day: int) -> int:
    """What the line bills at the start of a day, after credit notes, voids and write-offs."""
    segment = _in_force(schedule, day)
    return 0 if segment is None else segment.kept + segment.amount


def effects_of(schedule: Schedule, start_day: int, end_day: int) -> Counter[Effect]:
    """What the days `[start_day, end_day)` recognize, by reason."""
    line, found = schedule.line, Counter[Effect]()
    for before, after in pairwise(schedule.segments):
        if start_day <= after.day < end_day:
            was, now = (each.kept + earned(line, each.amount, after.day) for each in (before, after))
            found[after.effect] += now - was
    if line.pace is not None and not line.pace.is_usage and line.pace.last_day is not None:
        last = max(line.pace.last_day, schedule.segments[0].day)
        if start_day <= last < end_day and (segment := _in_force(schedule, last + 1)):
            rest = segment.amount - _paced(line.pace._replace(last_day=None), segment.amount, last + 1)
            found[Effect.BREAKAGE] += rest
    whole = recognized_until(schedule, end_day) - recognized_until(schedule, start_day)
    found[Effect.EARNED] += whole - sum(found.values())
    return found


class Totals:
    """Sums up lines over the spans between consecutive days, by currency. Keeps no line."""

    def __init__(self, days: Sequence[int]) -> None:
        self._spans = list(pairwise(days))
        self._sums: dict[str, list[Counter[str]]] = defaultdict(lambda: [Counter() for _ in self._spans])

    def add(self, books: Iterable[InvoiceBook]) -> None:
        """Add the lines of invoices."""
        for book in books:
            for line in lines_of(book):
                self.add_line(schedule_of(line))

    def add_line(self, schedule: Schedule) -> None:
        """Add one line."""
        sums = self._sums[schedule.line.currency]
        for place, (start, end) in enumerate(self._spans):
            sums[place].update(_figures(schedule, start, end))

    def rows(self) -> Sequence[Recognized]:
        """What was added so far, of each currency span by span."""
        found = []
        for currency, spans in sorted(self._sums.items()):
            for (start, end), figures in zip(self._spans, spans, strict=True):
                effects = {effect: figures[effect] for effect in Effect}
                others = (figures[name] for name in Recognized._fields[4:])
                found.append(Recognized(currency, start, end, effects, *others))
        return found


def _figures(schedule: Schedule, start_day: int, end_day: int) -> Mapping[str, int]:
    first = schedule.segments[0]
    billed = first.amount if start_day <= first.day < end_day else 0
    return {
        **{effect.value: minor for effect, minor in effects_of(schedule, start_day, end_day).items()},
        "bad_debt": sum(each.bad_debt for each in schedule.segments if start_day <= each.day < end_day),
        "billed": billed,
        "taken_back": billed_until(schedule, end_day) - billed_until(schedule, start_day) - billed,
        "deferred_start": deferred_at(schedule, start_day),
        "deferred_end": deferred_at(schedule, end_day),
        "unbilled_start": unbilled_at(schedule, start_day),
        "unbilled_end": unbilled_at(schedule, end_day),
    }


def lines_of(book: InvoiceBook) -> Iterator[FinalLine]:
    """The lines of an invoice with what changed them. An amount of nothing is no line."""
    invoice, nets = book.invoice, [net_of(line) for line in book.lines]
    changes: list[list[LineChange]] = [[] for _ in nets]
    for note in book.notes:
        for place, minor in enumerate(_credited(book, note, nets)):
            if minor:
                changes[place] += _note_changes(note, minor)
    common = _invoice_changes(invoice)
    for line, net, own in zip(book.lines, nets, changes, strict=True):
        if net:
            start_ms, end_ms = int(line["start_ms"] or 0), int(line["end_ms"] or 0)
            pace, ended = _pace(book, str(line["id"]), start_ms, end_ms)
            yield FinalLine(
                str(line["id"]),
                str(invoice["id"]),
                str(invoice["customer_id"]),
                str(invoice["currency"]),
                net,
                start_ms,
                end_ms,
                int(invoice["finalized_ms"] or 0),
                pace,
                (*own, *common, *ended),
            )


def net_of(line: Row) -> int:
    """The amount of a line of an invoice or a credit note without discounts, taxes and drawn credits."""
    taken = ("discount_minor", "inclusive_tax_minor", "credit_minor")
    return int(line["amount_minor"] or 0) - sum(int(line.get(column) or 0) for column in taken)


def _pace(book: InvoiceBook, line: str, start_ms: int, end_ms: int) -> tuple[Pace | None, Sequence[LineChange]]:
    """How fast a line is earned, and whether that ended: that of usage, of credits, or None for days."""
    if (used := book.metered.get(line)) is not None:
        whole = sum(quantity for _, quantity in used)
        return Pace(tuple(used), whole, max(start_ms, end_ms - 1) // DAY_MS, is_usage=True), ()
    if (use := book.credits.get(line)) is None:
        return None, ()
    last_day = None if use.expires_ms is None else (use.expires_ms - 1) // DAY_MS
    ended = []
    if use.voided_ms is not None:
        # On the day before its credit note, which takes what is left.
        ended = [LineChange(use.voided_ms // DAY_MS * DAY_MS, ChangeKind.ENDED)]
    return Pace(tuple(use.by_day), use.whole, last_day, is_usage=False), ended


def _credited(book: InvoiceBook, note: Row, nets: Sequence[int]) -> list[int]:
    """What a credit note takes off each line. A part that names no line is spread over all lines."""
    places = {str(line["id"]): place for place, line in enumerate(book.lines)}
    found, rest = [0] * len(nets), 0
    for line in book.note_lines:
        if line["credit_note_id"] == note["id"]:
            place = places.get(str(line["invoice_line_id"]))
            if place is None:
                rest += net_of(line)
            else:
                # The line of a note is positive; the line that it credits may itself be a credit.
                found[place] += net_of(line)
    whole, tax = sum(nets), int(book.invoice["tax_minor"] or 0)
    if rest and not int(note["tax_minor"] or 0):
        # An amount alone is one of the customer's money, of which a part is tax.
        rest = part(rest, whole, whole + tax)
    return [own + share for own, share in zip(found, spread(rest, nets), strict=True)]


def spread(amount: int, weights: Sequence[int]) -> list[int]:
    """An amount in parts by weights, which may be negative; the parts add up to the amount exactly."""
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    sums = [0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    return [amount * after // whole - amount * before // whole for before, after in pairwise(sums)]


def _note_changes(note: Row, minor: int) -> Iterator[LineChange]:
    made_ms = int(note["effective_ms"] or note["created_ms"] or 0)
    yield LineChange(made_ms, ChangeKind.CREDIT_NOTE, minor)
    if note["voided_ms"] is not None:
        yield LineChange(int(note["voided_ms"]), ChangeKind.NOTE_VOIDED, minor)


def _invoice_changes(invoice: Row) -> Sequence[LineChange]:
    """How an invoice ended. One that was given up and then paid was not given up."""
    if invoice["status"] == "void" and invoice["voided_ms"] is not None:
        return [LineChange(int(invoice["voided_ms"]), ChangeKind.VOID)]
    if invoice["status"] == "uncollectible" and invoice["uncollectible_ms"] is not None:
        paid = int(invoice["paid_minor"] or 0)
        whole = paid + int(invoice["remaining_minor"] or 0)
        return [LineChange(int(invoice["uncollectible_ms"]), ChangeKind.UNCOLLECTIBLE, paid, whole)]
    return []
