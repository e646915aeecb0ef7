"""Intents are deterministic: a rebuild, a second relay and a retry produce the same identifiers (I10, I12, S9)."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aggregators.codec import ReportKey, ReportValue, report_text
from aggregators.intents import PARTS_MAX, intent_of, parts_of
from aggregators.quantities import decimal_text
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.periods import AccountState, Binding
from schemas.reports import Intent
from schemas.rollup import Checkpoint, Counters

CHECKPOINT = Checkpoint(
    log_id="log", partitions=2, livemode=False, stripe_account="acct_1", generation=1, next_offset=5, stream_time_ms=9,
    secret_fingerprint="f", meter_set=None, counters=Counters(), slices=(),
)  # fmt: skip
NOTHING = AccountState()
PARTS: dict[str, Any] = {
    "account": "acme", "meter": "tokens", "period_start_ms": 0, "bucket_ms": HOUR_MS, "base": 7, "current": 10,
    "period_end_ms": 30 * HOUR_MS, "scale": 3, "event_name": "tidemark_tokens",
}  # fmt: skip


def entry(checkpoint: Checkpoint = CHECKPOINT, state: AccountState = NOTHING, **changes: Any) -> Intent | None:
    """A report entry for the fold's input."""
    parts = {**PARTS, **changes}
    key = ReportKey(period_start_ms=parts["period_start_ms"], meter=parts["meter"], account=parts["account"])
    value = ReportValue(parts["base"], parts["current"], parts["period_end_ms"], parts["scale"], parts["event_name"])
    bucket_ms = parts["bucket_ms"]
    return intent_of(checkpoint, bucket_ms, bucket_ms + HOUR_MS, key, report_text(value), state)


def intent(checkpoint: Checkpoint = CHECKPOINT, **changes: Any) -> Intent:
    """The intent of an entry; fails if the entry has none."""
    produced = entry(checkpoint, **changes)
    assert produced is not None
    return produced


def test_the_same_change_is_the_same_intent_whichever_process_folded_it() -> None:
    """Position, generation and counters of the fold are no part of the intent."""
    moved = msgspec.structs.replace(
        CHECKPOINT, generation=4, next_offset=99, stream_time_ms=10**12, secret_fingerprint="g"
    )

    assert intent() == intent(moved)
    assert intent() == intent(base=107, current=110), "the change, not where it started"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"account": "acme2"}, id="account"),
        pytest.param({"meter": "tokens2"}, id="meter"),
        pytest.param({"period_start_ms": 1}, id="period"),
        pytest.param({"bucket_ms": 2 * HOUR_MS}, id="report bucket"),
        pytest.param({"current": 11}, id="delta"),
        pytest.param({"current": 4}, id="sign of the delta"),
        pytest.param({"account": "acme\x1f"}, id="separator in the account"),
        pytest.param({"account": 'acme","x'}, id="quote in the account"),
    ],
)
def test_every_part_of_an_entry_makes_another_identifier(changes: dict[str, Any]) -> None:
    """Stripe would take two changes with one identifier for one."""
    assert intent().identifier != intent(**changes).identifier


@pytest.mark.parametrize(
    ("end_ms", "expected_ms"),
    [
        pytest.param(DAY_MS + HOUR_MS, DAY_MS + HOUR_MS - SECOND_MS, id="a bucket that ends by itself"),
        pytest.param(DAY_MS + HOUR_MS + 1, DAY_MS + HOUR_MS - SECOND_MS, id="flushed within a second"),
        pytest.param(DAY_MS + HOUR_MS + 999, DAY_MS + HOUR_MS - SECOND_MS, id="flushed late in a second"),
        pytest.param(DAY_MS, DAY_MS + MINUTE_MS - SECOND_MS, id="of a period that begins later"),
        pytest.param(DAY_MS + 500, DAY_MS, id="flushed in the first second of the period"),
        pytest.param(DAY_MS + 30_500, DAY_MS + 29_000, id="flushed in the first minute of the period"),
        pytest.param(DAY_MS + MINUTE_MS, DAY_MS + MINUTE_MS - SECOND_MS, id="flushed after the first minute"),
        pytest.param(40 * DAY_MS, 30 * DAY_MS - SECOND_MS, id="after the end of the period"),
    ],
)
def test_instant_lies_before_the_second_in_which_the_bucket_ends(end_ms: int, expected_ms: int) -> None:
    """A price that is swapped after a flush, in the same second, is valid from the start of that second."""
    period = {"period_start_ms": DAY_MS, "period_end_ms": 30 * DAY_MS}
    ended = intent().model_copy(update={**period, "bucket_start_ms": end_ms - 7, "bucket_end_ms": end_ms})

    assert ended.instant_ms == expected_ms


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"livemode": True}, id="mode"),
        pytest.param({"stripe_account": "acct_2"}, id="Stripe account"),
        pytest.param({"log_id": "log2"}, id="log"),
    ],
)
def test_modes_accounts_and_logs_never_share_an_identifier(changes: dict[str, Any]) -> None:
    """I12. A deployment that starts over does not collide with its predecessor either."""
    assert intent().identifier != intent(msgspec.structs.replace(CHECKPOINT, **changes)).identifier


