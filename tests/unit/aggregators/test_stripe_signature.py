"""Stripe's signature: what stripe-python signs is believed, everything else is not."""

from __future__ import annotations

import pytest
import stripe

from aggregators.stripe_signature import TOLERANCE_S, signature_problem

NOW_S = 1_800_000_000
BODY = '{"id":"evt_1","name":"Zoë"}'
NEW, OLD = "whsec_new", "whsec_old"


def signed(secret: str, at_s: int = NOW_S, body: str = BODY) -> str:
    """The header that stripe-python makes."""
    return str(stripe.WebhookSignature.generate_signature_header(body, secret, timestamp=at_s))


def v1(secret: str) -> str:
    """The signature part of the header."""
    return signed(secret).partition(",")[2]


BELIEVED = {
    "one_secret": signed(NEW),
    "old_secret_of_a_rotation": signed(OLD),
    "both_secrets": f"t={NOW_S},{v1(OLD)},{v1(NEW)}",
    "another_scheme_beside": f"t={NOW_S},v0=00,{v1(NEW)}",
    "spaces": f"t={NOW_S}, {v1(NEW)}",
    "oldest": signed(NEW, NOW_S - TOLERANCE_S),
    "newest": signed(NEW, NOW_S + TOLERANCE_S),
}


@pytest.mark.parametrize("header", BELIEVED.values(), ids=BELIEVED)
def test_a_body_that_one_of_the_secrets_signed_is_believed(header: str) -> None:
    """During a rotation Stripe signs with both secrets, and we may have either."""
    assert "" == signature_problem(header, BODY.encode(), [NEW, OLD], NOW_S)


REFUSED = {
    "empty": "",
    "no_time": v1(NEW),
    "two_times": f"t={NOW_S},t={NOW_S},{v1(NEW)}",
    "time_is_text": f"t=now,{v1(NEW)}",
    "time_in_other_digits": f"t=١٢٣,{v1(NEW)}",
    "time_is_negative": f"t=-1,{v1(NEW)}",
    "time_is_huge": f"t={'9' * 400},{v1(NEW)}",
    "no_signature": f"t={NOW_S}",
    "other_scheme_only": f"t={NOW_S},v0={v1(NEW)[3:]}",
    "forged": f"t={NOW_S},v1={'0' * 64}",
    "not_ascii": f"t={NOW_S},v1=é",
    "other_secret": signed("whsec_other"),
    "other_body": signed(NEW, body=BODY + " "),
    "other_time": signed(NEW, NOW_S - 1).replace(str(NOW_S - 1), str(NOW_S)),
    "too_old": signed(NEW, NOW_S - TOLERANCE_S - 1),
    "too_new": signed(NEW, NOW_S + TOLERANCE_S + 1),
}


@pytest.mark.parametrize("header", REFUSED.values(), ids=REFUSED)
def test_everything_else_is_refused_with_a_reason(header: str) -> None:
    """A replay, a forgery and garbage look alike to Stripe: 400."""
    assert signature_problem(header, BODY.encode(), [NEW, OLD], NOW_S)


def test_without_a_secret_nothing_is_believed() -> None:
    """An empty file of secrets must not open the door."""
    assert signature_problem(signed(""), BODY.encode(), [], NOW_S)
