"""`tidemark dunning list` and `write-off`, and what the role `mirror` shows of dunning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from pipeline.access.dunning import GAUGES, DunningGauges, month_starts
from pipeline.commands import dunning as commands
from pipeline.commands.dunning import Dunned
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from schemas.clock import DAY_MS
from schemas.dunning import DunningCase, DunningCounts, DunningOutcome, DunningState, ListedCase, Recovery
from tests.unit.cli.command_lines import run
from tests.worlds.clock import ManualClock
from tests.worlds.mirrored import NOW_MS

OPEN = DunningCase(
    "dun_1", "acme", "sub_1", NOW_MS, NOW_MS, DunningState.FINAL_WARNING, 29_800, "usd", 2, NOW_MS + 3 * DAY_MS
)
CHURNED = OPEN._replace(
    id="dun_2", account="a\x1b[2Jb", state=DunningState.CLOSED, closed_ms=NOW_MS, outcome=DunningOutcome.CHURNED
)
CASES = [ListedCase(OPEN, ("in_1",), 14_900, "https://pay"), ListedCase(CHURNED, ("in_2", "in_3"), 29_800)]
NOVEMBER = month_starts(NOW_MS, 1)[0]
RECOVERIES = [
    Recovery(NOVEMBER, "jpy", 0, 1, 0, 900, 0, 1),
    Recovery(NOVEMBER, "usd", 2, 3, 2, 44_700, 29_800, 0),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the commands asked of the store."""
    questions: list[object] = []

    async def listed(_settings: Settings, *question: object) -> Dunned:
        questions.append(question)
        return Dunned([], []) if question[1] is False else Dunned(CASES, RECOVERIES)

    async def write_off(_settings: Settings, *question: object) -> DunningCase:
        questions.append(question)
        return CHURNED._replace(account="acme", outcome=DunningOutcome.WRITTEN_OFF)

    monkeypatch.setattr(commands, "listed", listed)
    monkeypatch.setattr(commands, "write_off", write_off)
    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    return questions


def test_list_says_how_far_each_case_is_and_how_many_recover(asked: list[object]) -> None:
    proposal = ": cancel the subscription at Stripe without proration, then void in_2, in_3 or mark them uncollectible"
    lines = run(["dunning", "list", "--state", "open", "--account", "acme"]).out.splitlines()

    assert asked == [("acme", True, 20, 6)]
    assert lines == [
        "dun_1 acme sub_1 final_warning $149.00 since 2026-11-21T10:30:00Z, downgrade 2026-11-24T10:30:00Z",
        f"dun_2 a?[2Jb sub_1 churned $298.00 since 2026-11-21T10:30:00Z{proposal}",
        "2026-11 jpy: 0 of 1 recovered within 30 days (0 %), ¥0 of ¥900, 1 still open",
        "2026-11 usd: 2 of 3 recovered within 30 days (66 %), $298.00 of $447.00",
    ]
    assert run(["dunning", "list", "--state", "closed"]).out == "no cases\n"


@pytest.mark.parametrize(
    ("status", "remedy"), [("unpaid", "finalize and collect its drafts, or delete them"), ("paused", "resume it")]
)
def test_list_says_what_is_paid_and_billed_no_more(
    monkeypatch: pytest.MonkeyPatch, asked: list[object], status: str, remedy: str
) -> None:
    recovered = ListedCase(CHURNED._replace(account="acme", outcome=DunningOutcome.RECOVERED), unbilled=status)
    monkeypatch.setattr(f"{__name__}.CASES", [recovered])
    line = run(["dunning", "list"]).out.splitlines()[0]
    ends = "; otherwise the plan ends 2026-11-24T10:30:00Z"
    assert line.endswith(f"10:30:00Z: {status} at Stripe, which bills nothing: {remedy} there{ends}")
    assert len(asked) == 1


def test_list_as_json(asked: list[object]) -> None:
    found = json.loads(run(["dunning", "list", "--json", "--limit", "7", "--months", "1"]).out)

    assert asked == [("", None, 7, 1)]
    assert [(case["id"], case["state"], case["outcome"]) for case in found["cases"]] == [
        ("dun_1", "final_warning", None), ("dun_2", "closed", "churned"),
    ]  # fmt: skip
    assert found["recoveries"][1] == {
        "month": "2026-11", "currency": "usd", "exponent": 2, "opened": 3, "recovered": 2, "opened_minor": 44_700,
        "recovered_minor": 29_800, "running": 0,
    }  # fmt: skip


def test_write_off_says_what_is_left_to_do(asked: list[object]) -> None:
    result = run(["dunning", "write-off", "dun_2", "--by", "ann", "--reason", "goodwill"])

    assert asked == [("dun_2", "ann", "goodwill")]
    assert result.out == "dun_2 of acme is written off; its invoices are still open at Stripe: void them there\n"
    assert run(["dunning", "write-off", "dun_2"]).code == 2


def test_months_begin_in_utc_and_end_with_the_next_one() -> None:
    days = [(start_ms - NOVEMBER) // DAY_MS for start_ms in month_starts(NOW_MS, 3)]
    assert days == [-61, -31, 0, 30]
    assert month_starts(NOW_MS, 0) == [NOVEMBER + 30 * DAY_MS]


class Store:
    """A store whose counts a test sets."""

    def __init__(self, recoveries: Sequence[Recovery]) -> None:
        self.found, self.spans = recoveries, list[Sequence[int]]()

    async def counts(self) -> DunningCounts:
        return DunningCounts({DunningState.URGENT: 4}, 1)

    async def recoveries(self, starts_ms: Sequence[int]) -> Sequence[Recovery]:
        self.spans.append(starts_ms)
        return self.found


def shown(metrics: Metrics) -> Mapping[str, float]:
    """The gauges of dunning by name and labels."""
    lines = [line for line in metrics.render()[0].decode().splitlines() if line.startswith("tidemark_dunning")]
    return {name.removeprefix("tidemark_dunning_"): float(value) for name, value in (x.rsplit(" ", 1) for x in lines)}


@pytest.mark.parametrize(
    ("recoveries", "judged", "ratios"),
    [
        ([], 0, {}),
        (RECOVERIES, 4, {'{of="cases"}': 0.5, '{of="jpy"}': 0, '{of="usd"}': 29_800 / 44_700}),
        ([RECOVERIES[0]._replace(opened_minor=0)], 1, {'{of="cases"}': 0}),
    ],
    ids=["no case", "two currencies", "nothing was open"],
)
async def test_the_gauges(recoveries: Sequence[Recovery], judged: int, ratios: Mapping[str, float]) -> None:
    store, metrics = Store(recoveries), Metrics()
    gauges = DunningGauges(store, ManualClock(NOW_MS))  # type: ignore[arg-type]  # a part of a store
    gauges.show(metrics, is_owner=True)
    assert shown(metrics) == {}
    await gauges.count()
    gauges.show(metrics, is_owner=True)

    assert store.spans == [[NOW_MS - 60 * DAY_MS, NOW_MS - 30 * DAY_MS]]
    states = {f'open_cases{{state="{state}"}}': 0 for state in list(DunningState)[:-1]}
    assert shown(metrics) == {
        **states, 'open_cases{state="urgent"}': 4, "canceled_cases": 1, "judged_cases": judged,
        **{f"recovered_ratio{of}": ratio for of, ratio in ratios.items()},
    }  # fmt: skip
    gauges.show(metrics, is_owner=False)
    assert shown(metrics) == {}
    assert len(GAUGES) == 4
