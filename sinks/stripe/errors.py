"""What an answer of Stripe means to the sender. Pure: no library, no network.

Sources: docs.stripe.com/error-handling, docs.stripe.com/rate-limits, docs.stripe.com/api/idempotent_requests;
the duplicate's message and its missing code are as observed in test mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from schemas.reports import SendResult, SendStatus

DUPLICATE_PREFIX: Final = "An event already exists with identifier"
DUPLICATE_CODE: Final = "duplicate_meter_event"
RETRY_AFTER_MAX_S: Final = 300.0


class Answer(NamedTuple):
    """An answer other than 2xx, or none at all (status 0). Header names are in lower case.

    `is_foreign`: it is not in Stripe's form, so a proxy, a firewall or a broken line gave it, of whatever status.
    """

    status: int
    message: str = ""
    code: str = ""
    kind: str = ""
    headers: Mapping[str, str] = {}
    is_foreign: bool = False

    @property
    def request_id(self) -> str:
        """What Stripe's support asks for; empty where there is none."""
        return self.headers.get("request-id", "")

    @property
    def is_stored(self) -> bool:
        """Whether Stripe keeps this answer under the Idempotency-Key and would repeat it for 24 h or more."""
        return self.status >= 500


def classify(answer: Answer) -> SendResult:
    """What to do after this answer to one meter event.

    Duplicate identifier: delivered. 409, 429, 5xx, no answer of Stripe's own: the same event again. 401, 403: stop.
    Everything else is a fault of this one event: a dead letter. That is final, and stopping ends the sink, so both
    need Stripe's own words.
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
    """Whether Stripe itself refuses the key: a firewall's 403 says nothing about it."""
    return answer.status in (401, 403) and not answer.is_foreign


def is_retryable(answer: Answer) -> bool:
    """Whether the same call may succeed later. Rate limits were once sent as 400 with a code."""
    if answer.is_foreign or answer.status in (0, 409, 429) or answer.status >= 500:
        return True
    return answer.code in ("rate_limit", "lock_timeout")


def is_duplicate(answer: Answer) -> bool:
    """Whether Stripe has the identifier already: by v1's message without a code, or by v2's code."""
    if answer.status != 400 or answer.is_foreign:
        return False
    return answer.code == DUPLICATE_CODE or (not answer.code and answer.message.startswith(DUPLICATE_PREFIX))


def describe(answer: Answer) -> str:
    """One line for people: status, code, message, the limit that was hit and the request's id."""
    parts = [f"HTTP {answer.status}" if answer.status else "no answer", answer.code, answer.message]
    parts.append(answer.headers.get("stripe-rate-limited-reason", ""))
    parts.append(answer.request_id)
    return " · ".join(part for part in parts if part)


def _retry_after_s(answer: Answer) -> float:
    """What the header says; at least a second where the account as a whole is too fast."""
    floor_s = 1.0 if answer.status == 429 and answer.code != "lock_timeout" else 0.0
    try:
        return min(max(float(answer.headers.get("retry-after", "0")), floor_s), RETRY_AFTER_MAX_S)
    except ValueError:
        return floor_s
