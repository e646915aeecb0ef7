"""Makes the intent of a report entry of a closed bucket (I10, S9). A rebuild makes the same intents."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from aggregators.codec import ReportKey, parse_report_text
from aggregators.periods import period_at
from schemas.periods import AccountState
from schemas.reports import Intent
from schemas.rollup import Checkpoint


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
