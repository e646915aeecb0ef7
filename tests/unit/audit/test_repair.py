"""Repairs: the plan says everything and changes nothing, and its steps are done once."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.audit.repair import BEGUN, DONE, RepairKind, RepairStep, execute, plan_of
from pipeline.billing.redrive import REPORTS_KEPT_MS, Redriver, failed_intents
from reconciler.causes import Cause, Pair, Verdict
from reconciler.report import Findings, Row
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import InvalidInput, Transient
from schemas.periods import Period
from sinks.clickhouse.fake_reconciliations import FakeReconciliations
from sinks.stripe.fake import FakeFault
from tests.worlds.reconciler import DECEMBER_MS, NOVEMBER_MS, Deployment, all_reported

WHO = ("ada", "the customer was repaired")


class World:
    """A deployment in which Stripe rejected ada's requests after answering 200."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.records = FakeReconciliations()

    @classmethod
    async def rejected(cls) -> World:
        deployment = await Deployment().start()
        deployment.stripe.fault = lambda event: (
            FakeFault.REJECTED if (event.event_name, event.stripe_customer) == ("requests", "cus_ada") else None
        )
        await deployment.traffic(1)
        await deployment.settle()
        deployment.stripe.fault = lambda _event: None
        deployment.clock.ms += 8 * HOUR_MS
        return cls(deployment)

    async def plan(self) -> list[RepairStep]:
        deployment = self.deployment
        report = await deployment.reconcile()
        now_ms = deployment.clock.ms
        rejections = await deployment.stripe.rejections(now_ms - REPORTS_KEPT_MS)
        failed = await failed_intents(deployment.ledger, rejections)
        return plan_of(report, failed, await all_reported(deployment), now_ms)

    async def do(self, steps: list[RepairStep], actor: str = WHO[0], reason: str = WHO[1]) -> list[tuple[bool, str]]:
        stripe, clock = self.deployment.stripe, self.deployment.clock
        redriver = Redriver(self.deployment.log, self.deployment.ledger, stripe, stripe, clock)
        return [each[1:] for each in await execute(steps, redriver, stripe, stripe, self.records, clock, actor, reason)]


def kinds(steps: list[RepairStep]) -> list[RepairKind]:
    return [step.kind for step in steps]


async def test_a_rejected_report_is_sent_again_once() -> None:
    """Planning twice changes nothing; a second repair finds nothing to do."""
    world = await World.rejected()
    sends = len(world.deployment.stripe.sends)
    steps = await world.plan()
    assert (await world.plan(), sends) == (steps, len(world.deployment.stripe.sends))
    assert [RepairKind.REDRIVE] == kinds(steps)
    assert "requests of ada" in steps[0].text

    ((first, text),) = await world.do(steps)
    ((second, _),) = await world.do(steps)
    await world.deployment.settle()
    after = await world.deployment.reconcile()

    assert (True, True) == (first, second)
    assert f"done: as {steps[0].identifier}-r1" == text
    assert (Verdict.EQUAL, []) == (after.verdict, await world.plan())
    assert sends + 1 == len(world.deployment.stripe.sends)
    assert [(*WHO, BEGUN), (*WHO, text)] * 2 == [row[6:8] + row[9:] for row in world.records.repairs]


async def both_counted() -> World:
    """Stripe counts the rejected event after all, and its next revision too."""
    world = await World.rejected()
    await world.do(await world.plan())
    await world.deployment.settle()
    for stored in world.deployment.stripe.events:
        stored.code = ""
    return world


async def test_an_event_of_ours_that_is_counted_too_much_is_cancelled_once() -> None:
    """The original of a redriven report turned out to be counted."""
    world = await both_counted()
    steps = await world.plan()
    assert [RepairKind.CANCEL] == kinds(steps)

    done = await world.do(steps)
    again = await world.do(steps)

    assert [(True, DONE)] == done
    assert again[0][1].startswith("done already, by ada")
    assert (Verdict.EQUAL, []) == ((await world.deployment.reconcile()).verdict, await world.plan())
    assert [BEGUN, DONE] == [row.result for row in world.records.repairs if row.kind == RepairKind.CANCEL]


async def test_what_stripe_would_not_cancel_any_more_is_countered() -> None:
    """Stripe cancels events of the last 24 hours."""
    world = await both_counted()
    world.deployment.clock.ms += DAY_MS

    (step,) = await world.plan()

    assert RepairKind.COUNTER == step.kind
    assert [(True, DONE)] == await world.do([step])
    assert Verdict.EQUAL == (await world.deployment.reconcile()).verdict


async def test_a_cancellation_that_stripe_refuses_is_told_and_tried_again() -> None:
    """The records say what Stripe said."""
    world = await both_counted()
    (step,) = await world.plan()
    stranger = step._replace(identifier="tm_unknown")

    ((ok, text),) = await world.do([stranger])

    assert (ok, text.startswith("refused: cancel[identifier]")) == (False, True)
    assert [(False, text)] == await world.do([stranger])


async def foreign() -> World:
    """Another program sent an event of bob."""
    world = await World.rejected()
    await world.do(await world.plan())
    await world.deployment.settle()
    event = world.deployment.sent("bob", "requests")
    world.deployment.stripe.inject(event._replace(identifier="foreign"))
    return world


