"""The double of the emitter: applications' tests see what the emitter and the gateway would do."""

from __future__ import annotations

import inspect
import json
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.decode import decode
from aggregators.judge import WITHOUT_METERS, event_time_us, judge, rules_at
from aggregators.meters import Failure, compiled
from emitter import Emitter, Event, QueueFull
from emitter.encoding import encoded
from emitter.testing import FakeEmitter
from schemas.adjustments import reserved
from schemas.meters import Filter, FilterOperator, Meter, MeterSet, OnBad
from tests.worlds.emitter import conserved

NOW: Final = datetime(2026, 11, 21, 10, tzinfo=UTC)
NOW_MS: Final = int(NOW.timestamp() * 1000)


def fake(**settings: Any) -> FakeEmitter:
    """A double whose clock stands still."""
    return FakeEmitter(now_ns=lambda: NOW_MS * 1_000_000, **settings)


def test_events_are_found_by_type_and_account_as_they_were_given() -> None:
    """The main use: what did my code emit?"""
    usage = fake()
    usage.emit("llm.completion", "acme", {"tokens": 3, "cost": Decimal("0.10")}, id="job-1")
    usage.emit("llm.completion", "globex", {"tokens": 4})
    usage.emit("api.call", "acme")

    (event,) = usage.emitted(type="llm.completion", account="acme")
    assert (event.id, event.data) == ("job-1", {"tokens": 3, "cost": Decimal("0.10")})
    assert [event.account for event in usage.emitted(type="llm.completion")] == ["acme", "globex"]
    assert len(usage.emitted()) == len(usage.accepted()) == usage.stats().accepted == 3
    usage.check()
    usage.clear()
    assert usage.emitted() == usage.accepted() == []


def test_an_id_that_comes_again_counts_once_and_another_event_under_it_is_found() -> None:
    """The mistake that no exception tells."""
    usage = fake()
    for _ in range(2):
        usage.emit("t", "acme", {"n": 1}, id="job")
    assert len(usage.accepted()) == 1
    usage.check()

    usage.emit("another", "acme", {"n": 1}, id="job")
    usage.emit("another", "globex", {"n": 1}, id="job")
    (conflict,) = usage.conflicts()
    assert (conflict.type, conflict.account) == ("another", "acme")
    with pytest.raises(AssertionError, match="job is an id of another event of acme"):
        usage.check()


def test_rejections_reach_the_application_before_emit_returns() -> None:
    """Its handling of rejections can be tested."""
    told: list[tuple[str, str]] = []
    usage = fake(on_rejected=lambda event, reason, _: told.append((event.id, reason)))
    with usage.rejecting("negative_quantity", type="t"):
        usage.emit("t", "acme", id="a")
        usage.emit("other", "acme", id="b")
    usage.emit("t", "acme", id="c")
    usage.emit("t", "acme", {"n": float("nan")}, id="d")

    assert told == [("a", "negative_quantity"), ("d", "not_serializable")]
    assert [event.id for event in usage.accepted()] == ["b", "c"]
    assert [each.reason for each in usage.rejected(account="acme")] == ["negative_quantity", "not_serializable"]
    with pytest.raises(AssertionError, match="a was rejected: negative_quantity"):
        usage.check()
    assert conserved(usage)


def test_a_gateway_that_is_away_leaves_events_pending_until_it_is_back() -> None:
    """As with the real one, `emit` returns."""
    usage = fake()
    with usage.away():
        usage.emit("t", "acme", id="a")
        assert usage.stats().pending == 1
        assert "away" in usage.stats().last_error
        assert not usage.flush()
        with pytest.raises(AssertionError, match="1 events are pending"):
            usage.check()
    assert [event.id for event in usage.accepted()] == ["a"]
    assert usage.flush()


