"""What a correction changes beside those before it, and which corrections are refused (S16)."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from pipeline.logs.bindings import AccountLog
from pipeline.logs.control_records import append_everywhere
from pipeline.logs.correcting import Planned, Uncorrectable, plan_correction, write_correction
from pipeline.rollup.corrector import Corrector
from schemas.clock import DAY_MS
from schemas.control import CorrectionRecord, MeterSetRecord
from schemas.meters import MeterSet
from sinks.clickhouse.fake_corrections import FakeCorrections
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import DECEMBER_MS, Deployment

METERS: Final[list[dict[str, Any]]] = [
    {"slug": "units", "event_type": "job", "aggregation": "sum", "value_path": "$.units"},
    {"slug": "kept", "event_type": "kept", "aggregation": "sum", "value_path": "$.units", "late": "quarantine"},
    {"slug": "stored", "event_type": "level", "aggregation": "time_weighted", "value_path": "$.gb",
     "filters": [{"path": "$.kind", "values": ["real"]}]},
    {"slug": "held", "event_type": "held", "aggregation": "time_weighted", "value_path": "$.gb", "late": "quarantine"},
]  # fmt: skip


class Shop:
    """A deployment where ada has sent one event, and a corrector."""

    def __init__(self) -> None:
        self.world = Deployment()
        self.archive = FakeCorrections(self.world.clickhouse)
        self.corrector = Corrector(self.world.log, self.world.clickhouse, self.archive)

    async def open(self, type_: str = "job", **data: Any) -> None:
        await self.world.start({"version": 1, "meters": METERS})
        await self.world.emit("ada", type_=type_, id="e", **(data or {"units": 7}))
        await self.settle()

    async def settle(self) -> None:
        world = self.world
        for _ in range(3):
            await world.fold()
            await world.archive()
            await world.resolve()
            for partition in range(world.world.partitions):
                await self.corrector.correct(partition)

    async def apply(self, version: int, meters: list[dict[str, Any]]) -> None:
        later = MeterSetRecord(meter_set=MeterSet.model_validate({"version": version, "meters": meters}))
        await append_everywhere(self.world.log, SECRET, later)
        await self.settle()

    async def close_november(self) -> None:
        await self.world.advance(DECEMBER_MS - self.world.clock.ms + 10 * DAY_MS)
        await self.settle()

    async def plan(self, name: str, data: dict[str, Any] | None, treatment: str = "next_period") -> Planned:
        wish = CorrectionRecord.model_validate({
            "account": "ada", "correction": name, "event": "e", "kind": "void" if data is None else "amend",
            "data": "" if data is None else json.dumps(data), "by": "ann", "reason": "wrong", "treatment": treatment,
        })  # fmt: skip
        log = AccountLog(self.world.log, self.world.world.partitions, SECRET, self.world.clock)
        planned = await plan_correction(log, self.world.store, self.archive, wish)
        await write_correction(log, planned)
        await self.settle()
        return planned

    def told(self) -> int:
        """By how much all adjustments of `units` have changed the totals."""
        rows = (row for row in self.world.clickhouse.counted() if row[1].type == "tidemark.adjusted.units")
        return sum(int(json.loads(row.data)["quantity"]) for _, row in rows)


# Each step: units of the amended event (None: a void), treatment, what the answer says, what the totals changed so far.
_Step = tuple[int | None, str, int, int]
CHAINS: Final[dict[str, list[_Step]]] = {
    "a void by credit note, then another": [(None, "credit_note", -7, 0), (None, "credit_note", 0, 0)],
    "a void by credit note, then by the next period": [(None, "credit_note", -7, 0), (None, "next_period", 0, 0)],
    "a credit note, and the event is back": [(None, "credit_note", -7, 0), (7, "next_period", 7, 7)],
    "a credit note for a part, then for the rest": [(5, "credit_note", -2, 0), (None, "credit_note", -5, 0)],
    "the next period, a credit note, the next period": [
        (5, "next_period", -2, -2), (None, "credit_note", -5, -2), (7, "next_period", 7, 5),
    ],
    "what was written off may be paid later": [(None, "write_off", -7, 0), (None, "credit_note", -7, 0)],
    "what was written off is not charged again": [(None, "write_off", -7, 0), (7, "next_period", 0, 0)],
    "a void, twice": [(None, "next_period", -7, -7), (None, "next_period", 0, -7)],
}  # fmt: skip


@pytest.mark.parametrize("steps", CHAINS.values(), ids=CHAINS)
async def test_a_correction_of_a_closed_period_begins_where_the_one_before_ended(steps: list[_Step]) -> None:
    """Else a customer would be paid twice, or charged for what a credit note gave back."""
    shop = Shop()
    await shop.open()
    await shop.close_november()

    for number, (units, treatment, said, told) in enumerate(steps):
        planned = await shop.plan(f"c-{number}", None if units is None else {"units": units}, treatment)
        assert (sum(each.minor for each in planned.changes), shop.told()) == (said, told), number
    again = await shop.plan("c-0", None if steps[0][0] is None else {"units": steps[0][0]}, steps[0][1])

    assert again.is_known
    assert sum(each.minor for each in again.changes) == (0 if steps[0][1] == "next_period" else steps[0][2])
    assert shop.told() == steps[-1][3]


async def test_a_repeated_request_is_known_also_if_a_meter_that_cannot_follow_came_back() -> None:
    """Whoever got no answer asks again, and would be told that nothing was corrected."""
    largest = {"slug": "largest", "event_type": "job", "aggregation": "max", "value_path": "$.units"}
    shop = Shop()
    await shop.world.start({"version": 1, "meters": [*METERS, largest]})
    await shop.world.emit("ada", type_="job", id="e", units=7)
    await shop.apply(2, METERS)
    await shop.plan("c-1", None)
    await shop.apply(3, [*METERS, largest])

    assert (await shop.plan("c-1", None)).is_known
    with pytest.raises(Uncorrectable, match="counts in largest"):
        await shop.plan("c-2", None)


@pytest.mark.parametrize(
    ("type_", "data", "amended", "field"),
    [
        ("level", {"gb": 5, "kind": "real"}, {"gb": 5, "kind": "test"}, "amend"),
        ("level", {"gb": 5, "kind": "real"}, {"gb": 6, "kind": "real"}, "amend"),
        ("level", {"gb": 5, "kind": "test"}, {"gb": 5, "kind": "real"}, "amend"),
    ],
    ids=["a sample that is none any more", "a sample of another level", "data that are a sample now"],
)
async def test_a_sample_is_not_amended(type_: str, data: dict[str, Any], amended: dict[str, Any], field: str) -> None:
    """Nothing would be measured again."""
    shop = Shop()
    await shop.open(type_, **data)

    with pytest.raises(Uncorrectable) as refused:
        await shop.plan("c-1", amended)

    assert (refused.value.problem, refused.value.field) == ("not_correctable", field)


@pytest.mark.parametrize("case", ["kept", "held", "another payer"])
async def test_what_no_later_period_takes_is_not_promised(case: str) -> None:
    """The fold would quarantine the adjustments, and the answer would have said that the totals change."""
    shop = Shop()
    type_ = "job" if case == "another payer" else case
    await shop.open(type_, units=7, gb=5)
    await shop.world.advance(DECEMBER_MS - shop.world.clock.ms)
    if case == "another payer":
        await shop.world.bind("ada", stripe_customer="cus_bob", effective_from_ms=shop.world.clock.ms + DAY_MS)
    await shop.close_november()

    with pytest.raises(Uncorrectable) as refused:
        await shop.plan("c-1", None)
    settled = await shop.plan("c-1", None, "credit_note")

    assert (refused.value.problem, refused.value.field) == ("not_correctable", "closed_period")
    assert not settled.record.counts


async def test_an_event_takes_so_many_corrections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.logs.correcting.CORRECTIONS_OF_EVENT_MAX", 2)
    shop = Shop()
    await shop.open()
    for number in range(2):
        await shop.plan(f"c-{number}", {"units": number})

    with pytest.raises(Uncorrectable, match="takes no more"):
        await shop.plan("c-2", None)
    assert (await shop.plan("c-1", {"units": 1})).is_known
