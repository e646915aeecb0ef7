"""After the rest: every view against the oracle and against every other (I1, and what docs/guarantees.md promises)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from aggregators.bindings import is_replaced
from aggregators.codec import parse_value
from oracle.model import Oracle, Place
from oracle.rules import CONTROL_HEADER, RejectedError, decode
from reconciler.causes import Cause, Pair, Verdict
from reconciler.run import reconcile
from reconciler.views import ReconcilePolicy, Views
from schemas.control import (
    SIGNATURE_HEADER,
    BindingRecord,
    CloseRecord,
    ControlKind,
    DedupDecisionRecord,
    MeterSetRecord,
    RestatementRecord,
)
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC, REPORTS_TOPIC, Record, index_of, offset_of, position
from schemas.reports import Attempt, Intent
from simulation.faults import Fault
from simulation.processes import SLOW_LATENCY_S, STALL_S_MAX
from simulation.traffic import FREE, PARTITIONS, WITHOUT_A_METER, meter_set

if TYPE_CHECKING:
    from simulation.world import World

SHOWN_MAX = 5
# A window spans three halves at most, and the next is made before the first is gone.
SLICES_MAX = 4
# Between a sink's look at an account and its attempt in the log lie the call that makes sure of the meter, and the
# append: each may be suspended, and be slow.
LOOKED_MS_MAX = round(2_000 * (STALL_S_MAX + SLOW_LATENCY_S["stripe"]))


def oracle_of(world: World) -> Oracle:
    """The oracle, told everything that was ever appended to `usage.events`."""
    oracle = Oracle(meter_set(1, world.report_interval_ms) | {"meters": []}, partitions=PARTITIONS)
    for partition in range(PARTITIONS):
        version = 0
        for record in world.log.appended[EVENTS_TOPIC, partition]:
            version = _tell(oracle, world, record, version)
    return oracle


def _tell(oracle: Oracle, world: World, record: Record, version: int) -> int:
    """One record; the version of the meter set in force after it."""
    headers, value = dict(record.headers), record.value or b""
    kind, signature = headers.get(CONTROL_HEADER), headers.get(SIGNATURE_HEADER)
    if kind is None or signature in world.forged or signature in world.foreign:
        oracle.feed(record.partition, record.offset, record.timestamp_ms, value, record.headers)
        if signature in world.foreign:
            place = Place(record.partition, record.offset, 0)
            oracle.rulings[place] = oracle.rulings[place]._replace(reason="bad_control")
        return version
    at = (record.partition, record.timestamp_ms)
    match ControlKind(kind.decode()):
        case ControlKind.METER_SET:
            proposed = MeterSetRecord.model_validate_json(value).meter_set
            if proposed.version > version:
                oracle.set_meter_set(record.partition, proposed.model_dump(mode="json"), record.timestamp_ms)
                return proposed.version
            oracle.tick(*at)
        case ControlKind.BINDING:
            told = BindingRecord.model_validate_json(value)
            fields = told.binding.model_dump(mode="json")
            oracle.bind(record.partition, told.account, fields, record.timestamp_ms, record.offset)
        case ControlKind.CLOSE:
            closed = CloseRecord.model_validate_json(value)
            oracle.close(record.partition, closed.account, closed.instant_ms, record.timestamp_ms, record.offset)
        case ControlKind.RESTATEMENT:
            made = RestatementRecord.model_validate_json(value)
            answers, at_ms = offset_of(made.position), record.timestamp_ms
            if made.begins:
                oracle.begin_restatement(record.partition, made.account, answers, record.offset, at_ms)
            else:
                before = len(oracle.accounts.declined)
                declined = bool(made.declined)
                oracle.restatement(record.partition, made.account, answers, declined=declined, timestamp_ms=at_ms)
                # The third meter set takes a meter away, whose usage then cannot be told to Stripe in other periods.
                lost = "lost its Stripe event name" in made.declined and version >= WITHOUT_A_METER
                if len(oracle.accounts.declined) > before and not lost:
                    world.fail("late bindings", f"{made.account}: declined without need: {made.declined}")
        case ControlKind.DEDUP_DECISION:
            for index, decision in enumerate(DedupDecisionRecord.model_validate_json(value).decisions):
                judged = Place(record.partition, offset_of(decision.position), index_of(decision.position))
                oracle.resolve(judged, record.offset, index, record.timestamp_ms)
        case _:
            oracle.tick(*at)
    return version


async def verify(world: World) -> None:
    """Every comparison; what differs becomes a failure of the run."""
    oracle = oracle_of(world)
    _checkpoints(world, oracle)
    _acknowledged(world, oracle)
    _differ(world, "redis totals", _positive(_oracle_totals(oracle)), _positive(_redis_totals(world)))
    _differ(world, "usage_hourly", _positive(_oracle_cells(oracle)), _positive(_hourly_cells(world)))
    _differ(world, "usage_events", _oracle_events(oracle), _archived(world))
    _differ(world, "usage_duplicates", _oracle_duplicates(oracle), dict.fromkeys(world.clickhouse.duplicates, 1))
    _differ(world, "usage.rejected", _oracle_reasons(oracle), _quarantined(world))
    intents = {key: intent for key, intent in _intents(world).items() if not _replaced(world, intent)}
    _differ(world, "intents", _positive(_oracle_totals(oracle)), _positive(_intent_sums(intents)))
    _stripe(world, oracle, intents)
    _bounded(world)
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
    """Whatever a producer was told is safe, was received by the rollup's log."""
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
    """What only time brings: the log's first records gone, a period that ended within the run."""
    if any(world.log.first(EVENTS_TOPIC, partition) > 0 for partition in range(PARTITIONS)):
        world.faults.note(Fault.RETENTION_PASSED)
    for held in world.store.server.partitions.values():
        for _ in [cut for state in held.accounts.values() for cut in state.restatements]:
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
        told = checkpoint.counters._asdict()
        if not checkpoint.counters.conserved:
            world.fail("conservation", f"partition {partition}: {told}")
        _differ(world, f"counters of partition {partition}", oracle.counters[partition], told)


