"""Compares what measurers and correctors told with areas of the samples that stand, and with the events that stand.

The adjustments themselves are events, which `verify` has compared with every view. Here is compared what they say.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aggregators.codec import parse_value
from oracle import areas
from oracle.model import Oracle
from oracle.records import Accepted
from oracle.rules import (
    CONTROL_HEADER,
    HOUR_MS,
    Contribution,
    RejectedError,
    contributions,
    decode,
    partition_of,
    policy_of,
)
from schemas.control import ControlKind
from schemas.log import EVENTS_TOPIC, position
from simulation.traffic import METERS, PARTITIONS, meter_set

if TYPE_CHECKING:
    from simulation.world import World

SHOWN_MAX: Final = 5
# Of other additive meters not all events can be corrected: a meter that comes back has not seen all corrections.
CORRECTED: Final = ("requests", "gigabytes", "weight")
MEASURED: Final = {meter["slug"]: meter for meter in METERS if meter["aggregation"] in ("time_weighted", "duration")}
# The fields of a meter that say what its samples are.
_READ: Final = ("slug", "event_type", "dimensions", "value_path", "scale")
_SERIES: Final = {"stored": "disk", "online": "session"}

Identity = tuple[str, str]


class Cell(NamedTuple):
    """Usage of an account's meter, by dimensions and the hour in which it was, whatever period counts it."""

    account: str
    meter: str
    dimensions: str
    hour_ms: int


class Piece(NamedTuple):
    """A piece of a measured meter, by its start."""

    account: str
    meter: str
    dimensions: str
    start_ms: int


class Correction(NamedTuple):
    """What counts instead of an event: nothing, or an event with other data."""

    is_void: bool
    data: str


def unadjusted(world: World, partition: int) -> str:
    """A text that names who has not looked at all of a partition yet; empty if there is nothing left to tell."""
    ticks = (ControlKind.TICK.encode(), ControlKind.GENESIS.encode())
    last = next(
        record
        for record in reversed(world.log.appended[EVENTS_TOPIC, partition])
        if dict(record.headers).get(CONTROL_HEADER) not in ticks
    )
    measured = world.store.server.notes.measured.get(partition)
    if measured is None or measured.as_of_ms <= last.timestamp_ms:
        return f"the measurer of partition {partition}"
    if world.corrected.get(partition, 0) <= last.offset:
        return f"the corrector of partition {partition}"
    return ""


def verify_adjusted(world: World, oracle: Oracle) -> None:
    """Make all comparisons. A difference becomes an error of the run."""
    corrections = _corrections(world)
    counted = _counted(oracle)
    expected = _measured(world, oracle, corrections, counted)
    expected.update(_standing(oracle, corrections))
    hourly: Counter[Cell] = Counter()
    for row in world.clickhouse.cells.values():
        if row.period_end_ms > row.period_start_ms:
            hourly[Cell(row.account, row.meter, row.dimensions, row.hour_ms)] += row.value_minor
    live: Counter[Identity] = Counter()
    for stored in world.store.server.partitions.values():
        for total, fields in stored.totals.items():
            for meter, text in fields.items():
                live[total.account, meter] += parse_value(text).minor
    totals: Counter[Identity] = Counter()
    for cell, minor in expected.items():
        totals[cell.account, cell.meter] += minor
    _differ(world, "what stands, in usage_hourly", expected, hourly)
    _differ(world, "what stands, in the live view", totals, live)


def _differ(world: World, view: str, expected: Mapping[Any, int], found: Mapping[Any, int]) -> None:
    keys = [
        key
        for key in sorted({*expected, *found})
        if expected.get(key, 0) != found.get(key, 0) and key[1] in (*CORRECTED, *MEASURED)
    ]
    if keys:
        shown = "; ".join(
            f"{key}: oracle {expected.get(key, 0)}, found {found.get(key, 0)}" for key in keys[:SHOWN_MAX]
        )
        world.fail(view, f"{len(keys)} differ: {shown}")


def _corrections(world: World) -> dict[Identity, Correction]:
    """The last correction of each event. The first record of a name counts, and one that is settled outside does
    not."""
    found: dict[Identity, Correction] = {}
    names: set[Identity] = set()
    for partition in range(PARTITIONS):
        for record in world.log.appended[EVENTS_TOPIC, partition]:
            if dict(record.headers).get(CONTROL_HEADER) != b"correction":
                continue
            said = json.loads(record.value or b"")
            name = said["account"], said["correction"]
            if name not in names and said["counts"]:
                found[said["account"], said["event"]] = Correction(said["kind"] == "void", said["data"])
            names.add(name)
    return found


def _counted(oracle: Oracle) -> dict[Piece, int]:
    """What the adjustments of measurers add up to that are counted, by piece."""
    counted: Counter[Piece] = Counter()
    for accepted in oracle.accepted.values():
        if accepted.event.id.startswith("m:"):
            start_ms = int(accepted.event.id.split(":")[3])
            for each in accepted.fed:
                counted[Piece(accepted.event.account, each.meter, each.dimensions, start_ms)] += each.minor
    return counted


