"""The reconciler's report: verdict, table, JSON, gauges, and the limits of the report."""

from __future__ import annotations

import json

import pytest

from reconciler.causes import Cause, Pair, Verdict
from reconciler.compare import Difference
from reconciler.report import Findings, GaugeKey, Report, Row, gauge_values, to_json
from reconciler.table import render_table
from schemas.clock import HOUR_MS
from schemas.periods import Period
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS

NOVEMBER = Period(NOVEMBER_MS, DECEMBER_MS)


def report_of(*rows: Row, rows_max: int = 100, equal: int = 3) -> Report:
    findings = Findings(rows_max)
    findings.equal(Pair.REDIS, equal)
    for row in rows:
        findings.add(row)
    return findings.report(NOVEMBER_MS, None, DECEMBER_MS)


def row(cause: Cause, account: str = "ada", pair: Pair = Pair.REDIS) -> Row:
    return Row(pair, cause, 0, account, "gigabytes", NOVEMBER, None, "", "", "1.25", "1.5", "what it is")


@pytest.mark.parametrize(
    ("causes", "verdict"),
    [
        pytest.param([], Verdict.EQUAL, id="nothing found"),
        pytest.param([Cause.CONFLICT, Cause.UNKNOWN_CUSTOMER], Verdict.EQUAL, id="findings for a person"),
        pytest.param([Cause.IN_FLIGHT], Verdict.INCOMPLETE, id="in flight"),
        pytest.param([Cause.UNCHECKED, Cause.CONFLICT], Verdict.INCOMPLETE, id="unchecked"),
        pytest.param([Cause.UNCHECKED, Cause.MISSING], Verdict.DRIFT, id="missing wins"),
        pytest.param([Cause.EXTRA], Verdict.DRIFT, id="extra"),
        pytest.param([Cause.REJECTED_BY_STRIPE], Verdict.DRIFT, id="rejected by Stripe"),
    ],
)
def test_the_verdict_is_drift_before_incomplete_before_equal(causes: list[Cause], verdict: Verdict) -> None:
    """Exit codes and alarms depend on the verdict."""
    assert report_of(*(row(cause) for cause in causes)).verdict is verdict


def test_drift_is_kept_when_usage_in_flight_would_fill_the_report() -> None:
    """The limit bounds memory and must not hide the one row that matters. Every row is counted."""
    waiting = [row(Cause.IN_FLIGHT, f"waiting {number}") for number in range(10)]

    report = report_of(*waiting, row(Cause.EXTRA, "bob"), rows_max=4)

    assert report.rows[0].account == "bob"
    assert (len(report.rows), report.rows_left_off) == (4, 7)
    assert report.causes[Pair.REDIS, Cause.IN_FLIGHT] == 10
    assert report.verdict is Verdict.DRIFT


def test_the_table_shows_counts_rows_verdict_and_the_number_of_omitted_rows() -> None:
    """An operator reads the table under stress."""
    text = render_table(report_of(*(row(Cause.MISSING, f"account {number}") for number in range(5))), rows_max=2)

    assert "account 1" in text
    assert "account 2" not in text
    assert "and 3 more" in text
    assert "1.25" in text
    assert "2026-11-01 to" in text
    assert text.rstrip().endswith("drift: two views hold different values")


def test_the_table_fits_into_100_columns_and_explains_each_detail_once() -> None:
    """A terminal that wraps a row makes the table unreadable, and a prose column grows to twelve lines."""
    remedy = "missing in usage_events: Redis and usage_hourly agree. Replay the archive; " * 2
    rows = [
        row(cause, "acct_0219", pair)._replace(
            meter="api_requests_of_a_long_name", stripe_customer="cus_acct_0219", dimensions='{"model":"large"}',
            expected="1046322.000000000001", found="1049322.000000000001", detail=remedy,
        )
        for cause in (Cause.MISSING, Cause.REJECTED_BY_STRIPE)
        for pair in Pair
    ]  # fmt: skip

    text = render_table(report_of(*rows))

    assert max(map(len, text.splitlines())) <= 100
    assert " ".join(text.split()).count("missing in usage_events") == 2
    assert text.count("[1]") == len(rows) + 1


