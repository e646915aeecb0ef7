"""Broken inputs at every door, and that the judges see what is lost; `make fuzz` sends a million."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.http import events
from pipeline.ingest import router
from pipeline.native.load import load
from pipeline.rollup import processor
from tests.fuzz import doors
from tests.fuzz.doors import Gateway, Wrong, ask, fewest, judged, opened_gateway, play, replayed
from tests.traffic.malformed import BODY_BYTES_MAX, Door, Malformed, Sent

INPUTS = 400


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with opened_gateway() as opened:
        yield opened


@pytest.mark.parametrize("seed", range(4))
def test_every_input_has_an_end_and_every_valid_event_counts(gateway: Gateway, seed: int) -> None:
    tally = play(gateway, Malformed(seed).inputs(INPUTS), load(enabled=True).library if seed % 2 else None)

    assert tally.refused.total() > 30
    assert tally.events["accepted"] > 20
    assert min(tally.counters["rejected"], tally.counters["counted"]) > 50


async def test_a_body_that_is_too_large_and_comes_in_one_piece_is_refused(gateway: Gateway) -> None:
    """Without a length the gateway sees the size when nothing more comes, and must not wait for more."""
    sent = Sent(Door.HTTP, ((b"content-type", b"application/json"),), b" " * (BODY_BYTES_MAX + 1))

    status, answer = await ask(gateway, sent)

    assert (status, answer["error"]["code"]) == (413, "body_too_large")


async def _lost(*_given: Any, **_more: Any) -> None:
    """Writes nothing."""


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        pytest.param(events, "append_entry", "the quarantine has others", id="the gateway keeps no rejected event"),
        pytest.param(processor, "quarantine", "in the quarantine", id="the worker keeps no rejected event"),
        pytest.param(router, "structured_value", "were forwarded", id="the router forwards a part"),
    ],
)
def test_what_is_lost_is_seen(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, message: str
) -> None:
    """A fuzzer that sees nothing proves nothing."""
    replacement: Any = (lambda record: (record.value or b"")[:-1]) if name == "structured_value" else _lost
    monkeypatch.setattr(module, name, replacement)
    if name == "append_entry":
        monkeypatch.setattr(events, "append_all", _closed)

    with pytest.raises(Wrong, match=message):
        play(gateway, Malformed(1).inputs(INPUTS))


async def _closed(appends: Any) -> None:
    for each in appends:
        each.close()


def test_a_failure_leaves_the_few_inputs_that_show_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Nobody finds one input among a thousand by hand."""
    monkeypatch.setattr(doors, "KEPT", tmp_path)
    monkeypatch.setattr(processor, "quarantine", _lost)
    with pytest.raises(Wrong, match=r"python -m tests\.fuzz doors --replay .*broken\.json"):
        judged(gateway, Malformed(1).inputs(50), None, "broken")
    with pytest.raises(Wrong, match="in the quarantine"):
        replayed(tmp_path / "broken.json")
    monkeypatch.undo()

    tally = replayed(tmp_path / "broken.json")

    assert tally.inputs == 2
    assert tally.counters["rejected"] >= 2


def test_the_fewest_inputs_are_kept() -> None:
    inputs = Malformed(1).inputs(40)
    bad = inputs[7], inputs[30]

    assert list(bad) == fewest(lambda some: not all(each in some for each in bad), inputs)
