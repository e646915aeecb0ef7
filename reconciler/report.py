"""The report of a reconciliation: rows with a cause, counts per pair of views, and a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from reconciler.causes import Cause, Pair, Verdict
from reconciler.coverage import NOTHING_DUE, Coverage
from schemas.clock import DAY_MS
from schemas.periods import Period

ROWS_MAX: Final = 10_000
CONFIRMED_MAX: Final = 100_000
# There always is a bill that is not final yet, and an object that Stripe has just changed.
_ALWAYS: Final = frozenset((pair, Cause.IN_FLIGHT) for pair in (Pair.INVOICES, Pair.MIRROR, Pair.FLAGS))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Row(NamedTuple):
    """One difference, one part that was not compared, or one value that is confirmed.

    `expected` and `found` are exact decimal texts in the meter's unit, empty for no value and for values that were not
    read. `hour_ms` is set if the aggregation is additive. `detail` is for people, and has the remedy if it is not the
    usual one of the cause. Between intents and invoices, `found` is all that is billed, `items` the part of our invoice
    items, and `invoices` names the invoices.
    """

    pair: Pair
    cause: Cause
    partition: int | None = None
    account: str = ""
    meter: str = ""
    period: Period | None = None
    hour_ms: int | None = None
    dimensions: str = ""
    stripe_customer: str = ""
    expected: str = ""
    found: str = ""
    detail: str = ""
    event_name: str = ""
    items: str = ""
    invoices: str = ""


class Summary(NamedTuple):
    """Numbers of values of one pair of views: `compared` = `equal` + `differing`; `unchecked` includes in flight."""

    pair: Pair
    compared: int = 0
    equal: int = 0
    differing: int = 0
    unchecked: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a reconciliation. `rows_left_off` is the number of further rows over the limit; `causes` counts
    all rows. `[from_ms, to_ms)` is the compared range; None is unlimited. `confirmed` are the sums and bills that are
    right, up to a limit; `sums` and `invoices` say how many of those that were due were read at Stripe."""

    rows: tuple[Row, ...]
    rows_left_off: int
    summaries: tuple[Summary, ...]
    causes: Mapping[tuple[Pair, Cause], int]
    started_at_ms: int
    from_ms: int | None = None
    to_ms: int | None = None
    confirmed: tuple[Row, ...] = ()
    sums: Coverage = NOTHING_DUE
    invoices: Coverage = NOTHING_DUE
    stripe_reads: int = 0

    @property
    def verdict(self) -> Verdict:
        """Drift wins over incomplete, incomplete over equal."""
        if self.differences:
            return Verdict.DRIFT
        if any(cause.is_open for pair, cause in self.causes if (pair, cause) not in _ALWAYS):
            return Verdict.INCOMPLETE
        return Verdict.EQUAL

    @property
    def differences(self) -> int:
        """How many rows are drift."""
        return sum(count for (_, cause), count in self.causes.items() if cause.is_drift)


class Findings:
    """Collects rows while a reconciliation runs; bounded, and counts what it does not keep."""

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._rows: list[Row] = []
        self._causes: Counter[tuple[Pair, Cause]] = Counter()
        self._equal: Counter[Pair] = Counter()
        self._differing: Counter[Pair] = Counter()
        self._unchecked: Counter[Pair] = Counter()
        self._confirmed: list[Row] = []
        self._absent: list[Row] = []
        self.sums = NOTHING_DUE
        self.invoices = NOTHING_DUE
        self.stripe_reads = 0

    def equal(self, pair: Pair, values: int) -> None:
        """Count equal values."""
        self._equal[pair] += values

    def confirm(self, row: Row) -> None:
        """Count an equal value, and keep it for the records."""
        self._equal[row.pair] += 1
        if len(self._confirmed) < CONFIRMED_MAX:
            self._confirmed.append(row)

    def add(self, row: Row, values: int = 1) -> None:
        """Add a row that stands for `values` values."""
        self._causes[row.pair, row.cause] += 1
        if row.cause.is_open:
            self._unchecked[row.pair] += values
        elif row.cause.is_drift:
            self._differing[row.pair] += values
        # A full report must still show drift, so drift replaces other rows.
        if len(self._rows) < self._rows_max:
            self._rows.append(row)
        elif row.cause.is_drift:
            other = next((number for number, old in enumerate(self._rows) if not old.cause.is_drift), None)
            if other is not None:
                self._rows[other] = row

    def absent(self, row: Row) -> None:
        """Add a row that says which copy this deployment does not have. It makes nothing incomplete."""
        self._absent.append(row)

    def left_off(self, pair: Pair, cause: Cause, rows: int) -> None:
        """Count rows that were not read. Their cause must not be drift."""
        if rows:
            self._causes[pair, cause] += rows

    def report(self, started_at_ms: int, from_ms: int | None, to_ms: int | None) -> Report:
        """The finished report: drift first, then by partition."""
        summaries = tuple(
            Summary(
                pair,
                self._equal[pair] + self._differing[pair],
                self._equal[pair],
                self._differing[pair],
                self._unchecked[pair],
            )
            for pair in Pair
        )
        rows = sorted(self._rows, key=_place)
        left_off = self._causes.total() - len(rows)
        return Report(
            (*rows, *self._absent), left_off, summaries, dict(self._causes), started_at_ms, from_ms, to_ms,
            tuple(self._confirmed), self.sums, self.invoices, self.stripe_reads,
        )  # fmt: skip


