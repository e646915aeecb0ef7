"""What `tidemark correct` prints of a correction of a closed period, and what it does without PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from aggregators.corrections import Change
from pipeline.cli.correct import settlement_text
from pipeline.commands import corrections as commands
from pipeline.logs.correcting import Planned
from pipeline.settings import Settings
from schemas.clock import DAY_MS
from schemas.control import ControlKind, CorrectionRecord, Genesis
from schemas.corrections import Settlement
from schemas.errors import InvalidInput
from schemas.meters import Meter
from schemas.periods import Period
from sinks.clickhouse.fake_corrections import FakeCorrections
from tests.unit.cli.command_lines import run
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import DECEMBER_MS, Deployment

NOVEMBER = Period(1_793_491_200_000, 1_796_083_200_000)
SPAN = "from 2026-11-01T00:00:00Z to 2026-12-01T00:00:00Z"
PAID = Settlement(
    "calls", NOVEMBER, "in_1", Decimal(157_510), Decimal("120510.5"), 23_751, 0, 20_051, currency="usd", exponent=2
)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        pytest.param({}, "120,510.5 cost $200.51: −$37.00 before taxes", id="a credit"),
        pytest.param(
            {"settled_minor": -100, "discount_minor": -740},
            "earlier corrections settled −$1.00, 120,510.5 cost $200.51, discounts change by −$7.40: "
            "−$28.60 before taxes",
            id="an earlier credit note and a discount",
        ),
        pytest.param({"corrected_minor": 23_751}, "120,510.5 cost $237.51: $0.00 before taxes", id="nothing"),
    ],
)  # fmt: skip
def test_a_settlement_is_a_sentence(given: dict[str, Any], text: str) -> None:
    expected = f"in_1 bills 157,510 calls {SPAN} for $237.51, {text}"
    assert settlement_text(PAID._replace(**given)) == expected


def test_what_is_not_known_has_its_reason() -> None:
    unknown = Settlement("calls", NOVEMBER, unknown="the invoice is a draft")
    assert settlement_text(unknown) == f"calls {SPAN}: the amount is not known: the invoice is a draft"


RECORD = CorrectionRecord(
    account="ada", correction="ticket-8", event="event-1", kind="void", by="ann", reason="a test run",
    treatment="credit_note", counts=False,
)  # fmt: skip


def test_the_command_prints_what_is_to_be_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter.model_validate({"slug": "calls", "event_type": "calls", "aggregation": "count"})
    planned = Planned(RECORD, NOVEMBER, True, [Change(meter, "{}", -37_000, 0)], [], False)

    async def correct(_settings: Any, wish: CorrectionRecord, *, dry_run: bool) -> Any:
        assert (wish.correction, wish.treatment, dry_run) == ("ticket-8", "credit_note", False)
        return planned, [PAID]

    monkeypatch.setattr(commands, "correct", correct)
    monkeypatch.setenv("TIDEMARK_LOG_URL", "embedded:///nowhere")
    options = ("--reason", "a test run", "--name", "ticket-8", "--closed-period", "credit_note", "--by", "ann")
    found = run(["correct", "void", "ada", "event-1", *options])

    assert (found.code, found.out.splitlines()) == (0, [
        f"ticket-8: void event-1 of the closed period {SPAN}",
        "    calls -37000",
        f"    in_1 bills 157,510 calls {SPAN} for $237.51, 120,510.5 cost $200.51: −$37.00 before taxes",
        "    no total changes: settle it outside as credit_note",
        "written; the totals follow in some seconds",
    ])  # fmt: skip


async def test_a_correction_is_written_if_the_invoices_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"slug": "calls", "event_type": "request", "aggregation": "count"}
    world = await Deployment().start({"version": 1, "meters": [calls, {**calls, "slug": "requests"}]})
    await world.emit("ada")
    await world.advance(DECEMBER_MS - world.clock.ms + DAY_MS)
    await world.catch_up()
    settings = Settings(secret=SECRET.decode())
    genesis = Genesis(log_id=world.world.log_id, partitions=world.world.partitions)

    @contextlib.asynccontextmanager
    async def opened(_settings: Settings) -> AsyncIterator[Any]:
        base = SimpleNamespace(settings=settings, clock=world.clock, log=world.log, genesis=genesis)
        yield SimpleNamespace(base=base, view=world.store, archive=FakeCorrections(world.clickhouse))

    @contextlib.asynccontextmanager
    async def without_sql(_settings: Settings) -> AsyncIterator[Any]:
        raise InvalidInput("TIDEMARK_SQL_URL", "is not set")
        yield

    monkeypatch.setattr(commands, "_opened", opened)
    monkeypatch.setattr(commands, "explain_stores", without_sql)
    wish = RECORD.model_copy(update={"counts": True})

    looked = await commands.correct(settings, wish, dry_run=True)
    written = await commands.correct(settings, wish, dry_run=False)
    await world.catch_up()

    meters = ["calls", "requests"]
    assert [sorted(each.meter for each in settled) for _, settled in (looked, written)] == [meters, meters]
    assert {each.unknown for _, settled in (looked, written) for each in settled} == {
        "the invoices cannot be read: TIDEMARK_SQL_URL: is not set"
    }
    rows = [row for row in world.clickhouse.control_log.values() if row.kind == ControlKind.CORRECTION]
    assert len(rows) == 1
