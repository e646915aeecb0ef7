"""What a run will do to a deployment, drawn from a seed. Pure: the same arguments give the same plan."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import cycle
from typing import Final, NamedTuple

WORKERS: Final = ("worker-1", "worker-2", "worker-3")
MIRRORS: Final = ("mirror-1", "mirror-2")


class Strike(StrEnum):
    """What befalls the deployment."""

    WORKER = "worker"
    ARCHIVE = "archive"
    ROUTER = "router"
    GATEWAY = "gateway"
    SINK = "sink"
    MIRROR = "mirror"
    KAFKA = "Kafka broker"
    VALKEY = "Valkey"
    CLICKHOUSE = "ClickHouse server"
    POSTGRES = "PostgreSQL"
    VALKEY_TRUNCATED = "Valkey, file truncated"
    VALKEY_EMPTIED = "Valkey, file emptied"
    VALKEY_OLDER = "Valkey, older copy"
    REBUILD = "rebuild"
    COPY = "Valkey's folder copied"
    LEAVE = "worker leaves and joins"
    STRIPE = "Stripe's answers"
    READS = "Stripe's answers to reads"
    DELIVERIES = "Stripe's deliveries"
    INSERTS = "ClickHouse's answers"


KILLS: Final[Mapping[Strike, int]] = {
    Strike.WORKER: 14,
    Strike.ARCHIVE: 7,
    Strike.ROUTER: 6,
    Strike.GATEWAY: 8,
    Strike.SINK: 6,
    Strike.MIRROR: 10,
    Strike.KAFKA: 4,
    Strike.VALKEY: 4,
    Strike.CLICKHOUSE: 5,
    Strike.POSTGRES: 6,
}
"""The least number of kills of each kind; a damaged file is one more kill of Valkey."""

DAMAGES: Final = (
    (Strike.VALKEY_TRUNCATED, 0.02),
    (Strike.VALKEY_OLDER, 1.0),
    (Strike.VALKEY_EMPTIED, 1.0),
    (Strike.VALKEY_TRUNCATED, 0.4),
    (Strike.VALKEY_OLDER, 0.0),
    (Strike.VALKEY_TRUNCATED, 0.8),
)
"""What happens to Valkey's folder, and how much: about the share of the file that is cut off, or the age of the copy
(1 the newest that there is, 0 the oldest). The oldest copy comes back after the live view was rebuilt."""

OTHERS: Final[Mapping[Strike, int]] = {
    Strike.LEAVE: 3,
    Strike.STRIPE: 6,
    Strike.READS: 4,
    Strike.DELIVERIES: 9,
    Strike.INSERTS: 6,
    Strike.COPY: 4,
}
STRIPE_FAULTS: Final = (
    "rate_limited",
    "conflict",
    "server_error",
    "server_error_after_commit",
    "connection_dropped",
    "connection_dropped_after_commit",
)
READ_FAULTS: Final = ("rate_limited", "server_error", "connection_dropped")
DELIVERY_FAULTS: Final = ("delivery_dropped", "delivery_duplicated", "delivery_delayed")
INSERTS_AT_ONCE: Final = 5
KILLS_MIN: Final = 50
WAIT_S: Final = (0.2, 3.5)
AT_ONCE: Final = 0.2
DOWN_S_MAX: Final = 3.0


class Action(NamedTuple):
    """One strike. `wait_s` after the one before it; `down_s` until a service is started again; `share` in 0 to 1 says
    how much, or which copy; `target` is the worker or mirror, what Stripe does, or what befalls the next
    inserts (`d`: stored and the answer dropped, `r`: refused)."""

    wait_s: float
    strike: Strike
    target: str
    down_s: float
    share: float


def draw(seed: int, scale: float = 1.0) -> list[Action]:
    """The plan of a seed, with `scale` times as many kills, two of each kind at least."""
    chance = random.Random(f"torture {seed}")
    placed: list[tuple[float, Strike, float]] = []
    for strike, least in {**KILLS, **OTHERS}.items():
        placed += _spread(strike, [chance.random() for _ in range(max(2, round(least * scale)))], chance)
    damages = DAMAGES if scale >= 1 else DAMAGES[: round(len(DAMAGES) * scale)]
    for number, (strike, share) in enumerate(damages):
        near = max(0.0, min(1.0, share * chance.uniform(0.7, 1.3)))
        # In this order, each somewhere in its own part of the run; the first after something was copied.
        placed.append(((number + chance.uniform(0.5, 1.0)) / len(damages), strike, near))
    strikes = [(strike, share) for _, strike, share in sorted(placed)]
    # Each in turn, so that no seed spares one.
    faults = {
        strike: cycle(chance.sample(kinds, len(kinds)))
        for strike, kinds in (
            (Strike.STRIPE, STRIPE_FAULTS), (Strike.READS, READ_FAULTS), (Strike.DELIVERIES, DELIVERY_FAULTS)
        )
    }  # fmt: skip
    return [
        Action(
            0.0 if chance.random() < AT_ONCE else chance.uniform(*WAIT_S),
            strike,
            next(faults[strike]) if strike in faults else _target(strike, chance),
            chance.uniform(0.0, DOWN_S_MAX),
            share,
        )
        for strike, share in strikes
    ]


def _spread(strike: Strike, shares: Sequence[float], chance: random.Random) -> list[tuple[float, Strike, float]]:
    """Each somewhere in its own part of the run, so that no kind comes all at once."""
    return [((number + chance.random()) / len(shares), strike, share) for number, share in enumerate(shares)]


def _target(strike: Strike, chance: random.Random) -> str:
    if strike in (Strike.WORKER, Strike.LEAVE):
        return chance.choice(WORKERS)
    if strike is Strike.MIRROR:
        return chance.choice(MIRRORS)
    if strike is Strike.INSERTS:
        # Two of three are stored, and nobody is told.
        return "".join(chance.choice("ddr") for _ in range(INSERTS_AT_ONCE))
    return strike.value


def kills_of(actions: Iterable[Action]) -> Counter[Strike]:
    """How many processes a plan kills, by kind."""
    counts: Counter[Strike] = Counter()
    for action in actions:
        if action.strike in (Strike.VALKEY_TRUNCATED, Strike.VALKEY_EMPTIED, Strike.VALKEY_OLDER):
            counts[Strike.VALKEY] += 1
        elif action.strike in KILLS:
            counts[action.strike] += 1
    return counts


def spared(actions: Iterable[Action], kills: int, dropped: int, stripe: Mapping[str, int]) -> list[str]:
    """What a plan had in store and did not happen: such a run proves less than it says. `dropped` are ClickHouse's
    answers after success, `stripe` the faults that Stripe says it had."""
    planned = list(actions)
    missed = []
    least = min(KILLS_MIN, kills_of(planned).total())
    if kills < least:
        missed.append(f"{kills} kills, {least} were to be")
    if any(action.strike is Strike.INSERTS and "d" in action.target for action in planned) and not dropped:
        missed.append("no answer of ClickHouse was dropped after success")
    after = {action.target for action in planned if action.target.endswith("after_commit")}
    if after and not any(stripe.get(kind) for kind in after):
        missed.append("no answer of Stripe was lost after success")
    deliveries = {action.target for action in planned if action.strike is Strike.DELIVERIES}
    missed += [f"no delivery of Stripe was {kind.split('_')[1]}" for kind in sorted(deliveries - stripe.keys())]
    return missed
