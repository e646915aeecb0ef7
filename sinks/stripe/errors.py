"""Classifies Stripe's answers for the sender. Pure: no library, no network.

Sources: docs.stripe.com/error-handling, docs.stripe.com/rate-limits, docs.stripe.com/api/idempotent_requests. The
message for a duplicate, and that it has no code, were observed in test mode.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from schemas.reports import SendResult, SendStatus

DUPLICATE_PREFIX: Final = "An event already exists with identifier"
DUPLICATE_WORDS: Final = "already exists"
DUPLICATE_CODE: Final = "duplicate_meter_event"
NO_METER_PREFIX: Final = "No active meter"
# Codes of the meter and of the customer: an operator corrects them in Stripe, and then the same event is taken.
METER_CODES: Final = frozenset(
    {
        "no_meter",
        "no_meter_found",
        "archived_meter",
        # The meter reads other keys of the payload than those that the client sends.
        "payload_no_customer_defined",
        "payload_no_value_defined",
        "meter_event_no_customer_defined",
        "meter_event_value_not_found",
        "missing_dimension_payload_keys",
    }
)
CUSTOMER_CODES: Final = frozenset({"resource_missing", "meter_event_customer_not_found"})
TEXT_MAX: Final = 500
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
        """Whether Stripe may have stored this answer under the Idempotency-Key and would repeat it for at least 24 h.

        Stripe stores answers of executed requests, 5xx included, and none for conflicts and rate limits
        (docs.stripe.com/api/idempotent_requests).
        """
        return self.status >= 400 and self.status not in (409, 429)


def classify(answer: Answer, identifier: str) -> SendResult:
    """What the sender does after this answer to the meter event with this identifier.

    Duplicate identifier: the event is delivered. 408, 409, 424, 429, 5xx, `Stripe-Should-Retry: true`, no answer, a
    foreign one, or a stored one that Stripe repeats (`Idempotent-Replayed: true`): send the same event again. 401, 403:
    stop the sink. An answer about the meter or the customer: hold the events of the meter or of the account until an
    operator has corrected it. 400: the event itself is wrong and becomes a dead letter. Any other answer is not about
    the event: hold the account. Foreign answers never stop the sink and never make a dead letter.
    """
    detail = describe(answer)
    if is_refusal(answer):
        return SendResult(SendStatus.STOP, detail)
    if is_retryable(answer):
        return SendResult(SendStatus.RETRY, detail, retry_after_s(answer))
    if is_duplicate(answer, identifier):
        return SendResult(SendStatus.DUPLICATE, detail)
    if answer.message.startswith(DUPLICATE_PREFIX):
        return SendResult(SendStatus.RETRY, f"an answer about another event: {detail}")
    if answer.code in METER_CODES or answer.message.startswith(NO_METER_PREFIX):
        return SendResult(SendStatus.HOLD_METER, detail)
    if answer.code in CUSTOMER_CODES or answer.status != 400:
        return SendResult(SendStatus.HOLD_ACCOUNT, detail)
    return SendResult(SendStatus.DEAD, detail, cause=_cause(answer))


def _cause(answer: Answer) -> str:
    """What refusals of several events for one reason have in common: the code, or the message without the words that
    have digits, such as identifiers, values and instants."""
    words = answer.message[:TEXT_MAX].split()
    return answer.code or " ".join(word for word in words if not any(map(str.isdigit, word)))


def is_refusal(answer: Answer) -> bool:
    """Whether Stripe itself rejects the API key. A firewall's 403 does not count."""
    return answer.status in (401, 403) and not answer.is_foreign


def is_retryable(answer: Answer) -> bool:
    """Whether the same call may succeed later. Stripe once sent rate limits as 400 with a code.

    A replayed answer is about an earlier request: Stripe may have taken the event since.
    """
    if answer.headers.get("idempotent-replayed") == "true":
        return True
    if answer.is_foreign or answer.status in (0, 408, 409, 424, 429) or answer.status >= 500:
        return True
    return answer.code in ("rate_limit", "lock_timeout") or answer.headers.get("stripe-should-retry") == "true"


def is_duplicate(answer: Answer, identifier: str) -> bool:
    """Whether Stripe has the identifier already. API v2 says so by a code, v1 by a message with the identifier,
    whatever code comes with the message."""
    if answer.status != 400 or answer.is_foreign:
        return False
    if answer.code == DUPLICATE_CODE:
        return True
    # The identifier of a part or revision begins with that of another event.
    names_it = re.search(rf"(?<![\w-]){re.escape(identifier)}(?![\w-])", answer.message)
    return names_it is not None and DUPLICATE_WORDS in answer.message.lower()


def describe(answer: Answer) -> str:
    """One line for people: status, code, message, the exceeded limit and the request id.

    The line goes into the log as part of an outcome, so it is short and has no unprintable characters.
    """
    parts = [f"HTTP {answer.status}" if answer.status else "no answer", answer.code, answer.message]
    parts.append(answer.headers.get("stripe-rate-limited-reason", ""))
    parts.append(answer.request_id)
    return " · ".join(_printable(part) for part in parts if part)


def _printable(text: str) -> str:
    shown = "".join(character if character.isprintable() else " " for character in text[:TEXT_MAX])
    return shown + "…" * (len(text) > TEXT_MAX)


def retry_after_s(answer: Answer) -> float:
    """The seconds of the Retry-After header; at least one second if the whole account exceeds a rate limit."""
    floor_s = 1.0 if answer.status == 429 and answer.code != "lock_timeout" else 0.0
    try:
        asked_s = float(answer.headers.get("retry-after", "0"))
    except ValueError:
        return floor_s
    # A proxy may send anything, and float() also reads "nan", of which no pause can be made.
    return floor_s if math.isnan(asked_s) else min(max(asked_s, floor_s), RETRY_AFTER_MAX_S)
