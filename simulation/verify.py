"""Compares every view with the oracle and with the other views at the end of a run (I1, docs/guarantees.md)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from aggregators.bindings import customer_at, is_replaced
from aggregators.codec import parse_value
from aggregators.partitioning import partition_of
from oracle.model import Oracle
from oracle.records import Place
from oracle.rules import CONTROL_HEADER, RejectedError, decode
from reconciler.causes import Cause, Pair, Verdict
from reconciler.run import reconcile
from reconciler.views import ReconcilePolicy, Views
from schemas.clock import MINUTE_MS
from schemas.control import (
    SIGNATURE_HEADER,
    BindingRecord,
    CloseRecord,
    ControlKind,
    DedupDecisionRecord,
    FlushRecord,
    MeterSetRecord,
    RestatementRecord,
)
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC, REPORTS_TOPIC, Record, index_of, offset_of, position
from schemas.periods import Billing
from schemas.reports import Attempt, Intent
from simulation.faults import Fault
from simulation.processes import SLOW_LATENCY_S, STALL_S_MAX
from simulation.traffic import LINKED, PARTITIONS, WITHOUT_A_METER, meter_set
from simulation.verify_adjusted import verify_adjusted

if TYPE_CHECKING:
    from simulation.world import World

SHOWN_MAX = 5
# A dedup window spans at most three slices, and the next slice begins before the first expires.
SLICES_MAX = 4
# Between reading an account and its attempt, a sink checks the meter and appends. Both calls may be slow or stall.
LOOKED_MS_MAX = round(2_000 * (STALL_S_MAX + SLOW_LATENCY_S["stripe"]))


def oracle_of(world: World) -> Oracle:
    """The oracle after all records that were ever appended to `usage.events`."""
    oracle = Oracle(meter_set(1, world.report_interval_ms) | {"meters": []}, partitions=PARTITIONS)
    for partition in range(PARTITIONS):
        version = 0
        for record in world.log.appended[EVENTS_TOPIC, partition]:
            version = _tell(oracle, world, record, version)
    return oracle


def _tell(oracle: Oracle, world: World, record: Record, version: int) -> int:
    """Pass one record to the oracle; returns the version of the meter set in force after the record."""
    headers, value = dict(record.headers), record.value or b""
    kind, signature = headers.get(CONTROL_HEADER), headers.get(SIGNATURE_HEADER)
    if kind is None or signature in world.forged or signature in world.foreign:
        oracle.feed(record.partition, record.offset, record.timestamp_ms, value, record.headers)
        if signature in world.foreign:
            place = Place(record.partition, record.offset, 0)
            oracle.rulings[place] = oracle.rulings[place]._replace(reason="bad_control")
        return version
    moment = (record.partition, record.timestamp_ms)
    match ControlKind(kind.decode()):
        case ControlKind.METER_SET:
            proposed = MeterSetRecord.model_validate_json(value).meter_set
            if proposed.version > version:
                oracle.set_meter_set(record.partition, proposed.model_dump(mode="json"), record.timestamp_ms)
                return proposed.version
            oracle.tick(*moment)
        case ControlKind.BINDING:
            bound = BindingRecord.model_validate_json(value)
            fields = bound.binding.model_dump(mode="json")
            oracle.bind(
                record.partition, bound.account, fields, record.timestamp_ms, record.offset, revision=bound.revision
            )
        case ControlKind.CLOSE:
            closed = CloseRecord.model_validate_json(value)
            oracle.close(
                record.partition, closed.account, closed.instant_ms, record.timestamp_ms, record.offset,
                revision=closed.revision,
            )  # fmt: skip
        case ControlKind.FLUSH:
            flushed = FlushRecord.model_validate_json(value)
            oracle.flush(record.partition, flushed.account, record.timestamp_ms, revision=flushed.revision)
        case ControlKind.RESTATEMENT:
            restated = RestatementRecord.model_validate_json(value)
            answers, log_ms = offset_of(restated.position), record.timestamp_ms
            if restated.begins:
                oracle.begin_restatement(record.partition, restated.account, answers, record.offset, log_ms)
            else:
                before = len(oracle.accounts.declined)
                declined = bool(restated.declined)
                oracle.restatement(record.partition, restated.account, answers, declined=declined, timestamp_ms=log_ms)
                # The third meter set retires a meter, whose usage cannot move to other periods at Stripe any more.
                lost = "lost its Stripe event name" in restated.declined and version >= WITHOUT_A_METER
                if len(oracle.accounts.declined) > before and not lost:
                    world.fail("late bindings", f"{restated.account}: declined without need: {restated.declined}")
        case ControlKind.DEDUP_DECISION:
            for index, decision in enumerate(DedupDecisionRecord.model_validate_json(value).decisions):
                deferred = Place(record.partition, offset_of(decision.position), index_of(decision.position))
                oracle.resolve(deferred, record.offset, index, record.timestamp_ms)
        case _:
            oracle.tick(*moment)
    return version


async def verify(world: World) -> None:
    """Make all comparisons. A difference becomes an error of the run."""
    oracle = oracle_of(world)
    _checkpoints(world, oracle)
    _acknowledged(world, oracle)
    _differ(world, "repeated control records", oracle.accounts.repeated, _repeated(world))
    _differ(world, "redis totals", _positive(_oracle_totals(oracle)), _positive(_redis_totals(world)))
    _differ(world, "usage_hourly", _positive(_oracle_cells(oracle)), _positive(_hourly_cells(world)))
    _differ(world, "usage_events", _oracle_events(oracle), _archived(world))
    _differ(world, "usage_duplicates", _oracle_duplicates(oracle), dict.fromkeys(world.clickhouse.duplicates, 1))
    conflicts = (await world.clickhouse.conflicts(len(world.clickhouse.duplicates))).rows
    found = dict.fromkeys(((conflict.account, conflict.id) for conflict in conflicts), True)
    _differ(world, "conflicts", dict.fromkeys(oracle.conflicts, True), found)
    _differ(world, "usage.rejected", _oracle_reasons(oracle), _quarantined(world))
    intents = {key: intent for key, intent in _intents(world).items() if not _replaced(world, intent)}
    _differ(world, "intents", _positive(_oracle_totals(oracle)), _positive(_intent_sums(intents)))
    _flushed(world, oracle, intents)
    _stripe(world, oracle, intents)
    _bounded(world)
    if world.adjusts:
        verify_adjusted(world, oracle)
    _met(world)
    await _reconciled(world)


def _differ(world: World, view: str, expected: dict[Any, Any], found: dict[Any, Any]) -> None:
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if keys:
        shown = "; ".join(f"{key}: oracle {expected.get(key)}, found {found.get(key)}" for key in keys[:SHOWN_MAX])
        world.fail(view, f"{len(keys)} differ: {shown}")


def _positive(values: dict[Any, int]) -> dict[Any, int]:
    return {key: value for key, value in values.items() if value}


def _acknowledged(world: World, oracle: Oracle) -> None:
    """Check that the log has every acknowledged event."""
    received = {(decision.account, decision.id) for decision in oracle.rulings.values()}
    for value in world.acknowledged:
        try:
            events = decode(value)
        except RejectedError:
            continue
        for event in events:
            named = isinstance(event, dict) and all(isinstance(event.get(key), str) for key in ("subject", "id"))
            if named and (event["subject"], event["id"]) not in received:
                world.fail("acknowledged", f"{event['id']} of {event['subject']} is nowhere")


def _met(world: World) -> None:
    """Record faults of time: removed first records, late bindings, a period that ended within the run."""
    if any(world.log.first(EVENTS_TOPIC, partition) > 0 for partition in range(PARTITIONS)):
        world.faults.note(Fault.RETENTION_PASSED)
    for stored in world.store.server.partitions.values():
        for _ in [cut for state in stored.accounts.values() for cut in state.restatements]:
            world.faults.note(Fault.BINDING_LATE)
    periods: defaultdict[str, set[int]] = defaultdict(set)
    for account, _, start_ms in _redis_totals(world):
        periods[account].add(start_ms)
    if any(len(starts) > 1 for starts in periods.values()):
        world.faults.note(Fault.PERIOD_PASSED)


def _checkpoints(world: World, oracle: Oracle) -> None:
    for partition in range(PARTITIONS):
        checkpoint = world.store.server.partitions[partition].checkpoint
        if checkpoint is None:
            world.fail("checkpoint", f"partition {partition} has none")
            continue
        counters = checkpoint.counters._asdict()
        if not checkpoint.counters.conserved:
            world.fail("conservation", f"partition {partition}: {counters}")
        _differ(world, f"counters of partition {partition}", oracle.counters[partition], counters)


def _oracle_totals(oracle: Oracle) -> dict[Any, int]:
    return {(account, meter, period[0]): value for (account, meter, period), value in oracle.totals.items()}


def _redis_totals(world: World) -> dict[Any, int]:
    return {
        (key.account, meter, key.period_start_ms): parse_value(text).minor
        for stored in world.store.server.partitions.values()
        for key, fields in stored.totals.items()
        for meter, text in fields.items()
    }


def _oracle_cells(oracle: Oracle) -> dict[Any, int]:
    return {
        (account, meter, period[0], hour, dimensions, bucket): value
        for (account, meter, period, hour, dimensions, bucket), value in oracle.cells.items()
    }


def _repeated(world: World) -> dict[Any, int]:
    return {
        account: state.repeated
        for stored in world.store.server.partitions.values()
        for account, state in stored.accounts.items()
        if state.repeated
    }


def _hourly_cells(world: World) -> dict[Any, int]:
    cells = world.clickhouse.cells.items()
    return {tuple(key): row.value_minor for key, row in cells if row.period_end_ms > row.period_start_ms}


def _oracle_events(oracle: Oracle) -> dict[Any, int]:
    return {
        (decision.account, decision.id): position(place.offset, place.event_index)
        for place, decision in oracle.rulings.items()
        if decision.outcome in ("counted", "unmetered") or place in oracle.kept_out
    }


def _archived(world: World) -> dict[Any, int]:
    return {identity: row.position for identity, row in world.clickhouse.events.items()}


def _oracle_duplicates(oracle: Oracle) -> dict[Any, int]:
    return {(place.partition, position(place.offset, place.event_index)): 1 for place, *_ in oracle.duplicates}


def _oracle_reasons(oracle: Oracle) -> dict[Any, str]:
    return {
        (place.partition, place.offset, place.event_index): decision.reason
        for place, decision in oracle.rulings.items()
        if decision.reason
    }


def _quarantined(world: World) -> dict[Any, str]:
    """The reasons by position. After a crash an entry may be there twice."""
    reasons: dict[Any, str] = {}
    for record in _records(world, REJECTED_TOPIC):
        headers = {name.removeprefix("tidemark-"): text.decode() for name, text in record.headers}
        if headers["topic"] != EVENTS_TOPIC:
            continue
        key = (int(headers["partition"]), int(headers["offset"]), int(headers["index"]))
        if reasons.setdefault(key, headers["reason"]) != headers["reason"]:
            world.fail("usage.rejected", f"two reasons at {key}")
    return reasons


def _records(world: World, topic: str) -> Iterator[Record]:
    for partition in range(PARTITIONS):
        yield from world.log.appended.get((topic, partition), ())


def unsettled(world: World) -> int:
    """The number of intents without outcome in periods that have begun. Stripe refuses usage of the future.

    Usage that nobody was named for, because its account was linked later or unlinked, waits for ever.
    """
    waiting, settled = set[str](), set[str]()
    for record in _records(world, REPORTS_TOPIC):
        for entry in _entries(record):
            if entry["kind"] == "intent":
                if entry["period_start_ms"] <= world.clock.now_ms() and not _is_nobodys(world, entry):
                    waiting.add(entry["identifier"])
            elif entry["kind"] == "outcome":
                settled.add(entry["identifier"])
    return len(waiting - settled)


def _is_nobodys(world: World, entry: dict[str, Any]) -> bool:
    """Whether an intent's usage is from before the first subscription of its account, or the account was unlinked."""
    intent = Intent.model_validate(entry)
    if intent.account not in LINKED:
        return False
    stored = world.store.server.partitions.get(partition_of(intent.account, PARTITIONS))
    state = stored.accounts.get(intent.account) if stored else None
    payer = customer_at(state, intent.instant_ms) if state else None
    return payer is None or payer.billing is Billing.UNMAPPED