def _place(row: Row) -> tuple[bool, bool, bool, int]:
    return not row.cause.is_drift, row.cause.is_open, row.partition is None, row.partition or 0


def names_text(names: Collection[str]) -> str:
    """Up to three names in their order, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def instant_text(instant_ms: int) -> str:
    """The instant in UTC: the date, and the time if it is not midnight; in milliseconds outside the years 1 to 9999."""
    try:
        moment = _EPOCH + timedelta(milliseconds=instant_ms)
    except OverflowError:
        return f"{instant_ms} ms"
    return f"{moment:%Y-%m-%d %H:%M}" if instant_ms % DAY_MS else f"{moment:%Y-%m-%d}"


class GaugeKey(NamedTuple):
    """A gauge and its labels, in the form of prometheus-client."""

    name: str
    labels: tuple[tuple[str, str], ...]


def gauge_values(report: Report) -> dict[GaugeKey, int]:
    """Every gauge of a report, with zeros, so that the next good run clears an alarm.

    `tidemark_reconcile_rows{pair,cause}`: rows of that cause. `tidemark_reconcile_values{pair,state}`: values that
    are equal, differing or unchecked. `tidemark_reconcile_verdict{verdict}`: 1 for the verdict, 0 for the others.
    `tidemark_reconcile_started_at_seconds`: Unix time of the start. `tidemark_reconcile_stripe{of,state}`: sums and
    customers' invoices that were due, read, or confirmed earlier. `tidemark_reconcile_oldest_unread_seconds{of}`: the
    end of the oldest period that was due and not read, Unix time; 0 if all was read.
    """
    values: dict[GaugeKey, int] = {}
    for pair in Pair:
        for cause in Cause:
            labels = (("pair", pair.name.lower()), ("cause", cause.value))
            values[GaugeKey("tidemark_reconcile_rows", labels)] = report.causes.get((pair, cause), 0)
    for summary in report.summaries:
        for state in ("equal", "differing", "unchecked"):
            labels = (("pair", summary.pair.name.lower()), ("state", state))
            values[GaugeKey("tidemark_reconcile_values", labels)] = int(getattr(summary, state))
    for verdict in Verdict:
        key = GaugeKey("tidemark_reconcile_verdict", (("verdict", verdict.value),))
        values[key] = int(report.verdict is verdict)
    for of, covered in (("sums", report.sums), ("invoices", report.invoices)):
        for state in ("due", "read", "confirmed"):
            key = GaugeKey("tidemark_reconcile_stripe", (("of", of), ("state", state)))
            values[key] = int(getattr(covered, state))
        key = GaugeKey("tidemark_reconcile_oldest_unread_seconds", (("of", of),))
        values[key] = (covered.oldest_unread_ms or 0) // 1000
    values[GaugeKey("tidemark_reconcile_started_at_seconds", ())] = report.started_at_ms // 1000
    return values


def to_json(report: Report) -> str:
    """The report as one JSON object: verdict, differences, range, summaries by pair, rows by field name, coverage."""
    body = {
        "verdict": report.verdict,
        "differences": report.differences,
        "started_at_ms": report.started_at_ms,
        "from_ms": report.from_ms,
        "to_ms": report.to_ms,
        "summaries": [
            {**summary._asdict(), "pair": summary.pair.name.lower(), "views": summary.pair.value}
            for summary in report.summaries
        ],
        "rows": [_row_fields(row) for row in report.rows],
        "rows_left_off": report.rows_left_off,
        "confirmed": [_row_fields(row) for row in report.confirmed],
        "coverage": {"sums": report.sums._asdict(), "invoices": report.invoices._asdict()},
        "stripe_reads": report.stripe_reads,
    }
    return msgspec.json.encode(body).decode()


def _row_fields(row: Row) -> dict[str, object]:
    fields = {**row._asdict(), "pair": row.pair.name.lower(), "cause": row.cause.value}
    del fields["period"]
    return {
        **fields,
        "period_start_ms": row.period.start_ms if row.period else None,
        "period_end_ms": row.period.end_ms if row.period else None,
    }
