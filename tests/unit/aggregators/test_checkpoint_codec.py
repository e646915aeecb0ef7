"""The text of a checkpoint: what is stored gives the same checkpoint, and equal checkpoints have one token."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aggregators.checkpoint_codec import decode_checkpoint, encode_checkpoint, token
from schemas.meters import MeterSet, Policy
from tests.conformance.rollup_states import checkpoint

METER: dict[str, Any] = {"slug": "calls", "event_type": "call", "aggregation": "count"}
DIMENSIONS = {"model": "$.model", "region": "$.region"}


def with_meters(**fields: Any) -> MeterSet:
    return MeterSet.model_validate({"version": 1, "meters": [METER | fields]})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param(
            with_meters(dimensions=DIMENSIONS),
            with_meters(dimensions=dict(reversed(DIMENSIONS.items()))),
            id="dimensions in another order",
        ),
        pytest.param(
            with_meters(), with_meters().model_copy(update={"policy": Policy()}), id="a default that is written out"
        ),
    ],
)
def test_equal_meter_sets_have_one_token(left: MeterSet, right: MeterSet) -> None:
    """Partitions may hold one meter set in two spellings; a worker of both partitions must not be fenced."""
    assert left == right
    assert left.model_dump_json() == right.model_dump_json()

    tokens = {token(msgspec.structs.replace(checkpoint(5), meter_set=meter_set)) for meter_set in (left, right)}
    assert len(tokens) == 1


def test_a_stored_checkpoint_is_read_with_its_token() -> None:
    """A worker compares the token of what it read with the stored token."""
    written = msgspec.structs.replace(checkpoint(5), meter_set=with_meters(dimensions=DIMENSIONS))

    fields = encode_checkpoint(written)
    assert written == decode_checkpoint(fields)
    assert fields["token"] == token(decode_checkpoint(fields))


def test_the_meter_set_is_written_only_with_a_change() -> None:
    """A meter set may have hundreds of kilobytes, and a flush commits a checkpoint."""
    written = msgspec.structs.replace(checkpoint(5), meter_set=with_meters())
    later = msgspec.structs.replace(written, next_offset=6)
    changed = msgspec.structs.replace(later, meter_set=with_meters(unit="calls"))

    assert "meter_set" not in encode_checkpoint(later, written)
    assert "meter_set" in encode_checkpoint(changed, written)
