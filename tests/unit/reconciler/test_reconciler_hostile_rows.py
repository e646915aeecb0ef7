"""One bad value in a store is reported, and everything else is compared."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from reconciler.causes import Cause, Pair, Verdict
from schemas.errors import OperatorNeeded
from schemas.log import REPORTS_TOPIC
from tests.worlds.reconciler import INTENT, rows_of, settled

TEXTS = ("garbage", "", "NaN", "9" * 5_000, "c:", "{}", "s5;x", "1:2:3:4:5", "\ud800")


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:12]))
async def test_unreadable_total_in_redis_is_a_difference_of_one_account(text: str) -> None:
    """The run ended with a traceback."""
    deployment = await settled()
    deployment.totals("ada")["requests"] = text

    report = await deployment.reconcile()

    rows = [*rows_of(report, Cause.MISSING), *rows_of(report, Cause.UNCHECKED)]
    assert {(row.pair, row.account, row.meter) for row in rows} == {(Pair.REDIS, "ada", "requests")}
    assert {row.cause for row in report.rows} == {Cause.MISSING, Cause.UNCHECKED}
    assert report.verdict is Verdict.DRIFT


@pytest.mark.parametrize("call", ["load_checkpoint", "archive_positions", "controls", "conflicts", "archived_events"])
async def test_row_that_no_reader_can_parse_leaves_one_comparison_unchecked(call: str) -> None:
    """The stores' clients raise kinds of ValueError for such rows. A difference elsewhere is still found."""
    deployment = await settled()
    totals = deployment.totals("bob")
    totals["requests"] = str(int(totals["requests"]) + 1)
    bad = deployment.partition("ada")
    owner: Any = deployment.store.state if call == "load_checkpoint" else deployment.clickhouse
    whole = getattr(owner, call)

    async def broken(*arguments: Any) -> Any:
        if call in ("conflicts", "archive_positions") or arguments[0] == bad:
            json.loads("{half a row")
        return await whole(*arguments)

    if call == "load_checkpoint":
        state = _Replaced(owner, call, broken)
        live = _Replaced(deployment.store, "state", state)
        deployment.views = dataclasses.replace(deployment.views, live=live)
    else:
        reader = _Replaced(owner, call, broken)
        deployment.views = dataclasses.replace(deployment.views, reader=reader)

    report = await deployment.reconcile()

    assert any("cannot be read" in row.detail for row in rows_of(report, Cause.UNCHECKED))
    if call != "archive_positions" and deployment.partition("bob") != bad:
        assert {row.account for row in rows_of(report, Cause.EXTRA)} == {"bob"}
        assert report.verdict is Verdict.DRIFT


class _Replaced:
    """An object with one attribute replaced."""

    def __init__(self, whole: object, name: str, value: object) -> None:
        self._whole = whole
        setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


@pytest.mark.parametrize("scale", [-5, 13, 10**6])
async def test_intent_with_an_impossible_scale_leaves_the_reports_unchecked(scale: int) -> None:
    """Anybody who may write to Kafka can write it; it raised a ValueError."""
    deployment = await settled()
    record = json.dumps({**INTENT.model_dump(), "scale": scale}).encode()
    await deployment.log.append(REPORTS_TOPIC, 0, record)

    report = await deployment.reconcile()

    assert {row.pair for row in rows_of(report, Cause.UNCHECKED)} == {Pair.INTENTS, Pair.STRIPE}
    with pytest.raises(OperatorNeeded, match="does not understand"):
        await deployment.send()
