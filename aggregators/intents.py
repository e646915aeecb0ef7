"""Makes the intents of a report entry of a closed bucket (I10, S9). A rebuild makes the same intents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

import msgspec

from aggregators.codec import ReportKey, parse_report_text
from aggregators.periods import period_at
from aggregators.quantities import decimal_text
from schemas.periods import AccountState
from schemas.reports import Intent
from schemas.rollup import Checkpoint

# docs.stripe.com/changelog/dahlia/2026-04-22/billing-meter-event-values-validation: Stripe refuses longer values. It is
# not said whether the last zeros of a whole number count, so they do here.
VALUE_DIGITS_MAX: Final = 15
# Enough for 6.3 * 10^16 whole units, more than a double at Stripe adds up exactly.
PARTS_MAX: Final = 64
_REVISION: Final = re.compile(r"-r[1-9][0-9]*$")


def intent_of(
    checkpoint: Checkpoint, bucket_start_ms: int, bucket_end_ms: int, key: ReportKey, text: str, state: AccountState
) -> Intent | None:
    """The intent of one report entry, or None if the total did not change over the bucket.

    `state` is the state of the entry's account. A binding that came after the entry's last event may have cut the
    period. Usage after the new boundary is billed in the next period, to that period's customer.
    """
    value = parse_report_text(text)
    period_end_ms = min(value.period_end_ms, period_at(state, key.period_start_ms).end_ms)
    delta_minor = value.current_minor - value.base_minor
    if not delta_minor:
        return None
    identity = (
        checkpoint.livemode, checkpoint.stripe_account, checkpoint.log_id, key.meter, key.account,
        key.period_start_ms, bucket_start_ms, delta_minor,
    )  # fmt: skip
    return Intent(
        identifier="tm_" + blake2b(msgspec.json.encode(identity), digest_size=20).hexdigest(),
        livemode=checkpoint.livemode,
        stripe_account=checkpoint.stripe_account,
        log_id=checkpoint.log_id,
        meter=key.meter,
        event_name=value.event_name,
        account=key.account,
        period_start_ms=key.period_start_ms,
        period_end_ms=period_end_ms,
        bucket_start_ms=bucket_start_ms,
        bucket_end_ms=bucket_end_ms,
        delta_minor=delta_minor,
        scale=value.scale,
    )


def parts_of(intent: Intent) -> Iterator[Intent]:
    """The intents that are published for `intent`: itself, or several whose deltas add up to its delta.

    Stripe takes at most `VALUE_DIGITS_MAX` digits in a value, so a longer value is sent in parts. Each part is an
    intent with an identifier of its own, `…-0`, `…-1` and so on, and is sent and settled by itself. A value that needs
    more than `PARTS_MAX` parts stays whole, and Stripe refuses it.
    """
    deltas = _parts(intent.delta_minor, intent.scale)
    if not 1 < len(deltas) <= PARTS_MAX:
        yield intent
        return
    for number, delta_minor in enumerate(deltas):
        yield intent.model_copy(update={"identifier": f"{intent.identifier}-{number}", "delta_minor": delta_minor})


def root_of(identifier: str) -> str:
    """The identifier of the first revision of an intent, of the identifier of any revision."""
    return _REVISION.sub("", identifier)


def revised(intent: Intent) -> Intent:
    """The next revision of an intent: the same change under an identifier that Stripe has not seen."""
    revision = intent.revision + 1
    return intent.model_copy(update={"identifier": f"{root_of(intent.identifier)}-r{revision}", "revision": revision})


def _parts(minor: int, scale: int) -> list[int]:
    """Amounts that add up to `minor`: whole units with as many digits as allowed, and the last digits."""
    if _digits(minor, scale) <= VALUE_DIGITS_MAX:
        return [minor]
    sign = -1 if minor < 0 else 1
    high, low = divmod(abs(minor), 10**VALUE_DIGITS_MAX)
    # The scale is below 15, so all but the last 15 digits are whole units.
    whole, most = high * 10**VALUE_DIGITS_MAX, (10**VALUE_DIGITS_MAX - 1) * 10**scale
    most_times, rest = divmod(whole, most)
    # Of a value with too many parts, one more than the most is enough to know.
    amounts = [most] * min(most_times, PARTS_MAX + 1) + [rest, low]
    return [sign * amount for amount in amounts if amount]


def _digits(minor: int, scale: int) -> int:
    return len(decimal_text(abs(minor), scale).replace(".", "").lstrip("0"))