def _intents(world: World) -> dict[str, Intent]:
    """The intents by identifier. An intent may be there twice, but not with two deltas."""
    intents: dict[str, Intent] = {}
    for record in _records(world, REPORTS_TOPIC):
        for entry in _entries(record):
            if entry["kind"] == "intent":
                intent = Intent.model_validate(entry)
                if intents.setdefault(intent.identifier, intent).delta_minor != intent.delta_minor:
                    world.fail("intents", f"two deltas under {intent.identifier}")
    return intents


def _entries(record: Record) -> list[dict[str, Any]]:
    """The entries of a record of `billing.reports`: one, or a list of them."""
    parsed = json.loads(record.value or b"[]")
    return parsed if isinstance(parsed, list) else [parsed]


def settled_late(world: World) -> set[str]:
    """The intents whose invoice was final: an invoice item bills them (`verify_invoices`)."""
    entries = [entry for record in _records(world, REPORTS_TOPIC) for entry in _entries(record)]
    return {entry["identifier"] for entry in entries if entry["kind"] == "outcome" and entry["status"] == "late"}


def _replaced(world: World, intent: Intent) -> bool:
    """Whether its account was cut again since, so that the live view says another intent tells its usage."""
    states = (stored.accounts.get(intent.account) for stored in world.store.server.partitions.values())
    return any(state and is_replaced(state, intent.period_start_ms, intent.bucket_start_ms) for state in states)


