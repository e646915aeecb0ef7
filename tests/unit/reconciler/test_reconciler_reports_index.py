"""The reconciler reads billing.reports as the sender does, whatever else the topic contains."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aggregators.report_records import parse_entries
from reconciler.causes import Cause, Pair
from schemas.clock import DAY_MS, HOUR_MS
from schemas.log import REPORTS_TOPIC
from schemas.reports import Attempt, ReportOutcome
from tests.worlds.reconciler import ACCEPTED, INTENT, Deployment, all_reported, attempt, rows_of, settled


async def test_an_attempt_of_a_sender_that_was_suspended_for_a_day_changes_nothing() -> None:
    """The other senders ignore such an attempt, so Stripe never gets the event."""
    deployment = await settled()
    reported = next(each for each in await all_reported(deployment) if each.intent.meter == "peak")
    assert reported.attempt is not None
    deployment.clock.ms += DAY_MS
    changes = {"stripe_customer": "cus_old", "attempted_at_ms": deployment.clock.ms}
    late = reported.attempt.model_copy(update=changes)
    await deployment.log.append(REPORTS_TOPIC, reported.partition, late.model_dump_json().encode())
    sent = len(deployment.stripe.sends)
    await deployment.send()

    report = await deployment.reconcile()

    assert len(deployment.stripe.sends) == sent
    assert report.rows == ()


@pytest.mark.parametrize(
    ("entries", "in_force"),
    [
        pytest.param([attempt(1), attempt(100)], 1, id="it looked for none"),
        pytest.param([attempt(1), attempt(100, replaces_ms=1)], 100, id="it replaces the one in force"),
        pytest.param([attempt(1), attempt(2, replaces_ms=0)], 1, id="it replaces one that is not in force"),
        pytest.param(
            [attempt(1), attempt(100, replaces_ms=1), attempt(101, replaces_ms=1)], 100, id="another one did before"
        ),
        pytest.param([attempt(1), ACCEPTED, attempt(100, replaces_ms=1)], 1, id="it is settled already"),
    ],
)
async def test_the_attempt_in_force_is_that_of_the_sender(
    entries: Sequence[Attempt | ReportOutcome], in_force: int
) -> None:
    """By the order in the log, whatever the clocks of the writers say."""
    deployment = await Deployment().start()
    for entry in (INTENT, *entries):
        await deployment.log.append(REPORTS_TOPIC, 0, entry.model_dump_json().encode())
    ledger = deployment.ledger
    await ledger.apply(0, None, 1, list(enumerate((INTENT, *entries))))

    (reported,) = await all_reported(deployment)

    assert reported.attempt is not None
    assert reported.attempt.attempted_at_ms == in_force * HOUR_MS
    (known,) = await ledger.found([INTENT.identifier])
    assert known.attempt == reported.attempt


FOREIGN = [
    b"hello",
    b"",
    b"null",
    b"7",
    b"[]",
    b'{"no": "kind"}',
    b'[1, {"no": "kind"}]',
    b"\xff\xfe",
    b'{"kind": "int',
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=repr)
async def test_a_foreign_record_in_the_reports_ends_no_comparison(foreign: bytes) -> None:
    """Otherwise whoever may append to the topic could hide double billing with one record."""
    deployment = await settled()
    await deployment.log.append(REPORTS_TOPIC, 0, foreign)
    event = deployment.sent("bob", "gigabytes")
    deployment.stripe.inject(event._replace(identifier="sent twice"))

    report = await deployment.reconcile()

    assert [(row.pair, row.cause, row.stripe_customer) for row in report.rows] == [
        (Pair.STRIPE, Cause.EXTRA, "cus_bob")
    ]
    assert parse_entries(foreign) == []


async def test_an_entry_of_a_newer_version_leaves_the_reports_unchecked() -> None:
    """An outcome of an unknown version proves nothing either way."""
    deployment = await settled()
    await deployment.log.append(REPORTS_TOPIC, 0, b'[7, {"kind": "credit", "identifier": "tm_one"}]')

    report = await deployment.reconcile()

    assert {(row.pair, row.cause) for row in report.rows} == {
        (Pair.INTENTS, Cause.UNCHECKED),
        (Pair.STRIPE, Cause.UNCHECKED),
    }
    assert "run the version that wrote it" in rows_of(report, Cause.UNCHECKED, Pair.INTENTS)[0].detail
