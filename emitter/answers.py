"""The status of each event in the gateway's answer, and when to send again."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

from emitter.transport import Answer

RETRY_AFTER_MAX_S: Final = 300.0
DETAIL_CHARACTERS_MAX: Final = 500


class EventAnswer(NamedTuple):
    """One event's fate: `accepted`, `rejected`, or anything else, which means: ask again."""

    status: str
    reason: str = ""
    detail: str = ""


def event_answers(answer: Answer, ids: Sequence[str]) -> list[EventAnswer] | None:
    """The answer on each event that was sent, or None where the answer does not speak of exactly these events.

    A 2xx without answers proves nothing: a proxy may have given it.
    """
    entries = _document(answer).get("events")
    if not isinstance(entries, list) or len(entries) != len(ids):
        return None
    found = []
    for number, (entry, event_id) in enumerate(zip(entries, ids, strict=True)):
        if not isinstance(entry, dict) or entry.get("index") != number or entry.get("id") not in (event_id, None):
            return None
        parts = [str(entry[name]) for name in ("detail", "remedy") if entry.get(name)]
        detail = "; ".join(parts)[:DETAIL_CHARACTERS_MAX]
        found.append(EventAnswer(str(entry.get("status")), str(entry.get("reason", "")), detail))
    return found


def error(answer: Answer) -> EventAnswer:
    """What a whole request was refused for: the gateway's error code and message, as far as it gave one."""
    stated = _document(answer).get("error")
    if not isinstance(stated, dict):
        return EventAnswer("rejected", f"http_{answer.status}", "the answer is not one of a Tidemark gateway")
    reason, detail = str(stated.get("code", f"http_{answer.status}")), str(stated.get("message", ""))
    return EventAnswer("rejected", reason, detail[:DETAIL_CHARACTERS_MAX])


def pause_s(attempt: int, base_s: float, longest_s: float, headers: Mapping[str, str]) -> float:
    """How long to wait before the next attempt: what Retry-After asks, else exponential backoff with jitter."""
    asked_s = _retry_after_s(headers.get("retry-after", ""))
    jittered_s = random.uniform(0.5, 1.0) * min(longest_s, base_s * 2.0 ** min(attempt, 30))
    return max(asked_s, jittered_s) if asked_s is not None else jittered_s


def _retry_after_s(text: str) -> float | None:
    # RFC 9110, 10.2.3: whole seconds, or a date.
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        wait_s: float = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError, OSError):
        # A year or an offset that no clock knows.
        return None
    return max(0.0, min(wait_s, RETRY_AFTER_MAX_S))


def _document(answer: Answer) -> Mapping[str, Any]:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