def _intent_sums(intents: dict[str, Intent]) -> dict[Any, int]:
    sums: Counter[Any] = Counter()
    for intent in intents.values():
        # A revision repeats the change of the redriven intent.
        if not intent.revision:
            sums[intent.account, intent.meter, intent.period_start_ms] += intent.delta_minor
    return dict(sums)


def _flushed(world: World, oracle: Oracle, intents: dict[str, Intent]) -> None:
    """Check that the intents that end by a flush add up to the account's totals there, that no report bucket lies on
    both sides of a flush, and that what is told at Stripe lies on the right side too."""
    told = {stored.event.identifier: stored.event.timestamp_s for stored in world.stripe.events}
    for (account, instant_ms), totals in oracle.flushed.items():
        before: dict[str, Intent] = {}
        for identifier, intent in intents.items():
            # A redrive tells usage when Stripe takes it.
            if intent.account != account or intent.revision:
                continue
            if intent.bucket_end_ms <= instant_ms:
                before[identifier] = intent
            elif intent.bucket_start_ms < instant_ms:
                world.fail("flushes", f"{identifier} lies on both sides of the flush of {account} at {instant_ms}")
            # Usage may belong to a period that begins after the flush.
            is_here = identifier in told and intent.period_start_ms < instant_ms < intent.period_end_ms
            # Usage that was reported before its period began is told in the period's first minute.
            is_early = intent.bucket_end_ms <= intent.period_start_ms
            if is_early and instant_ms < intent.period_start_ms + MINUTE_MS:
                continue
            # A level stands from the period's first instant on, and no second lies between that and such a flush.
            is_at_once = identifier in before and instant_ms // 1000 == intent.period_start_ms // 1000
            if is_at_once and told.get(identifier) == instant_ms // 1000:
                continue
            if is_here and (told[identifier] < instant_ms // 1000) != (identifier in before):
                world.fail("flushes", f"{identifier} is told at {told[identifier]}, and the flush is at {instant_ms}")
        expected = {(account, meter, period[0]): value for (_, meter, period), value in totals.items()}
        name = f"intents of {account} up to its flush at {instant_ms}"
        _differ(world, name, _positive(expected), _positive(_intent_sums(before)))


def _payers(world: World, oracle: Oracle) -> dict[str, set[str]]:
    """The customers of the attempts by identifier.

    Checks that each customer is the payer by a state of the account that the sink had read, at or after the end of the
    intent's report bucket.
    """
    named: defaultdict[str, set[str]] = defaultdict(set)
    intents = _intents(world)
    for record in _records(world, REPORTS_TOPIC):
        if b'"kind":"attempt"' not in (record.value or b""):
            continue
        attempt, append_ms = Attempt.model_validate_json(record.value or b""), record.timestamp_ms
        intent, instant_ms = intents[attempt.identifier], attempt.timestamp_s * 1000
        account = intent.account
        looked = {
            log_ms
            for seen_ms, log_ms in world.store.accounts.looked[account]
            if append_ms - LOOKED_MS_MAX <= seen_ms <= append_ms and log_ms >= intent.bucket_end_ms
        }
        paying = set[str]().union(*(oracle.accounts.payers(account, instant_ms, log_ms) for log_ms in looked))
        if attempt.stripe_customer not in (paying if attempt.replaces_ms is None else named[attempt.identifier]):
            world.fail("payer", f"{attempt.identifier}: {attempt.stripe_customer} instead of {sorted(paying)}")
        named[attempt.identifier].add(attempt.stripe_customer)
    return dict(named)


def _stripe(world: World, oracle: Oracle, intents: dict[str, Intent]) -> None:
    """Check that Stripe has each intent once, with the right value, period and customer; none for the free account."""
    payers = _payers(world, oracle)
    sent: defaultdict[str, list[Any]] = defaultdict(list)
    everything = _intents(world)
    for stored in world.stripe.events:
        intent = everything.get(stored.event.identifier)
        if intent is not None and _replaced(world, intent):
            world.fail("stripe", f"{intent.identifier}: was sent although its usage was counted again")
        sent[stored.event.identifier].append(stored.event)
    now_ms = world.clock.now_ms()
    late = settled_late(world)
    expected = {
        identifier: 1
        for identifier, intent in intents.items()
        # Stripe may have usage whose invoice was final, if an answer was lost.
        if not (identifier in late and identifier not in sent)
        and intent.period_start_ms <= now_ms
        and oracle.accounts.billing(intent.account, intent.instant_ms) == "mapped"
    }
    # Usage carried into a period that begins in a few minutes may be there already: Stripe accepts such timestamps.
    early = {identifier for identifier, intent in intents.items() if now_ms < intent.period_start_ms}
    counts = {key: len(events) for key, events in sent.items() if key not in early or len(events) > 1}
    _differ(world, "stripe: events by identifier", expected, counts)
    for identifier, events in sent.items():
        intent, event = intents.get(identifier), events[0]
        if intent is None:
            continue
        content = (event.event_name, event.stripe_customer, Decimal(event.value))
        value = Decimal(intent.delta_minor).scaleb(-intent.scale)
        meant = [(intent.event_name, customer, value) for customer in payers.get(identifier, ())]
        if content not in meant:
            world.fail("stripe", f"{identifier}: {content} instead of one of {meant}")
        start_ms, end_ms = oracle.period(intent.account, intent.period_start_ms)
        if start_ms != intent.period_start_ms or not start_ms <= event.timestamp_s * 1000 < end_ms:
            world.fail("stripe", f"{identifier}: its timestamp lies outside its period")


def _bounded(world: World) -> None:
    """Check that the outbox is empty and that marks never exceeded the dedup window's slices."""
    for partition, stored in world.store.server.partitions.items():
        left = {
            "dirty": len(stored.dirty),
            "duplicates": len(stored.duplicates),
            "reports": len(stored.reports),
            "deferred": len(stored.deferred),
        }
        if any(left.values()):
            world.fail("outbox", f"partition {partition}: {left}")
    for partition, slices in world.store.state.slices_max.items():
        if slices > SLICES_MAX:
            world.fail("marks", f"partition {partition}: {slices} slices were live at one time")


async def _reconciled(world: World) -> None:
    """Check that the product's reconciler reports no unexpected difference."""
    views = Views(world.store, world.clickhouse, world.clickhouse, world.log, world.stripe, world.stripe)
    report = await reconcile(views, world.clock, policy=ReconcilePolicy(stripe_reads_per_s=1000.0))
    redriven = {
        entry["identifier"]
        for record in _records(world, REPORTS_TOPIC)
        for entry in _entries(record)
        if entry["kind"] == "redrive"
    }
    rejected = any(stored.code and stored.event.identifier not in redriven for stored in world.stripe.events)
    for row in report.rows:
        early = row.period is not None and row.period.start_ms > world.clock.now_ms()
        # For the reconciler, recent events at Stripe are in flight, and hours that a tick has just closed, and levels
        # that a tick has just carried over. All were compared with the oracle before.
        recent = row.cause is Cause.IN_FLIGHT and row.pair in (Pair.STRIPE, Pair.HOURLY, Pair.INTENTS)
        rejection = row.cause is Cause.REJECTED_BY_STRIPE and rejected
        # Reports of the time after an account was unlinked wait for ever.
        nobodys = row.cause is Cause.UNKNOWN_CUSTOMER and row.account in LINKED
        if row.cause is Cause.CONFLICT or rejection or early or recent or nobodys:
            continue
        world.fail("reconciler", str(row))
    if report.verdict is Verdict.DRIFT and not rejected:
        world.fail("reconciler", "drift")
