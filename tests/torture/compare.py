"""After the rest: every store against the oracle, and what the product's own reconciler says."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple

from schemas.log import REPORTS_TOPIC
from schemas.reports import Intent
from tests.integration.exactness import Views, differences, expected, found, recount
from tests.integration.producers import words_in_the_log, words_of
from tests.torture.deployment import FREE, Tortured, customer_of
from tests.torture.load import Load

SHOWN_MAX: Final = 4
RECONCILE_S: Final = 240.0
AHEAD_MS: Final = 3_600_000
STORES: Final[Mapping[str, str]] = {
    "totals": "Redis: totals by account, meter, period",
    "counters": "Redis: counters by partition (I1)",
    "cells": "ClickHouse: usage_hourly by hour and dimension",
    "events": "ClickHouse: usage_events by identity",
    "duplicates": "ClickHouse: usage_duplicates",
    "conflicts": "ClickHouse: conflicts",
    "quarantined": "log: usage.rejected by position and reason",
}


class Compared(NamedTuple):
    """One store: how many values were compared, how many differ, and some of those."""

    store: str
    rows: int
    differing: int
    shown: list[str]


def compared(store: str, wanted: Mapping[Any, Any], got: Mapping[Any, Any]) -> Compared:
    """Hold one mapping against another."""
    unequal = sorted(differences(wanted, got), key=str)
    shown = [f"{key}: oracle {one!r}, found {other!r}" for key, one, other in unequal[:SHOWN_MAX]]
    return Compared(store, len(wanted.keys() | got.keys()), len(unequal), shown)


async def compare(deployment: Tortured, load: Load) -> list[Compared]:
    """All comparisons of a deployment at rest."""
    oracle = await recount(deployment)
    wanted, got = expected(oracle), await found(deployment)
    results = [compared(title, getattr(wanted, name), getattr(got, name)) for name, title in STORES.items()]
    totals = {key: value for key, value in wanted.totals.items() if value}
    intents = await intents_in_the_log(deployment)
    results.append(compared("log: intents by account, meter, period", totals, _sums(intents)))
    state = await asyncio.to_thread(deployment.stripe.state)
    results += at_stripe(state, intents, wanted)
    results.append(await _confirmed(deployment, load))
    results.append(_refused(load, await deployment.refused_by_the_gateway()))
    return results


async def intents_in_the_log(deployment: Tortured) -> dict[str, Intent]:
    """Intents by identifier: the same one may stand there several times, two of one name may not."""
    intents: dict[str, Intent] = {}
    for partition in deployment.partitions:
        for record in await deployment.records(REPORTS_TOPIC, partition):
            if b'"kind":"intent"' in (record.value or b""):
                intent = Intent.model_validate_json(record.value or b"")
                assert intents.setdefault(intent.identifier, intent) == intent, intent
    return intents


def _sums(intents: Mapping[str, Intent]) -> dict[Any, int]:
    sums: Counter[Any] = Counter()
    for intent in intents.values():
        sums[intent.account, intent.meter, intent.period_start_ms] += intent.delta_minor
    return {key: value for key, value in sums.items() if value}


def at_stripe(state: Mapping[str, Any], intents: Mapping[str, Intent], wanted: Views) -> list[Compared]:
    """What the simulator holds: each intent of a paying account once, and the sums of each account, meter, period."""
    held: defaultdict[str, list[Any]] = defaultdict(list)
    sums: Counter[Any] = Counter()
    for event in state["meter_events"]:
        intent = intents.get(event["identifier"])
        told = (event["status"], event["event_name"], event["customer"], Decimal(event["value"]))
        held[event["identifier"]].append(told)
        if intent is not None and intent.period_start_ms <= event["timestamp_s"] * 1000 < intent.period_end_ms:
            minor = int(Decimal(event["value"]).scaleb(intent.scale))
            sums[intent.account, intent.meter, intent.period_start_ms] += minor
    meant = {
        identifier: [
            (
                "accepted", intent.event_name, customer_of(intent.account),
                Decimal(intent.delta_minor).scaleb(-intent.scale),
            )
        ]
        for identifier, intent in intents.items()
        if intent.account not in FREE
    }  # fmt: skip
    totals = {key: value for key, value in wanted.totals.items() if value and key[0] not in FREE}
    return [
        compared("Stripe: meter events by identifier", meant, held),
        compared(
            "Stripe: sums by account, meter, period", totals, {key: value for key, value in sums.items() if value}
        ),
    ]


async def _confirmed(deployment: Tortured, load: Load) -> Compared:
    """Whatever a producer was told is safe stands in the log."""
    sent, there = words_of(load.confirmed), await words_in_the_log(deployment)
    missing = sorted(sent - there, key=str)
    shown = [f"{each[:2]} was confirmed and is nowhere" for each in missing[:SHOWN_MAX]]
    return Compared("log: every confirmed event is in it", len(sent), len(missing), shown)


def _refused(load: Load, kept: list[tuple[bytes, str]]) -> Compared:
    """What the gateway kept of what it refused is what was refused, for its reason. It may not have kept all: the
    sender knows, and the log may have been away."""
    known = {each.body: each.reason for each in load.rejected}
    wrong = [(body, reason) for body, reason in kept if known.get(body) != reason]
    shown = [f"{body[:80]!r} for {reason}" for body, reason in wrong[:SHOWN_MAX]]
    return Compared("log: usage.rejected of the gateway", len(kept), len(wrong), shown)


class Comparison(NamedTuple):
    """What `tidemark reconcile` said: values compared and differing by pair of views, and whether all is equal."""

    pairs: list[Compared]
    text: str


async def reconciled(deployment: Tortured) -> Comparison:
    """`tidemark reconcile`, an hour later by its clock, since what Stripe took a moment ago is in flight to it."""
    now_ms = deployment.base.clock.now_ms()
    process = deployment.command(
        "reconcile", "--json", "--stripe-reads-max", "5000", TIDEMARK_CLOCK=f"scaled:{now_ms}:{now_ms + AHEAD_MS}:20"
    )
    await asyncio.to_thread(process.wait, RECONCILE_S)
    output = process.output()
    try:
        report = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        return Comparison([Compared("tidemark reconcile", 0, 1, [output[-600:]])], "no answer")
    pairs = [
        Compared(
            f"reconcile: {each['views']}",
            each["compared"],
            each["differing"],
            [str(row) for row in report["rows"] if row["pair"] == each["pair"] and row["cause"] != "conflict"][
                :SHOWN_MAX
            ],
        )
        for each in report["summaries"]
        if each["compared"]
    ]
    return Comparison(pairs, report["verdict"])