def test_the_end_of_a_cut_period_and_the_event_name_are_no_part_of_the_identifier() -> None:
    """A binding may cut a running period; the intents that were published keep their identifiers."""
    after = intent(period_end_ms=20 * HOUR_MS, event_name="renamed")

    assert intent().identifier == after.identifier
    assert (after.period_end_ms, after.event_name) == (20 * HOUR_MS, "renamed")


def test_an_intent_contains_what_stripe_needs() -> None:
    """Checks every field."""
    assert intent().model_dump(exclude={"identifier"}) == {
        "kind": "intent", "livemode": False, "stripe_account": "acct_1", "log_id": "log", "meter": "tokens",
        "event_name": "tidemark_tokens", "account": "acme", "period_start_ms": 0, "period_end_ms": 30 * HOUR_MS,
        "bucket_start_ms": HOUR_MS, "bucket_end_ms": 2 * HOUR_MS, "delta_minor": 3, "scale": 3, "revision": 0,
    }  # fmt: skip
    assert len(intent().identifier) <= 100, "Stripe's limit"


@pytest.mark.parametrize("total", [0, 7, -3, 10**40], ids=["zero", "seven", "negative", "huge"])
def test_no_change_is_no_intent(total: int) -> None:
    """A report bucket in which a maximum was not exceeded makes no intent."""
    assert entry(base=total, current=total) is None


@pytest.mark.parametrize(
    ("cut_ms", "expected_ms"),
    [
        pytest.param(None, 30 * HOUR_MS, id="none since"),
        pytest.param(HOUR_MS + 16 * MINUTE_MS, HOUR_MS + 16 * MINUTE_MS, id="within the bucket"),
        pytest.param(40 * HOUR_MS, 30 * HOUR_MS, id="behind the end that was known"),
    ],
)
def test_a_period_ends_at_the_cut_of_a_later_binding(cut_ms: int | None, expected_ms: int) -> None:
    """An instant after the cut would count the usage in the next period."""
    bindings = () if cut_ms is None else (Binding(effective_from_ms=cut_ms, anchor_ms=cut_ms + DAY_MS),)
    produced = entry(state=AccountState(bindings=bindings))

    assert produced is not None
    assert produced.period_end_ms == expected_ms
    assert produced.identifier == intent().identifier


@pytest.mark.parametrize(
    ("minor", "scale", "values"),
    [
        (123_456_789_012_345, 0, ["123456789012345"]),
        (1_234_567_890_123_450, 2, ["12345678901234.5"]),
        (1_234_567_123_456_789, 9, ["1000000", "234567.123456789"]),
        (-1_234_567_123_456_789, 9, ["-1000000", "-234567.123456789"]),
        (10**15, 0, ["999999999999999", "1"]),
        (10**15, 12, ["1000"]),
        (10**30 + 1, 12, None),
    ],
    ids=["15 digits", "a last zero after the point", "16 digits", "negative", "whole units", "zeros", "too many parts"],
)
def test_long_value_is_published_in_parts_that_stripe_takes(minor: int, scale: int, values: list[str] | None) -> None:
    """A value of 16 digits became a dead letter every hour."""
    whole = intent(base=0, current=minor, scale=scale)
    parts = list(parts_of(whole))

    if values is None or len(values) == 1:
        assert parts == [whole]
    assert values in (None, [decimal_text(part.delta_minor, part.scale) for part in parts])


def digits_of(value: Decimal) -> int:
    """The digits of a number as it is written, without the zeros at its start."""
    return len(f"{abs(value):f}".replace(".", "").lstrip("0"))


@given(minor=st.integers(-(10**31), 10**31).filter(bool), scale=st.integers(0, 12))
@example(minor=10**15 * 10**12 - 1, scale=12)
@example(minor=-(10**15 - 1), scale=0)
@example(minor=62 * (10**15 - 1) * 10**12 + 1, scale=12)
def test_parts_add_up_exactly_and_each_has_its_own_identifier(minor: int, scale: int) -> None:
    """Nothing is rounded. A part under the identifier of another one would pass for a repetition, and not be billed."""
    whole = intent(base=0, current=minor, scale=scale)
    parts = list(parts_of(whole))

    assert sum(part.delta_minor for part in parts) == minor
    assert len({part.identifier for part in parts}) == len(parts) <= PARTS_MAX
    assert parts == list(parts_of(whole)), "a rebuild makes the same"
    with localcontext() as context:
        context.prec = 80
        values = [Decimal(part.delta_minor) / 10**scale for part in parts]
    assert {value > 0 for value in values} == {minor > 0}
    if len(parts) == 1:
        assert parts == [whole]
        assert digits_of(values[0]) <= 15 or abs(values[0]) > 62 * 10**15 - 63
    else:
        assert max(map(digits_of, values)) <= 15