def _oracle_totals(oracle: Oracle) -> dict[Any, int]:
    return {(account, meter, period[0]): value for (account, meter, period), value in oracle.totals.items()}


def _redis_totals(world: World) -> dict[Any, int]:
    return {
        (key.account, meter, key.period_start_ms): parse_value(text).minor
        for held in world.store.server.partitions.values()
        for key, fields in held.totals.items()
        for meter, text in fields.items()
    }


def _oracle_cells(oracle: Oracle) -> dict[Any, int]:
    return {
        (account, meter, period[0], hour, dimensions, bucket): value
        for (account, meter, period, hour, dimensions, bucket), value in oracle.cells.items()
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
    return {
        (each.place.partition, position(each.place.offset, each.place.event_index)): 1 for each in oracle.duplicates
    }


def _oracle_reasons(oracle: Oracle) -> dict[Any, str]:
    return {
        (place.partition, place.offset, place.event_index): decision.reason
        for place, decision in oracle.rulings.items()
        if decision.reason
    }


def _quarantined(world: World) -> dict[Any, str]:
    """Each position once: a crash may have written an entry twice."""
    found: dict[Any, str] = {}
    for record in _records(world, REJECTED_TOPIC):
        told = {name.removeprefix("tidemark-"): text.decode() for name, text in record.headers}
        key = (int(told["partition"]), int(told["offset"]), int(told["index"]))
        if found.setdefault(key, told["reason"]) != told["reason"]:
            world.fail("usage.rejected", f"two reasons at {key}")
    return found


def _records(world: World, topic: str) -> Iterator[Record]:
    for partition in range(PARTITIONS):
        yield from world.log.appended.get((topic, partition), ())


def unsettled(world: World) -> int:
    """Intents without an outcome, of periods that have begun: Stripe takes no usage of the future."""
    waiting, settled = set[str](), set[str]()
    for record in _records(world, REPORTS_TOPIC):
        entry = json.loads(record.value or b"{}")
        if entry["kind"] == "intent":
            if entry["period_start_ms"] <= world.clock.now_ms():
                waiting.add(entry["identifier"])
        elif entry["kind"] == "outcome":
            settled.add(entry["identifier"])
    return len(waiting - settled)


def _intents(world: World) -> dict[str, Intent]:
    """By identifier; the same intent may stand twice, two different ones under one identifier may not."""
    found: dict[str, Intent] = {}
    for record in _records(world, REPORTS_TOPIC):
        if b'"kind":"intent"' in (record.value or b""):
            intent = Intent.model_validate_json(record.value or b"")
            if found.setdefault(intent.identifier, intent).delta_minor != intent.delta_minor:
                world.fail("intents", f"two deltas under {intent.identifier}")
    return found


def _replaced(world: World, intent: Intent) -> bool:
    """Whether its account was cut again since, so that the live view says another intent tells its usage."""
    states = (held.accounts.get(intent.account) for held in world.store.server.partitions.values())
    return any(state and is_replaced(state, intent.period_start_ms, intent.bucket_start_ms) for state in states)


def _intent_sums(intents: dict[str, Intent]) -> dict[Any, int]:
    sums: Counter[Any] = Counter()
    for intent in intents.values():
        sums[intent.account, intent.meter, intent.period_start_ms] += intent.delta_minor
    return dict(sums)


def _payers(world: World, oracle: Oracle) -> dict[str, set[str]]:
    """By identifier, the customers that attempts name. Each must be who pays, by what a sink saw of the account in a
    view that reached the end of the intent's bucket."""
    named: defaultdict[str, set[str]] = defaultdict(set)
    intents = _intents(world)
    for record in _records(world, REPORTS_TOPIC):
        if b'"kind":"attempt"' not in (record.value or b""):
            continue
        attempt, at_ms = Attempt.model_validate_json(record.value or b""), record.timestamp_ms
        intent, instant_ms = intents[attempt.identifier], attempt.timestamp_s * 1000
        account = intent.account
        looked = {
            log_ms
            for seen_ms, log_ms in world.store.accounts.looked[account]
            if at_ms - LOOKED_MS_MAX <= seen_ms <= at_ms and log_ms >= intent.bucket_end_ms
        }
        paying = set[str]().union(*(oracle.accounts.payers(account, instant_ms, log_ms) for log_ms in looked))
        if attempt.stripe_customer not in (paying if attempt.replaces_ms is None else named[attempt.identifier]):
            world.fail("payer", f"{attempt.identifier}: {attempt.stripe_customer} instead of {sorted(paying)}")
        named[attempt.identifier].add(attempt.stripe_customer)
    return dict(named)


def _stripe(world: World, oracle: Oracle, intents: dict[str, Intent]) -> None:
    """Each intent of a paying account exactly once, with its own value, in its own period, to its own customer."""
    payers = _payers(world, oracle)
    held: defaultdict[str, list[Any]] = defaultdict(list)
    everything = _intents(world)
    for each in world.stripe.events:
        intent = everything.get(each.event.identifier)
        if intent is not None and _replaced(world, intent):
            world.fail("stripe", f"{intent.identifier}: was sent although its usage was counted again")
        held[each.event.identifier].append(each.event)
    now_ms = world.clock.now_ms()
    expected = {
        identifier: 1
        for identifier, intent in intents.items()
        if intent.account != FREE and intent.period_start_ms <= now_ms
    }
    # What was carried into a period that begins in a few minutes may be there already, as Stripe takes such timestamps.
    early = {identifier for identifier, intent in intents.items() if now_ms < intent.period_start_ms}
    found = {key: len(events) for key, events in held.items() if key not in early or len(events) > 1}
    _differ(world, "stripe: events by identifier", expected, found)
    for identifier, events in held.items():
        intent, event = intents.get(identifier), events[0]
        if intent is None:
            continue
        told = (event.event_name, event.stripe_customer, Decimal(event.value))
        value = Decimal(intent.delta_minor).scaleb(-intent.scale)
        meant = [(intent.event_name, customer, value) for customer in payers.get(identifier, ())]
        if told not in meant:
            world.fail("stripe", f"{identifier}: {told} instead of one of {meant}")
        start_ms, end_ms = oracle.period(intent.account, intent.period_start_ms)
        if start_ms != intent.period_start_ms or not start_ms <= event.timestamp_s * 1000 < end_ms:
            world.fail("stripe", f"{identifier}: its timestamp lies outside its period")


def _bounded(world: World) -> None:
    """Nothing is left in the outbox, and no more marks than the window needs."""
    for partition, held in world.store.server.partitions.items():
        left = {
            "dirty": len(held.dirty),
            "duplicates": len(held.duplicates),
            "reports": len(held.reports),
            "deferred": len(held.deferred),
        }
        if any(left.values()):
            world.fail("outbox", f"partition {partition}: {left}")
    for partition, slices in world.store.state.slices_max.items():
        if slices > SLICES_MAX:
            world.fail("marks", f"partition {partition}: {slices} slices were live at one time")


async def _reconciled(world: World) -> None:
    """The product's own reconciler says the same."""
    views = Views(world.store, world.clickhouse, world.clickhouse, world.log, world.stripe, world.stripe)
    report = await reconcile(views, world.clock, policy=ReconcilePolicy(stripe_reads_per_s=1000.0))
    rejected = any(each.code for each in world.stripe.events)
    for row in report.rows:
        early = row.period is not None and row.period.start_ms > world.clock.now_ms()
        # What Stripe took a moment ago, or an hour that a tick has just closed, is in flight to the reconciler, and
        # rightly so; both were compared with the oracle before.
        recent = row.cause is Cause.IN_FLIGHT and row.pair in (Pair.STRIPE, Pair.HOURLY)
        rejection = row.cause is Cause.REJECTED_BY_STRIPE and rejected
        if row.cause is Cause.CONFLICT or rejection or early or recent:
            continue
        world.fail("reconciler", str(row))
    if report.verdict is Verdict.DRIFT and not rejected:
        world.fail("reconciler", "drift")
