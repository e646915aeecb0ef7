"""`tidemark doctor`: checks of the dependencies and settings, with remedies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pipeline.clock import clock_from_text
from pipeline.commands.doctor_webhooks import check_side_tables, check_webhooks
from pipeline.commands.finding import Finding
from pipeline.native.load import load
from pipeline.open import (
    meter_set_in_force,
    open_base,
    open_live_view,
    open_stripe,
    open_usage_reader,
    read_meter_set,
)
from pipeline.settings import Settings
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from schemas.errors import TidemarkError
from schemas.log import EVENTS_TOPIC
from schemas.meters import MeterSet
from schemas.reports import StripeCatalog

CLOCK_SKEW_MS_MAX = 60_000
# Two passes of the measurer, of which the second one tells what the first one saw too early.
MEASURE_PASSES_MS = 10 * MINUTE_MS
MEASURED_LEAD_S_MIN = 900


async def diagnose(settings: Settings) -> list[Finding]:
    """Run all checks at the same time. A check that raises gives a finding with status wrong."""
    checks = {
        "meter_set": _meter_set, "grace": _grace, "measuring": _measuring, "log": _log, "redis": _redis,
        "clickhouse": _clickhouse, "stripe": _stripe, "final_action": _final_action, "native": _native,
        "webhooks": check_webhooks, "sql": check_side_tables,
    }  # fmt: skip

    async def run(what: str, check: Callable[[Settings], Awaitable[list[Finding]]]) -> list[Finding]:
        try:
            return await check(settings)
        except TidemarkError as error:
            return [Finding("wrong", what, str(error), "start it, or correct its setting")]

    results = await asyncio.gather(*(run(what, check) for what, check in checks.items()))
    return [finding for findings in results for finding in findings]


async def _meter_set(settings: Settings) -> list[Finding]:
    meter_set = read_meter_set(settings.meters)
    policy = meter_set.policy
    findings = [Finding("ok", "meter_set", f"version {meter_set.version}, {len(meter_set.meters)} meters")]
    if settings.retention_days * DAY_MS <= policy.window_ms:
        findings.append(
            Finding(
                "wrong",
                "retention",
                f"the log keeps {settings.retention_days} days, the dedup window is {policy.window_ms // DAY_MS} days",
                "set TIDEMARK_RETENTION_DAYS above the dedup window; a lost store is rebuilt from the log",
            )
        )
    return findings


async def _grace(settings: Settings) -> list[Finding]:
    """Whether the last usage of a period is reported before Stripe finalizes its invoice. After that Stripe adds
    usage to no invoice, and an invoice item must bill it.

    Source: docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period.
    """
    if not settings.stripe_api_key.get_secret_value():
        return []
    policy = (await _known_meters(settings)).policy
    last_ms, final_ms = policy.grace_ms + policy.report_interval_ms, round(settings.stripe_invoice_grace_h * HOUR_MS)
    detail = (
        f"usage of an ended period is reported up to {last_ms // MINUTE_MS} minutes after its end; Stripe finalizes "
        f"the invoice after {final_ms // MINUTE_MS} minutes"
    )
    if last_ms < final_ms:
        return [Finding("ok", "grace", detail)]
    return [
        Finding(
            "wrong" if settings.livemode else "note",
            "grace",
            f"{detail}, so the invoice lacks what comes later: an invoice item must bill it",
            f"set the invoice grace period in Stripe's dashboard above {last_ms / HOUR_MS:g} h (72 h is the longest) "
            "and TIDEMARK_STRIPE_INVOICE_GRACE_H to the same, or shorten policy.grace_ms and policy.report_interval_ms",
        )
    ]


async def _measuring(settings: Settings) -> list[Finding]:
    """Whether the last hours of measured meters are told before their period closes and Stripe makes the invoice."""
    meter_set = await _known_meters(settings)
    if not any(meter.aggregation.rule.measured for meter in meter_set.meters):
        return []
    told_ms = round(settings.measure_delay_s * SECOND_MS) + MEASURE_PASSES_MS
    told = f"the last hour of a period is told up to {told_ms / MINUTE_MS:g} minutes after its end"
    findings = []
    if meter_set.policy.grace_ms <= told_ms:
        detail = (
            f"{told}, and the period closes after {meter_set.policy.grace_ms / MINUTE_MS:g}: the next one counts it"
        )
        remedy = "set policy.grace_ms higher, or TIDEMARK_MEASURE_DELAY_S lower"
        findings.append(Finding("note", "measured grace", detail, remedy))
    if not settings.stripe_api_key.get_secret_value():
        return findings or [Finding("ok", "measuring", told)]
    final_ms = round(settings.stripe_invoice_grace_h * HOUR_MS)
    if final_ms <= told_ms:
        detail = (
            f"{told}, and Stripe finalizes the invoice after {final_ms / MINUTE_MS:g}: an invoice item must bill it"
        )
        remedy = (
            "set the invoice grace period in Stripe's dashboard higher, and TIDEMARK_STRIPE_INVOICE_GRACE_H to the same"
        )
        findings.append(Finding("note", "measured invoice", detail, remedy))
    if settings.close_lead_s < MEASURED_LEAD_S_MIN:
        detail = (
            f"TIDEMARK_CLOSE_LEAD_S is {settings.close_lead_s:g}: the sink may ask for usage that is not measured yet, "
            "because the worker measures every five minutes"
        )
        findings.append(Finding("note", "measured lead", detail, f"set it to {MEASURED_LEAD_S_MIN} or more"))
    return findings or [Finding("ok", "measuring", told)]


async def _final_action(settings: Settings) -> list[Finding]:
    """What Stripe does after the last retry. Only the dashboard says so, so a person must."""
    if not settings.stripe_api_key.get_secret_value():
        return []
    said = settings.stripe_final_action
    remedy = (
        "look under Billing, Revenue recovery, Retries in Stripe's dashboard, choose to mark the subscription as "
        "unpaid, and set TIDEMARK_STRIPE_FINAL_ACTION to what is chosen there"
    )
    if said == "cancel":
        detail = "Stripe cancels a subscription whose payments failed, before the customer had the last warning"
        return [Finding("wrong", "final_action", detail, remedy)]
    if not said:
        detail = "not set: nobody knows what Stripe does after the last retry of a payment"
        return [Finding("note", "final_action", detail, remedy)]
    return [Finding("ok", "final_action", f"{said}, after the last retry of a payment")]


async def _log(settings: Settings) -> list[Finding]:
    base = await open_base(settings, create=False)
    try:
        timestamps = dict(await base.log.topic_settings(EVENTS_TOPIC)).get("message.timestamp.type")
        detail = f"{settings.log_url}, log id {base.genesis.log_id}, {base.genesis.partitions} partitions"
        findings = [Finding("ok", "log", detail)]
        if timestamps != "LogAppendTime":
            findings.append(
                Finding(
                    "wrong",
                    f"{EVENTS_TOPIC} message.timestamp.type",
                    f"is {timestamps}",
                    "set it to LogAppendTime: stream time must come from the broker, not from producers",
                )
            )
        if settings.log_url.startswith("kafka://") and settings.replication < 3:
            findings.append(
                Finding(
                    "note",
                    "replication",
                    f"is {settings.replication}: a lost broker loses events",
                    "set TIDEMARK_REPLICATION=3 and TIDEMARK_MIN_INSYNC_REPLICAS=2 in production",
                )
            )
        return findings
    finally:
        await base.log.close()


async def _redis(settings: Settings) -> list[Finding]:
    view = open_live_view(settings)
    try:
        problems = await view.check()
        checkpoint = await view.state.load_checkpoint(0)
    finally:
        await view.close()
    findings = [Finding("wrong", "redis", problem, "") for problem in problems]
    if checkpoint is None:
        detail = f"{settings.redis_url} has no checkpoint yet"
        findings.append(Finding("note", "redis", detail, "start `tidemark worker`"))
    else:
        behind_ms = clock_from_text(settings.clock).now_ms() - checkpoint.stream_time_ms
        detail = f"partition 0 is folded up to offset {checkpoint.next_offset}, {behind_ms / 1000:.0f} s ago"
        if abs(behind_ms) < CLOCK_SKEW_MS_MAX:
            findings.append(Finding("ok", "rollup", detail))
        else:
            remedy = "start a worker, or synchronise the clocks of broker and workers"
            findings.append(Finding("wrong", "rollup", detail, remedy))
    return findings


async def _clickhouse(settings: Settings) -> list[Finding]:
    reader = open_usage_reader(settings)
    try:
        positions = await reader.archive_positions()
    finally:
        await reader.close()
    return [Finding("ok", "clickhouse", f"answers; {len(positions)} partitions archived")]


async def _native(settings: Settings) -> list[Finding]:
    loaded = load(enabled=settings.native)
    if loaded.library is not None:
        return [Finding("ok", "native", "worker and archive use the C core")]
    detail = "Python does the work of worker and archive: same results, a third of the speed"
    return [Finding("note", "native", detail, loaded.why)]


async def _stripe(settings: Settings) -> list[Finding]:
    meters = open_stripe(settings)
    if meters is None:
        return [Finding("note", "stripe", "no key: nothing is reported", "set TIDEMARK_STRIPE_API_KEY to report usage")]
    try:
        livemode, account = await meters.identity()
        unpriced = await _unpriced(settings, meters, livemode=livemode)
    finally:
        await meters.close()
    return [Finding("ok", "stripe", f"{'live' if livemode else 'test'} mode of {account}"), *unpriced]


async def _unpriced(settings: Settings, meters: StripeCatalog, *, livemode: bool) -> list[Finding]:
    """The metered meters that Stripe has no active price for: Stripe takes their usage and bills nothing."""
    names = [meter.stripe_event_name for meter in (await _known_meters(settings)).meters if meter.stripe_event_name]
    unpriced = [name for name in names if not await meters.has_price(name)]
    if not unpriced:
        return []
    return [
        Finding(
            "wrong" if livemode else "note",
            "prices",
            f"no active price at Stripe bills the meters {', '.join(unpriced)}",
            "make a metered price for each, or take stripe_event_name out of the meter set",
        )
    ]


async def _known_meters(settings: Settings) -> MeterSet:
    """The meter set in force; without one, or if Redis does not say, the meter set file."""
    try:
        return await meter_set_in_force(settings) or read_meter_set(settings.meters)
    except TidemarkError:
        return read_meter_set(settings.meters)