@pytest.mark.parametrize(
    ("pair", "from_ms", "is_empty"),
    [
        pytest.param(Pair.COUNTERS, DECEMBER_MS, True, id="only the counters, which have no period"),
        pytest.param(Pair.DUPLICATES, DECEMBER_MS, True, id="only duplicates"),
        pytest.param(Pair.REDIS, NOVEMBER_MS, False, id="a period"),
        pytest.param(Pair.COUNTERS, None, False, id="no range: nothing exists"),
    ],
)
def test_the_verdict_on_a_range_without_usage_claims_no_comparison(
    pair: Pair, from_ms: int | None, is_empty: bool
) -> None:
    """A typing error in the range must not look like a proof."""
    findings = Findings(10)
    findings.equal(pair, 8)

    text = render_table(findings.report(0, from_ms, None))

    assert ("no period with usage lies in the range" in text) == is_empty
    assert ("every value that is final was compared" in text) != is_empty


def test_an_account_name_cannot_write_to_the_terminal() -> None:
    """Producers choose account names: escape sequences and markup appear as text."""
    hostile = "\x1b[31mred [bold]name[/bold]"

    text = render_table(report_of(row(Cause.MISSING, hostile)), width=200)

    assert "\x1b" not in text
    assert "[bold]name[/bold]" in text


def test_the_ascii_table_has_only_ascii() -> None:
    """For terminals and mail without UTF-8."""
    assert render_table(report_of(row(Cause.MISSING)), ascii_only=True).isascii()


def test_json_contains_everything_that_the_table_shows() -> None:
    """For scripts: field names, exact decimal texts, times in milliseconds."""
    body = json.loads(to_json(report_of(row(Cause.EXTRA))))

    assert (body["verdict"], body["differences"], body["to_ms"], body["rows_left_off"]) == ("drift", 1, DECEMBER_MS, 0)
    assert body["summaries"][0] == {
        "pair": "redis", "views": "usage_events ↔ redis", "compared": 4, "equal": 3, "differing": 1, "unchecked": 0,
    }  # fmt: skip
    assert body["rows"][0] == {
        "pair": "redis", "cause": "extra", "partition": 0, "account": "ada", "meter": "gigabytes", "hour_ms": None,
        "dimensions": "", "stripe_customer": "", "expected": "1.25", "found": "1.5", "detail": "what it is",
        "period_start_ms": NOVEMBER_MS, "period_end_ms": DECEMBER_MS, "event_name": "", "items": "", "invoices": "",
    }  # fmt: skip


def test_gauges_contain_zeros_so_that_a_good_run_clears_an_alarm() -> None:
    """Every run sets the same series."""
    drift, equal = gauge_values(report_of(row(Cause.EXTRA))), gauge_values(report_of())
    extra = GaugeKey("tidemark_reconcile_rows", (("pair", "redis"), ("cause", "extra")))
    verdict = GaugeKey("tidemark_reconcile_verdict", (("verdict", "drift"),))
    values = GaugeKey("tidemark_reconcile_values", (("pair", "redis"), ("state", "equal")))

    assert drift.keys() == equal.keys()
    assert (drift[extra], equal[extra]) == (1, 0)
    assert (drift[verdict], equal[verdict]) == (1, 0)
    assert (drift[values], equal[values]) == (3, 3)


@pytest.mark.parametrize(
    ("minor", "scale", "text"),
    [
        pytest.param(1250, 3, "1.25", id="trailing zeros go"),
        pytest.param(-5, 3, "-0.005", id="negative"),
        pytest.param(100, 0, "100", id="whole numbers keep theirs"),
        pytest.param(10**38 + 1, 12, "100000000000000000000000000.000000000001", id="38 digits"),
        pytest.param(0, 6, "0", id="zero"),
        pytest.param(None, 2, "", id="nothing"),
    ],
)
def test_quantities_are_exact_texts(minor: int | None, scale: int, text: str) -> None:
    """Money must not be rounded before an operator sees it."""
    assert Difference("key", minor, None).texts(scale) == (text, "")


def test_an_hour_is_shown_if_the_row_has_one() -> None:
    """Additive meters are compared per hour."""
    text = render_table(report_of(row(Cause.MISSING)._replace(hour_ms=NOVEMBER_MS + 5 * HOUR_MS)))

    assert "2026-11-01" in text
    assert "05:00" in text