@pytest.mark.parametrize("when_full", ["block", "drop"])
def test_a_full_queue_behaves_as_set_and_without_waiting(when_full: Any) -> None:
    """How the application behaves then can be tested."""
    dropped: list[str] = []
    usage = fake(queue_events_max=1, when_full=when_full, on_dropped=lambda _, why: dropped.append(why))
    with usage.away():
        usage.emit("t", "acme", id="a")
        if when_full == "block":
            with pytest.raises(QueueFull):
                usage.emit("t", "acme", id="b")
        else:
            usage.emit("t", "acme", id="b")

    assert dropped == ([] if when_full == "block" else ["queue_full"])
    assert [event.id for event in usage.accepted()] == ["a"]
    assert conserved(usage)


def test_close_while_the_gateway_is_away_drops_and_says_so() -> None:
    """And an event after `close` is an error, as always."""
    dropped: list[str] = []
    usage = fake(on_dropped=lambda _, why: dropped.append(why))
    with usage.away():
        usage.emit("t", "acme")
        assert not usage.close()

    assert dropped == ["closed"]
    with pytest.raises(RuntimeError, match="closed"):
        usage.emit("t", "acme")


def test_a_callback_may_emit_and_threads_share_the_double() -> None:
    """Neither blocks nor loses an event."""
    usage: FakeEmitter = fake(on_rejected=lambda event, *_: usage.emit("rejected", event.account))
    threads = [
        threading.Thread(target=lambda: [usage.emit("t", "acme", {"bad": {1}}) for _ in range(100)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(usage.accepted(type="rejected")), usage.stats().rejected, usage.stats().pending) == (400, 400, 0)


def test_the_double_has_every_method_of_the_emitter_with_its_arguments() -> None:
    """Code under test must not tell them apart."""
    for name, method in inspect.getmembers(Emitter, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(FakeEmitter, name)) == inspect.signature(method)


TIMES: Final = st.one_of(
    st.timedeltas(timedelta(days=-40), timedelta(minutes=10)).map(lambda ago: (NOW + ago).isoformat()),
    st.sampled_from([
        "2026-11-21T10:05:00Z", "2026-11-21T10:05:00.000001Z", "2026-10-17T10:00:00Z", "2026-10-17T09:59:59.999999Z",
        "2026-11-21 10:00:00Z", "2026-11-21T10:00:00", "2026-11-21T10:00:60Z", "2026-11-31T10:00:00Z", "now",
        "1969-12-31T23:59:59Z", "2026-11-21t10:00:00z", "2026-11-21T12:00:00+02:00", "2026-11-21T10:00:00+24:00",
        "2026-11-21T10:00:00.1234567890Z", "2026-11-21T24:00:00Z", "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59", "２026-11-21T10:00:00Z", "2026-11-21T10:00:00+05:60",
    ]),
)  # fmt: skip


def nested(levels: int) -> dict[str, Any]:
    """An object with so many levels."""
    return {"a": nested(levels - 1)} if levels > 1 else {}


@given(
    TIMES,
    st.sampled_from(
        [{}, {"n": 1}, nested(199), nested(200), {"l": [[[[]]]]}, {"x": "é" * 32_650}, {"x": "," * 65_600}]
    ),
    st.integers(0, 200),
)
def test_the_double_rejects_what_the_gateway_rejects(time: str, data: dict[str, Any], padding: int) -> None:
    """The gateway's own judge, without meters, is the oracle."""
    data = {**data, "padding": "x" * padding} if padding else data
    usage = fake()
    usage.emit("t", "acme", data, id="a", time=time)
    got = [each.reason for each in usage.rejected()]

    decoded = decode(encoded(Event("a", "t", "acme", data, time), "test"), 65_536)
    expected = [each.reason.value for each in decoded.rejected]
    for _, event in decoded.events:
        answer = judge(event, event_time_us(event, NOW_MS), rules_at(NOW_MS, WITHOUT_METERS))
        expected += [answer.reason.value] if isinstance(answer, Failure) else []
    assert got == expected, json.dumps(data)[:100]


PATHS: Final = st.sampled_from(["$.a", "$.b", "$.c.a"])
VALUES: Final = st.sampled_from([1, "1", "x", True, "", None])
FILTERS: Final = st.builds(
    Filter, path=PATHS, operator=st.sampled_from(FilterOperator), values=st.sampled_from([("1",), ("x", ""), ("true",)])
)
METERS: Final = st.lists(
    st.builds(
        Meter, slug=st.just("m"), event_type=st.sampled_from(["t", "u"]), aggregation=st.just("sum"),
        value_path=st.just("$.n.v"), filters=st.lists(FILTERS, max_size=2).map(tuple), on_bad=st.sampled_from(OnBad),
    )
    | st.builds(Meter, slug=st.just("m"), event_type=st.just("t"), aggregation=st.just("count"))
    | st.builds(
        Meter, slug=st.just("m"), event_type=st.just("t"), aggregation=st.just("duration"),
        on_bad=st.sampled_from(OnBad), value_path=st.sampled_from([None, "$.n.v"]), start_path=st.just("$.s"),
    )
    | st.builds(
        Meter, slug=st.just("m"), event_type=st.just("t"), aggregation=st.just("duration"),
        on_bad=st.sampled_from(OnBad), session_path=st.just("$.a"),
    ),
    max_size=3,
)  # fmt: skip


@given(
    METERS,
    st.dictionaries(st.sampled_from("ab"), VALUES),
    VALUES,
    st.sampled_from([{}, {"v": 1}, {"v": None}, {"w": 1}, 7]),
    st.sampled_from([{}, {"s": None}, {"s": NOW.isoformat()}]),
)
def test_the_double_finds_missing_values_as_the_gateway_does(
    meters: list[Meter], scalars: dict[str, Any], inner: Any, quantity: Any, start: dict[str, Any]
) -> None:
    """And events that no meter counts. The gateway's judge is the oracle."""
    meter_set = MeterSet(
        version=1, meters=[meter.model_copy(update={"slug": f"m{at}"}) for at, meter in enumerate(meters)]
    )
    data = {**scalars, "c": {"a": inner}, "n": quantity, **start}
    usage = fake(meters=[meter.model_dump(mode="json") for meter in meter_set.meters])
    usage.emit("t", "acme", data, id="a")

    answer = rules_at(NOW_MS, compiled.__wrapped__(meter_set)).contributions("t", data, NOW_MS * 1000)
    if isinstance(answer, Failure):
        assert [(each.reason, each.detail) for each in usage.rejected()] == [(answer.reason.value, answer.detail)]
    else:
        assert usage.rejected() == []
        assert bool(usage.unmetered()) == (not answer)


def test_check_finds_a_misspelt_type_and_a_missing_value() -> None:
    """The two most frequent mistakes."""
    tokens = Meter(slug="tokens", event_type="llm.completion", aggregation="sum", value_path="$.tokens")
    usage = fake(meters=[tokens.model_dump(mode="json")])
    usage.emit("llm.completion", "acme", {"tokens": 1}, id="good")
    usage.check()
    usage.emit("llm.completion", "acme", {"token": 1}, id="bad")
    usage.emit("llm.complete", "acme", {"tokens": 1}, id="lost")

    with pytest.raises(
        AssertionError, match=r"bad was rejected: missing_quantity: tokens: \$.tokens\nlost is of no meter"
    ):
        usage.check()


@pytest.mark.parametrize(
    ("event_type", "event_id"),
    [
        ("tidemark.adjusted.calls", "a"),
        ("t", "m:disk:0123456789abcdef:1:x"),
        ("t", "m:disk:1"),
        ("t", "c:0123456789abcdef01234567:calls:1"),
        ("t", "c:0123456789abcdef0123456:calls:1"),
    ],
)
def test_the_double_knows_what_is_reserved(event_type: str, event_id: str) -> None:
    """As the gateway does, and before it looks at the time."""
    usage = fake()
    usage.emit(event_type, "acme", {"quantity": "-5"}, id=event_id, time="yesterday")

    why = reserved(event_type, event_id)
    (found,) = usage.rejected()
    assert (found.reason, found.detail) == ("reserved_type", why) if why else found.reason == "bad_time"
