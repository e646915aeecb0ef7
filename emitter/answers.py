"""Reads the status of each event from the gateway's answer, and computes the pause before the next attempt."""

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
    """The gateway's answer on one event. A status other than `accepted` and `rejected` means: send the event again."""

    status: str
    reason: str = ""
    detail: str = ""


def event_answers(answer: Answer, ids: Sequence[str]) -> list[EventAnswer] | None:
    """The answer on each event in `ids`; None if the answer does not list exactly these events.

    A 2xx without this list proves nothing, because a proxy may have sent it.
    """
    entries = _document(answer).get("events")
    if not isinstance(entries, list) or len(entries) != len(ids):
        return None
    answers = []
    for number, (entry, event_id) in enumerate(zip(entries, ids, strict=True)):
        if not isinstance(entry, dict) or entry.get("index") != number or entry.get("id") not in (event_id, None):
            return None
        parts = [str(entry[name]) for name in ("detail", "remedy") if entry.get(name)]
        detail = "; ".join(parts)[:DETAIL_CHARACTERS_MAX]
        answers.append(EventAnswer(str(entry.get("status")), str(entry.get("reason", "")), detail))
    return answers


def is_refused(answer: Answer) -> bool:
    """Whether a whole request was refused for what is in the request.

    A proxy answers 400 too, to a missing Host or to HTTP at a TLS port, which says nothing of the events. 413 means
    that the request is too large for somebody on the way.
    """
    if answer.status != 400:
        return answer.status == 413
    document = _document(answer)
    return isinstance(document.get("error"), dict) or isinstance(document.get("events"), list)


def error(answer: Answer) -> EventAnswer:
    """The error code and the message, with its field, with which the gateway refused a whole request, if the answer
    contains them."""
    stated = _document(answer).get("error")
    if not isinstance(stated, dict):
        return EventAnswer("rejected", f"http_{answer.status}", "the answer is not one of a Tidemark gateway")
    reason, detail = str(stated.get("code", f"http_{answer.status}")), str(stated.get("message", ""))
    field = str(stated.get("field", ""))
    # Some messages begin with their field.
    if field and not detail.startswith(f"{field}:"):
        detail = f"{field}: {detail}"
    return EventAnswer("rejected", reason, detail[:DETAIL_CHARACTERS_MAX])


def pause_s(attempt: int, base_s: float, longest_s: float, headers: Mapping[str, str]) -> float:
    """Seconds to wait before the next attempt: exponential backoff with jitter, but at least the Retry-After header."""
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
        # The year or the offset is out of range.
        return None
    return max(0.0, min(wait_s, RETRY_AFTER_MAX_S))


def _document(answer: Answer) -> Mapping[str, Any]:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
