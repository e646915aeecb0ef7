"""Deletes the entries that a relay has written, unless they changed since it read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sinks.redis.client import Command, pairs

# Deletes only unchanged entries. Safe half-way: the others are relayed again.
_DELETE_IF_UNCHANGED: Final = """
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
_CALL_FIELDS_MAX: Final = 500


def delete_if_unchanged(key: str, entries: Sequence[tuple[str, str | int]]) -> list[Command]:
    """Calls that delete those of the entries (field, value) of a hash whose values are unchanged."""
    return [
        ("EVAL", _DELETE_IF_UNCHANGED, 1, key, *pairs(entries[at : at + _CALL_FIELDS_MAX]))
        for at in range(0, len(entries), _CALL_FIELDS_MAX)
    ]