async def test_an_event_of_somebody_else_is_countered_once_while_its_period_runs() -> None:
    """Stripe lists no meter events, so its identifier is not known."""
    world = await foreign()
    event = world.deployment.sent("bob", "requests")
    (step,) = await world.plan()
    assert (RepairKind.COUNTER, "cus_bob", event.value) == (step.kind, step.stripe_customer, step.quantity)
    assert "Find the other sender first" in step.text

    done = await world.do([step])
    again = await world.do([step])

    assert [(True, DONE)] == done
    assert again[0][1].startswith("done already, by ada")
    assert (Verdict.EQUAL, []) == ((await world.deployment.reconcile()).verdict, await world.plan())
    assert [BEGUN, DONE] == [row.result for row in world.records.repairs if row.kind == RepairKind.COUNTER]


async def test_nothing_is_countered_while_a_sum_may_lack_a_cancellation() -> None:
    """Stripe's sum still has the cancelled event, beside one of another sender."""
    world = await both_counted()
    cancel = await world.plan()
    event = world.deployment.sent("ada", "requests")._replace(identifier="foreign", value="3")
    world.deployment.stripe.inject(event)
    late = await world.plan()
    assert ([RepairKind.CANCEL], [RepairKind.COUNTER]) == (kinds(cancel), kinds(late))

    done = [*await world.do(cancel), *await world.do(late)]
    world.deployment.clock.ms += 2 * HOUR_MS
    (step,) = await world.plan()
    after = await world.do([step])

    assert [True, False, True] == [ok for ok, _ in (*done, *after)]
    assert "repair again in two hours" in done[1][1]
    assert (RepairKind.COUNTER, event.value) == (step.kind, step.quantity)
    assert Verdict.EQUAL == (await world.deployment.reconcile()).verdict


async def test_a_counter_event_without_an_answer_is_sent_again_under_its_identifier() -> None:
    """Stripe may have the event. A surplus that has grown since is not sent under the old identifier."""
    world = await foreign()
    stripe = world.deployment.stripe
    (step,) = await world.plan()
    stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    with pytest.raises(Transient):
        await world.do([step])
    stripe.fault = lambda _event: None

    ((ok, text),) = await world.do([step._replace(quantity="999")])

    assert (ok, text) == (True, DONE)
    assert Verdict.EQUAL == (await world.deployment.reconcile()).verdict
    assert 1 == len({row.identifier for row in world.records.repairs if row.kind == RepairKind.COUNTER})


async def test_a_counter_event_that_was_begun_long_ago_is_left_to_a_person() -> None:
    """Stripe would not tell a repeated event after a day."""
    world = await foreign()
    (step,) = await world.plan()
    world.deployment.stripe.fault = lambda _event: FakeFault.LOST_ANSWER
    with pytest.raises(Transient):
        await world.do([step])
    world.deployment.clock.ms += DAY_MS
    sends = len(world.deployment.stripe.sends)

    ((ok, text),) = await world.do([step])

    assert (ok, text.startswith("refused: a run of ada was interrupted"), sends) == (
        False,
        True,
        len(world.deployment.stripe.sends),
    )


async def test_what_is_too_much_in_an_ended_period_is_a_step_by_hand() -> None:
    """The invoice may be final already."""
    world = await foreign()
    world.deployment.clock.ms = DECEMBER_MS + 3 * DAY_MS

    steps = await world.plan()

    assert [RepairKind.BY_HAND] == [step.kind for step in steps if step.stripe_customer == "cus_bob"]


def row(pair: Pair, cause: Cause, **fields: Any) -> Row:
    period = Period(NOVEMBER_MS, DECEMBER_MS)
    return Row(pair, cause, None, "ada", "calls", period, stripe_customer="cus_ada", event_name="calls", **fields)


@pytest.mark.parametrize(
    ("found", "kind", "text"),
    [
        pytest.param(row(Pair.INVOICES, Cause.UNBILLED, expected="1125", found="1000"), RepairKind.INVOICE_ITEM,
                     "2026-11-01 to 2026-12-01, from 1000 to 1125: the sink makes it by itself",
                     id="unbilled"),
        pytest.param(row(Pair.INVOICES, Cause.EXTRA, detail="credit it"), RepairKind.BY_HAND, "credit it", id="billed"),
        pytest.param(row(Pair.STRIPE, Cause.MISSING, detail="lost"), RepairKind.BY_HAND, "lost", id="missing"),
        pytest.param(row(Pair.MIRROR, Cause.DIFFERING, detail="run `tidemark billing resync`"), RepairKind.BY_HAND,
                     "tidemark billing resync", id="mirror"),
        pytest.param(row(Pair.REDIS, Cause.MISSING, detail="missing in Redis"), RepairKind.BY_HAND, "missing in Redis",
                     id="a copy of ours"),
        pytest.param(row(Pair.STRIPE, Cause.UNCHECKED), None, "", id="unchecked"),
        pytest.param(row(Pair.INVOICES, Cause.IN_FLIGHT), None, "", id="in flight"),
    ],
)  # fmt: skip
def test_every_drift_has_a_step(found: Row, kind: RepairKind | None, text: str) -> None:
    """Nobody has to guess what the plan left out."""
    findings = Findings()
    findings.add(found)

    steps = plan_of(findings.report(0, None, None), [], [], DECEMBER_MS)

    assert ([] if kind is None else [kind]) == kinds(steps)
    assert all(text in step.text for step in steps)


@pytest.mark.parametrize(("actor", "reason"), [("", "why"), ("who", "  ")], ids=["nobody", "no reason"])
async def test_nothing_is_repaired_without_a_name_and_a_reason(actor: str, reason: str) -> None:
    """An auditor asks for both."""
    world = await World.rejected()
    steps = await world.plan()

    with pytest.raises(InvalidInput):
        await world.do(steps, actor, reason)

    assert [] == world.records.repairs
