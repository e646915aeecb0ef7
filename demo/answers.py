"""The gateway's answers to checks, as the demo shows them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Check(NamedTuple):
    """The gateway's answer to a check. `unlocked_by` is the plan that would allow what is denied, or "". `words` is the
    answer for a person. `by` are the plans that give the feature."""

    allowed: bool
    reason: str
    unlocked_by: str
    words: str
    by: tuple[str, ...]


def check_of(answer: dict[str, Any]) -> Check:
    """The parts of an answer of `POST /v1/access/check` that the demo shows."""
    upgrade = answer["upgrade"] or {}
    by = tuple(give["id"] for give in answer["gives"])
    words = f"{', '.join(by) or 'nothing'} gives it" if answer["allowed"] else upgrade.get("words", "")
    return Check(answer["allowed"], answer["reason"], upgrade.get("plan", ""), words, by)
