"""Classifies Stripe's answers for the sender. Pure: no library, no network.

Sources: docs.stripe.com/error-handling, docs.stripe.com/rate-limits, docs.stripe.com/api/idempotent_requests. The
message for a duplicate, and that it has no code, were observed in test mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from schemas.reports import SendResult, SendStatus

DUPLICATE_PREFIX: Final = "An event already exists with identifier"
DUPLICATE_CODE: Final = "duplicate_meter_event"
RETRY_AFTER_MAX_S: Final = 300.0


class Answer(NamedTuple):
    """An answer other than 2xx, or no answer (status 0). Header names are in lower case.

    `is_foreign`: the body does not have Stripe's form, so a proxy or a firewall sent the answer, or it was cut off.
    """

    status: int
    message: str = ""
    code: str = ""
    kind: str = ""
    headers: Mapping[str, str] = {}
    is_foreign: bool = False

    @property
    def request_id(self) -> str:
        """The request id for Stripe's support; empty if the answer has none."""
        return self.headers.get("request-id", "")

    @property
    def is_stored(self) -> bool:
        """Whether Stripe stores this answer under the Idempotency-Key and repeats it for at least 24 h."""
        return self.status >= 500


def classify(answer: Answer) -> SendResult:
    """What the sender does after this answer to one meter event.

    Duplicate identifier: the event is delivered. 409, 429, 5xx, no answer or a foreign one: send the same event again.
    401, 403: stop the sink. Any other answer: the event becomes a dead letter. Foreign answers never stop the sink and
    never make a dead letter.
    """
    detail = describe(answer)
    if is_refusal(answer):
        return SendResult(SendStatus.STOP, detail)
    if is_retryable(answer):
        return SendResult(SendStatus.RETRY, detail, _retry_after_s(answer))
    if is_duplicate(answer):
        return SendResult(SendStatus.DUPLICATE, detail)
    return SendResult(SendStatus.DEAD, detail)


def is_refusal(answer: Answer) -> bool:
    """Whether Stripe itself rejects the API key. A firewall's 403 does not count."""
    return answer.status in (401, 403) and not answer.is_foreign


def is_retryable(answer: Answer) -> bool:
    """Whether the same call may succeed later. Stripe once sent rate limits as 400 with a code."""
    if answer.is_foreign or answer.status in (0, 409, 429) or answer.status >= 500:
        return True
    return answer.code in ("rate_limit", "lock_timeout")


def is_duplicate(answer: Answer) -> bool:
    """Whether Stripe has the identifier already. API v1 says so by a message without a code, v2 by a code."""
    if answer.status != 400 or answer.is_foreign:
        return False
    return answer.code == DUPLICATE_CODE or (not answer.code and answer.message.startswith(DUPLICATE_PREFIX))


def describe(answer: Answer) -> str:
    """One line for people: status, code, message, the exceeded limit and the request id."""
    parts = [f"HTTP {answer.status}" if answer.status else "no answer", answer.code, answer.message]
    parts.append(answer.headers.get("stripe-rate-limited-reason", ""))
    parts.append(answer.request_id)
    return " · ".join(part for part in parts if part)


def _retry_after_s(answer: Answer) -> float:
    """The seconds of the Retry-After header; at least one second if the whole account exceeds a rate limit."""
    floor_s = 1.0 if answer.status == 429 and answer.code != "lock_timeout" else 0.0
    try:
        asked_s = float(answer.headers.get("retry-after", "0"))
    except ValueError:
        return floor_s
    # A proxy may send anything, and float() also reads "nan", of which no pause can be made.
    return floor_s if math.isnan(asked_s) else min(max(asked_s, floor_s), RETRY_AFTER_MAX_S)
