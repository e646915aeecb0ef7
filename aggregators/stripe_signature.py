"""Stripe's webhook signature (docs.stripe.com/webhooks, "Verify webhook signatures manually")."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

TOLERANCE_S: Final = 300
# Stripe signs with each valid secret; more parts than this are not Stripe's.
PARTS_MAX: Final = 32


def signature_problem(header: str, body: bytes, secrets: Sequence[str], now_s: int) -> str:
    """Why a delivery is not believed; "" if one of the secrets signed the body within `TOLERANCE_S` of now.

    The time of the signature may lie in the past or in the future: a body that was recorded long ago and a clock that
    is wrong are both refused.
    """
    parts = [part.partition("=") for part in header.split(",", PARTS_MAX)[:PARTS_MAX]]
    times = [text for name, _, text in parts if name.strip() == "t"]
    signatures = [text.strip().encode() for name, _, text in parts if name.strip() == "v1"]
    if len(times) != 1 or not times[0].strip().isascii() or not times[0].strip().isdigit() or len(times[0]) > 15:
        return "Stripe-Signature has no time"
    if not signatures:
        return "Stripe-Signature has no v1 signature"
    if abs(now_s - int(times[0])) > TOLERANCE_S:
        return f"the signature's time is more than {TOLERANCE_S} s from this machine's clock"
    signed = times[0].strip().encode() + b"." + body
    expected = [hmac.new(secret.encode(), signed, sha256).hexdigest().encode() for secret in secrets]
    # Every pair is compared, so that the duration does not show which secret is valid.
    matches = [hmac.compare_digest(one, other) for one in expected for other in signatures]
    return "" if any(matches) else "no secret of this deployment made the signature"