# Measured meters


def _measured(
    world: World, oracle: Oracle, corrections: Mapping[Identity, Correction], counted: Mapping[Piece, int]
) -> dict[Cell, int]:
    """What measured meters must hold. A piece of a closed period holds what was told while the period was open, if its
    meter or another payer keeps out what comes later."""
    must = _must(world, oracle, corrections)
    cells: Counter[Cell] = Counter()
    for piece in {*must, *counted}:
        minor = counted.get(piece, 0) if _is_kept_out(world, oracle, piece) else must.get(piece, 0)
        cells[Cell(*piece[:3], piece.start_ms // HOUR_MS * HOUR_MS)] += minor
    return dict(cells)


def _must(world: World, oracle: Oracle, corrections: Mapping[Identity, Correction]) -> dict[Piece, int]:
    """What the areas say, up to the instant that the measurer names."""
    samples: defaultdict[tuple[int, str, str, str], list[areas.Sample]] = defaultdict(list)
    for identity, accepted in oracle.accepted.items():
        correction = corrections.get(identity)
        if correction is None or not correction.is_void:
            for slug, dimensions, sample in _samples(accepted):
                samples[accepted.place.partition, accepted.event.account, slug, dimensions].append(sample)
    must: dict[Piece, int] = {}
    for (partition, account, slug, dimensions), standing in samples.items():
        until_ms = world.store.server.notes.measured[partition].until_ms
        start_ms, end_ms = oracle.period(account, min(sample.time_us for sample in standing) // 1000)
        while start_ms < until_ms:
            held = areas.pieces(MEASURED[slug], standing, (start_ms * 1000, end_ms * 1000), until_ms * 1000)
            for start_us, minor in held.items():
                must[Piece(account, slug, dimensions, start_us // 1000)] = minor
            start_ms, end_ms = oracle.period(account, end_ms)
    return must


def _samples(accepted: Accepted) -> Iterator[tuple[str, str, areas.Sample]]:
    """The event as a sample of each measured meter that wants it. Its level is read as a sum would read it."""
    event, place = accepted.event, accepted.place
    for each in accepted.fed:
        if not each.is_sample:
            continue
        meter = MEASURED[each.meter]
        as_sum: dict[str, Any] = {name: meter[name] for name in _READ if name in meter}
        as_sum["aggregation"] = "sum" if "value_path" in meter else "count"
        (read,) = contributions(event, {"meters": [as_sum]})
        series = str(event.data[_SERIES[each.meter]])
        # Without a value, each second of a session is worth a second.
        minor = read.minor if "value_path" in meter else 10 ** meter["scale"]
        at = position(place.offset, place.event_index)
        yield each.meter, read.dimensions, areas.Sample(event.time_us, at, minor, series)


def _is_kept_out(world: World, oracle: Oracle, piece: Piece) -> bool:
    """Whether the piece lies in a closed period, and a difference may not be carried to an open one."""
    grace_ms = policy_of(meter_set(world.meter_set_version, world.report_interval_ms), "grace_ms")
    log_ms = oracle.stream_times[partition_of(piece.account, PARTITIONS)]
    _, is_closed = oracle.accounts.counting_period(piece.account, piece.start_ms, log_ms, grace_ms)
    is_quarantined = MEASURED[piece.meter].get("late") == "quarantine"
    return is_closed and (is_quarantined or oracle.accounts.has_several_payers(piece.account))


# Corrections


def _standing(oracle: Oracle, corrections: Mapping[Identity, Correction]) -> dict[Cell, int]:
    """What the events that stand add to additive meters. If the fold kept an adjustment of an event out of a closed
    period, the event has what its other adjustments say."""
    kept_out = {
        (ruling.account, ruling.id.split(":")[1])
        for ruling in oracle.rulings.values()
        if ruling.outcome == "late" and ruling.id.startswith("c:")
    }
    cells: Counter[Cell] = Counter()
    for (account, identifier), accepted in oracle.accepted.items():
        if identifier.startswith("c:"):
            fed = accepted.fed if (account, identifier.split(":")[1]) in kept_out else ()
        elif (account, _digest(identifier)) in kept_out:
            fed = accepted.fed
        else:
            fed = _fed(accepted, corrections.get((account, identifier)))
        hour_ms = accepted.event.time_us // 1000 // HOUR_MS * HOUR_MS
        for each in fed:
            if each.meter in CORRECTED:
                cells[Cell(account, each.meter, each.dimensions, hour_ms)] += each.minor
    return dict(cells)


def _fed(accepted: Accepted, correction: Correction | None) -> list[Contribution]:
    if correction is None:
        return list(accepted.fed)
    if correction.is_void:
        return []
    (data,) = decode(correction.data.encode())
    try:
        return contributions(accepted.event._replace(data=data), accepted.meter_set)
    except RejectedError:
        return list(accepted.fed)


def _digest(identifier: str) -> str:
    """How ids of adjustments name the event that they correct."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:24]
