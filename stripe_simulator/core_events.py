"""`GET /v2/core/events`: thin events, newest first (docs.stripe.com/api/v2/core/events)."""

from __future__ import annotations

import json
from datetime import datetime
from urllib.parse import urlencode

from stripe_simulator import forms
from stripe_simulator.errors import ApiError, no_such
from stripe_simulator.forms import Params, Spec
from stripe_simulator.simulator import Simulator
from stripe_simulator.validation import EVENT_RETENTION_MS, settle

LIST = Spec(
    plain=("object_id", "page"),
    integers=("limit",),
    lists=("types",),
    nested={"created": ("gt", "gte", "lt", "lte")},
)


def list_all(simulator: Simulator, livemode: bool, params: Params) -> dict[str, object]:
    """A page of the events of the last 30 days, filtered by `types`, `object_id` and `created`."""
    settle(simulator)
    limit = forms.integer(params, "limit", 20)
    if not 1 <= limit <= 100:
        raise ApiError(400, "limit must be between 1 and 100", param="limit")
    types = forms.sequence(params, "types")
    object_id = forms.text(params, "object_id")
    before = forms.integer(params, "page") if "page" in params else 1 << 62
    low_ms, high_ms = _created(params)
    rows = [
        row
        for row in simulator.database.rows(
            "SELECT seq, type, object_id, created_ms, body FROM core_events"
            " WHERE livemode = ? AND seq < ? AND created_ms >= ? AND created_ms <= ? ORDER BY seq DESC",
            (int(livemode), before, max(low_ms, simulator.now_ms() - EVENT_RETENTION_MS), high_ms),
        )
        if (not types or row["type"] in types) and (not object_id or row["object_id"] == object_id)
    ]
    next_url = None
    if len(rows) > limit:
        again = [(f"types[{index}]", value) for index, value in enumerate(types)]
        again += [(f"created[{name}]", str(value)) for name, value in forms.mapping(params, "created").items()]
        again += [("object_id", object_id)] if object_id else []
        again += [("limit", str(limit)), ("page", str(rows[limit - 1]["seq"]))]
        next_url = f"/v2/core/events?{urlencode(again)}"
    data = [json.loads(row["body"]) for row in rows[:limit]]
    return {"data": data, "next_page_url": next_url, "previous_page_url": None}


def retrieve(simulator: Simulator, livemode: bool, identifier: str) -> dict[str, object]:
    """`GET /v2/core/events/{id}`."""
    settle(simulator)
    event = simulator.database.row(
        "SELECT body FROM core_events WHERE id = ? AND livemode = ?", (identifier, int(livemode))
    )
    if event is None:
        raise no_such("event", identifier, "id")
    body: dict[str, object] = json.loads(event["body"])
    return body


def _created(params: Params) -> tuple[int, int]:
    """The inclusive range of milliseconds of the parameters `created[gt|gte|lt|lte]`."""
    low_ms, high_ms = 0, 1 << 62
    for name, value in forms.mapping(params, "created").items():
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            raise ApiError(400, f"created[{name}] is not an RFC 3339 time: {value}", param="created") from None
        if moment.tzinfo is None:
            raise ApiError(400, f"created[{name}] has no offset: {value}", param="created")
        instant_ms = round(moment.timestamp() * 1_000)
        if name.startswith("g"):
            low_ms = max(low_ms, instant_ms + (name == "gt"))
        else:
            high_ms = min(high_ms, instant_ms - (name == "lt"))
    return low_ms, high_ms
