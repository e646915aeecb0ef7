"""The checkpoint as a Redis hash."""

from __future__ import annotations

from collections.abc import Sequence

from aggregators.checkpoint_codec import FIELDS, METER_SET, encode_checkpoint
from schemas.rollup import Checkpoint
from sinks.redis.client import Command, pairs


def write_checkpoint(key: str, checkpoint: Checkpoint, believed: Checkpoint | None = None) -> Command:
    """The command that stores a checkpoint; `believed` is the stored one, if there is one."""
    return ("HSET", key, *pairs(encode_checkpoint(checkpoint, believed).items()))


def read_checkpoint(key: str, *, whole: bool) -> Command:
    """The command that reads a checkpoint; with the meter set if `whole`."""
    return ("HMGET", key, *FIELDS, *((METER_SET,) if whole else ()))


def stored_fields(answer: Sequence[str | None]) -> dict[str, str]:
    """The fields in the answer to `read_checkpoint`; empty if there is no checkpoint."""
    names = (*FIELDS, METER_SET)
    return {name: text for name, text in zip(names, answer, strict=False) if text is not None}
