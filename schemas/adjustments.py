"""Adjustments: events of this system that add a signed quantity to one additive meter (S14).

Measured meters get all their usage from adjustments (S15), and corrections are adjustments. An adjustment is an
ordinary event in the log. Only this system may write events with its types: the doors reject them from anyone else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from schemas.aggregations import ADJUSTED_AS
from schemas.meters import RESERVED_PREFIX, Meter, OnBad

ADJUSTED_PREFIX: Final = f"{RESERVED_PREFIX}adjusted."
ADJUSTMENT_SOURCE: Final = "tidemark"
# Ids of `aggregators.measures.difference_id` and `aggregators.corrections.change_id`.
_ADJUSTMENT_ID: Final = re.compile(r"m:[a-z][a-z0-9_]*:[0-9a-f]{16}:[0-9]+:.+|c:[0-9a-f]{24}:[a-z][a-z0-9_]*:.+")


def is_reserved(event_type: str) -> bool:
    """Whether only this system may write events of a type."""
    return event_type.startswith(RESERVED_PREFIX)


def reserved(event_type: str, event_id: str) -> str:
    """Why only this system may write an event, the field first; "" if anybody may.

    Ids of the form of an adjustment's are taken: an event of an application that has one would make the adjustment a
    duplicate (I3), and what it tells would never count.
    """
    if is_reserved(event_type):
        return "type: only Tidemark may send it"
    return "id: only Tidemark's adjustments have ids of this form" if _ADJUSTMENT_ID.fullmatch(event_id) else ""


def adjusted_type(slug: str) -> str:
    """The type of the adjustments of a meter."""
    return ADJUSTED_PREFIX + slug


def slug_of(event_type: str) -> str | None:
    """The slug of the meter that events of a type adjust; None if the type is of other events."""
    return event_type.removeprefix(ADJUSTED_PREFIX) if event_type.startswith(ADJUSTED_PREFIX) else None


def adjusting(meter: Meter) -> Meter | None:
    """The meter as which the adjustments of a meter are read and added up: the sum of their quantities, with the slug,
    the scale and the late policy of the meter itself. None if the meter takes no adjustments."""
    if not meter.aggregation.rule.additive:
        return None
    return meter.model_copy(
        update={
            "event_type": adjusted_type(meter.slug),
            "aggregation": ADJUSTED_AS,
            "value_path": "$.quantity",
            "dimensions": {name: f"$.dimensions.{name}" for name in meter.dimensions},
            "filters": (),
            "allow_negative": True,
            "on_bad": OnBad.REJECT_EVENT,
        }
    )


def forms_of(meter: Meter) -> list[Meter]:
    """As which meters the events are read that add to a meter: as itself unless its events are samples, and as
    `adjusting` says. At least one."""
    forms = (None if meter.aggregation.rule.measured else meter, adjusting(meter))
    return [form for form in forms if form is not None]


def adjustment(
    meter: Meter,
    account: str,
    event_id: str,
    time: str,
    minor: int,
    dimensions: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The event that adds `minor` minor units to a meter at `time` (RFC 3339). `notes` are more keys of `data`, for
    people and views; `quantity` and `dimensions` are taken."""
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": ADJUSTMENT_SOURCE,
        "type": adjusted_type(meter.slug),
        "subject": account,
        "time": time,
        "data": {
            **(notes or {}),
            "quantity": format(Decimal(minor).scaleb(-meter.scale), "f"),
            "dimensions": dict(dimensions),
        },
    }
