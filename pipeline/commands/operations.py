"""The commands for meter sets, as functions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from aggregators.meters import definition_change
from pipeline.open import (
    Base,
    apply_meter_set,
    following,
    meter_set_in_force,
    open_base,
    open_stripe,
)
from pipeline.settings import Settings
from schemas.errors import InvalidInput
from schemas.meters import Meter, MeterSet


@contextlib.asynccontextmanager
async def _opened(settings: Settings, *, create: bool = False) -> AsyncIterator[Base]:
    base = await open_base(settings, create=create)
    try:
        yield base
    finally:
        await base.log.close()


class MeterSetPlan(NamedTuple):
    """A meter set that is not applied yet. `lines` say what will change. `is_final`: usage will no longer be counted or
    reported as before, so the command asks."""

    proposed: MeterSet
    lines: tuple[str, ...]
    is_final: bool


async def plan_meter_set(settings: Settings, path: Path) -> MeterSetPlan:
    """Plan the application of a meter set file. Raises `InvalidInput` if it contradicts the meter set in force."""
    current = await meter_set_in_force(settings)
    return checked_meter_set(current, following(current, path), path.name)


def checked_meter_set(current: MeterSet | None, proposed: MeterSet, name: str) -> MeterSetPlan:
    """The plan for a meter set that follows the one in force. Raises `InvalidInput` with the file's name if it
    contradicts it."""
    if current is None:
        return MeterSetPlan(proposed, (), is_final=False)
    change = definition_change(current, proposed)
    if change:
        raise InvalidInput(name, change)
    if proposed.version <= current.version and proposed != current:
        raise InvalidInput(f"{name}: version", _raised(current.version))
    return meter_set_plan(current, proposed)


def _raised(version: int) -> str:
    return (
        f"must be above {version}, the version in force: write `version: {version + 1}`. A file for a new `tidemark "
        "dev` is given to `dev --meters FILE` in a new folder"
    )


def meter_set_plan(current: MeterSet, proposed: MeterSet) -> MeterSetPlan:
    """What changes for usage from the record of the proposed meter set on.

    Raises `InvalidInput` if a maximum, a latest value or another total that is no sum would go to another Stripe meter:
    that one would get only the change of the total, and bill it.
    """
    lines, is_final = [], False
    for meter in current.meters:
        after = proposed.meter(meter.slug)
        name = meter.stripe_event_name
        if after is None:
            lines.append(f"- {meter.slug}: counted and reported no more")
        elif name != after.stripe_event_name:
            if name and after.stripe_event_name and not meter.aggregation.rule.additive:
                raise InvalidInput(
                    f"{meter.slug}.stripe_event_name",
                    f"cannot change from {name} to {after.stripe_event_name}: the total of a {meter.aggregation} meter "
                    "is no sum, and the other Stripe meter would get only its change; add a meter under another slug",
                )
            lines.append(f"~ {meter.slug}: reported to Stripe {_as(after)}, before {_as(meter)}")
        if after is not None:
            lines += [
                f"~ {meter.slug}: {field} {getattr(after, field)}, before {getattr(meter, field)}"
                for field in ("on_bad", "allow_negative", "unit")
                if getattr(after, field) != getattr(meter, field)
            ]
        is_final |= after is None or (name is not None and name != after.stripe_event_name)
    lines += [
        f"+ {meter.slug}: counted from now on, reported to Stripe {_as(meter)}"
        for meter in proposed.meters
        if current.meter(meter.slug) is None
    ]
    for setting, before in current.policy:
        if before != (now := getattr(proposed.policy, setting)):
            lines.append(f"~ policy.{setting}: {now}, before {before}")
    return MeterSetPlan(proposed, tuple(lines), is_final)


def _as(meter: Meter) -> str:
    return f"as {meter.stripe_event_name}" if meter.stripe_event_name else "not at all"


async def apply_planned_meter_set(settings: Settings, plan: MeterSetPlan) -> str:
    """Append the meter set to every partition; returns a message."""
    async with _opened(settings, create=True) as base:
        await apply_meter_set(base, plan.proposed)
    return (
        f"meter set version {plan.proposed.version} with {len(plan.proposed.meters)} meters is in the log of every "
        "partition"
    )


async def create_at_stripe(settings: Settings, meter_set: MeterSet) -> list[str]:
    """Create the meters of the meter set that Stripe does not have yet; returns a line for each.

    Only this function creates meters: a typo in a meter set must not make one. Raises `InvalidInput` without a Stripe
    key, and `OperatorNeeded` if an existing meter takes no events. Repeating does no harm.
    """
    meters = open_stripe(settings)
    if meters is None:
        raise InvalidInput("TIDEMARK_STRIPE_API_KEY", "is not set; the meters are created at Stripe with it")
    lines = []
    try:
        for meter in meter_set.meters:
            if meter.stripe_event_name:
                is_new = await meters.create_meter(meter.stripe_event_name, meter.slug)
                lines.append(f"{meter.stripe_event_name}: {'created at Stripe' if is_new else 'Stripe has the meter'}")
    finally:
        await meters.close()
    return lines
