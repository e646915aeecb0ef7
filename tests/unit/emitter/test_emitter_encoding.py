"""What the emitter writes: exact quantities, times with an offset and its own ids; and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from emitter import Emitter, Event, uuid7
from emitter.encoding import encoded
from tests.worlds.emitter import FakeGateway, make


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"n": float("inf")}, id="infinity"),
        pytest.param({"n": Decimal("NaN")}, id="decimal NaN"),
        pytest.param({"n": object()}, id="object"),
        pytest.param({"n": "\ud800"}, id="lone surrogate"),
        pytest.param({Decimal(1): 1}, id="decimal key"),
        pytest.param({"n": 10**5000}, id="an integer Python will not print"),
    ],
)
def test_data_that_is_no_json_is_rejected_by_the_emitter_and_harms_no_other_event(data: dict[Any, Any]) -> None:
    """The gateway could not read a request with such data, so good events must not travel with it."""
    reported: list[str] = []
    gateway = FakeGateway()
    with make(gateway, on_rejected=lambda _event, reason, _detail: reported.append(reason)) as emitter:
        emitter.emit("t", "acme", data)
        emitter.emit("t", "acme", id="good")
        assert emitter.flush()

    assert reported == ["not_serializable"]
    assert sorted(gateway.stored) == ["good"]


def test_an_object_that_contains_itself_is_rejected_by_the_emitter() -> None:
    """json.dumps raises an error; nothing hangs."""
    loop: dict[str, Any] = {}
    loop["self"] = loop
    gateway = FakeGateway()
    with make(gateway) as emitter:
        emitter.emit("t", "acme", {"loop": loop})
        assert emitter.flush()

    assert emitter.stats().rejected == 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param(Decimal("0.1"), '"0.1"', id="decimal"),
        pytest.param(Decimal("12345678901234567.123456789"), '"12345678901234567.123456789"', id="long decimal"),
        pytest.param(Decimal("1E+3"), '"1E+3"', id="exponent"),
        pytest.param(0.1, "0.1", id="float in its shortest form"),
        pytest.param(2**60 + 1, str(2**60 + 1), id="large integer"),
        pytest.param(True, "true", id="boolean"),
    ],
)
def test_quantities_are_written_exactly(value: object, written: str) -> None:
    """No digit may change (I5)."""
    body = encoded(Event("1", "t", "acme", {"n": value}, 0), "test")

    assert f'"n":{written}'.encode() in body


def test_data_is_copied_one_level_deep() -> None:
    """The documented promise: a later change at the top level of the data has no effect."""
    gateway = FakeGateway()
    data = {"n": 1}
    emitter = make(gateway, flush_interval_s=10)
    emitter.emit("t", "acme", data)
    data["n"] = 2

    assert emitter.close()
    assert gateway.requests[0][0]["data"] == {"n": 1}


@pytest.mark.parametrize(
    ("time", "written"),
    [
        pytest.param(datetime(2026, 11, 21, 10, tzinfo=UTC), "2026-11-21T10:00:00Z", id="UTC"),
        pytest.param(
            datetime(2026, 11, 21, 10, tzinfo=timezone(timedelta(hours=-5))), "2026-11-21T10:00:00-05:00", id="offset"
        ),
        pytest.param("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z", id="text"),
        pytest.param(None, "2026-11-21T10:00:00.001Z", id="now"),
    ],
)
def test_times_are_written_with_an_offset(time: datetime | str | None, written: str) -> None:
    """The gateway refuses a time without an offset."""
    gateway = FakeGateway()
    with make(gateway, now_ns=lambda: 1_795_255_200_001_999_999) as emitter:
        emitter.emit("t", "acme", time=time)
        assert emitter.flush()

    assert gateway.requests[0][0]["time"] == written


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"type": ""}, id="empty type"),
        pytest.param({"type": "t" * 257}, id="long type"),
        pytest.param({"account": ""}, id="empty account"),
        pytest.param({"id": ""}, id="empty id"),
        pytest.param({"id": "i" * 10_000}, id="long id"),
        pytest.param({"time": datetime(2026, 1, 1)}, id="time without a zone"),  # noqa: DTZ001
        pytest.param({"time": ""}, id="empty time"),
    ],
)
def test_a_mistake_in_the_call_raises_at_once(arguments: dict[str, Any]) -> None:
    """The caller can still correct the call."""
    emitter = make(FakeGateway())

    with pytest.raises(ValueError, match=r".+"):
        emitter.emit(**{"type": "t", "account": "acme", **arguments})

    assert emitter.stats().emitted == 0
    assert emitter.close()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"source": ""}, id="no source"),
        pytest.param({"queue_events_max": 0}, id="no queue"),
        pytest.param({"when_full": "ignore"}, id="unknown policy"),
        pytest.param({"transport": None, "gateway_url": "ftp://x"}, id="not HTTP"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    """At construction, not with the first event."""
    with pytest.raises(ValueError, match=r".+"):
        Emitter(**{"gateway_url": "http://x", "api_key": "k", "source": "s", "transport": FakeGateway(), **settings})


def test_generated_ids_are_version_7_and_follow_the_clock() -> None:
    """RFC 9562: version and variant bits, milliseconds first."""
    early, late = uuid7(lambda: 1_795_255_200_000_000_000), uuid7(lambda: 1_795_255_200_001_000_000)

    assert early < late
    assert early[:13].replace("-", "") == f"{1_795_255_200_000:012x}"
    assert early[14] == "7"
    assert early[19] in "89ab"
    assert len({uuid7() for _ in range(10_000)}) == 10_000
