"""The same steps on Stripe's sandbox and on the simulator. Without a key, on two simulators: that tests the suite.

`TIDEMARK_STRIPE_SANDBOX_KEY=sk_test_… make test ARGS="tests/sandbox -n 0 -s -o faulthandler_timeout=0"` takes a
sandbox, prints what differs field by field, and fails if anything does. `docs/stripe-simulator.md` says what the
answers settle.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from stripe_simulator import Simulator, SimulatorSettings
from tests.sandbox.compare import differences
from tests.sandbox.questions import QUESTIONS
from tests.sandbox.stage import VARIABLE, Sandbox, Simulated, Stage
from tests.sandbox.steps import STEPS
from tests.services.stripe import check_shapes, running, serve_simulator
from tests.services.stripe_sdk import Sdk
from tests.services.stripe_shapes import problems
from tests.services.stripe_wire import NOW_MS
from tests.worlds.clock import ManualClock

ALL: Final = STEPS | QUESTIONS
PAGE: Final = Path(__file__).parents[2] / "docs" / "stripe-simulator.md"
NOW_S: Final = NOW_MS // 1_000
FEW: Final = {name: STEPS[name] for name in ("customer", "prices", "subscribe", "seats")}


@asynccontextmanager
async def simulated(now_s: int, seed: int) -> AsyncIterator[Simulated]:
    """A simulator of its own with Stripe's lags."""
    clock = ManualClock(now_s * 1_000)
    simulator = Simulator(clock, SimulatorSettings(seed=seed), check=problems)
    sdk = Sdk(simulator, clock)
    async with running(simulator):
        yield Simulated(sdk)
    await sdk.close()
    check_shapes(simulator.violations, simulator.checked)


async def played(now_s: int, seed: int, steps: Any = ALL) -> Stage:
    """The steps on a simulator."""
    async with simulated(now_s, seed) as one:
        stage = Stage(one, now_s)
        await stage.play(steps)
    return stage


# A sandbox needs time: its clocks, its summaries and its reports are slow.
@pytest.mark.timeout(7_200)
async def test_the_simulator_answers_as_the_sandbox() -> None:
    """Without a key, a simulator with another seed takes the sandbox's place."""
    key = os.environ.get(VARIABLE)
    if key:
        sandbox = Sandbox(key)
        first = Stage(sandbox, int(sandbox.now_s()))
        await first.play(ALL)
    else:
        first = await played(NOW_S, 1)
    second = await played(first.now_s, 2)
    report = [*first.failures, *differences(first.answers, second.answers)]
    sys.stdout.write("\n".join([*first.measured, *report, ""]))

    assert second.failures == []
    assert {name.partition(":")[0] for name in second.answers} == ALL.keys()
    assert report == [], f"{len(report)} differences: Stripe's value first, the simulator's second"


def _more_money(answer: dict[str, Any]) -> None:
    answer["total"] += 1


def _line_gone(answer: dict[str, Any]) -> None:
    answer["lines"]["data"].pop()


def _field_gone(answer: dict[str, Any]) -> None:
    del answer["currency"]


def _another_kind_of_id(answer: dict[str, Any]) -> None:
    answer["customer"] = "acct_1Nv0FGQ9RKHgCVdK"


@pytest.mark.parametrize(
    ("alter", "line"),
    [
        (_more_money, r"seats: preview\.total: \d+, and \d+"),
        (_line_gone, r"seats: preview\.lines\.data: 2 entries, and 1"),
        (_field_gone, r"seats: preview\.currency: 'usd', and 'absent'"),
        (_another_kind_of_id, r"seats: preview\.customer: 'cus_…', and 'acct_…'"),
    ],
)
async def test_a_difference_is_found(alter: Callable[[dict[str, Any]], None], line: str) -> None:
    """Exactly one line, with the field's path."""
    first, second = await played(NOW_S, 1, FEW), await played(NOW_S, 2, FEW)
    assert (first.failures, list(differences(first.answers, second.answers))) == ([], [])
    alter(second.answers["seats: preview"])

    (found,) = differences(first.answers, second.answers)
    assert re.fullmatch(line, found)


class _Refusing:
    """A Stripe that refuses one call."""

    def __init__(self, stripe: Simulated, name: str) -> None:
        self._stripe = stripe
        self._name = name
        self.now_s = stripe.now_s
        self.pause = stripe.pause

    async def __call__(self, name: str, *arguments: Any) -> Any:
        if name == self._name:
            return await self._stripe("v1.customers.retrieve", "cus_refused")
        return await self._stripe(name, *arguments)


async def test_a_step_that_fails_ends_no_other_step() -> None:
    """The report names the step and the steps that needed it; the others run."""
    async with simulated(NOW_S, 1) as one:
        stage = Stage(_Refusing(one, "v1.subscriptions.create"), NOW_S)
        await stage.play({**FEW, "coupon": STEPS["coupon"], "rounding": QUESTIONS["rounding"]})
    whole = await played(NOW_S, 2, FEW)

    assert [failure.partition(":")[0] for failure in stage.failures] == ["subscribe", "seats", "coupon"]
    assert "rounding: lines of 3 of 0.5" in stage.answers
    found = list(differences(whole.answers, stage.answers))
    assert any(line.startswith("subscribe: subscription.error: 'absent'") for line in found)


async def test_an_answer_that_no_step_expects_is_reported() -> None:
    """An answer without a field that a step reads ends that step only."""

    async def reads_too_much(stage: Stage) -> None:
        stage.found("a field", (await stage.ask("v1.accounts.retrieve_current"))["no_such_field"])

    stage = await played(NOW_S, 1, {"reads_too_much": reads_too_much, "rounding": QUESTIONS["rounding"]})

    assert [failure.partition(":")[0] for failure in stage.failures] == ["reads_too_much"]
    assert "no_such_field" in stage.failures[0]
    assert "rounding: 1 of 0.5" in stage.answers


async def test_the_client_of_the_sandbox() -> None:
    """The client that calls Stripe, at the address of a simulator."""
    async with serve_simulator(ManualClock(NOW_MS), SimulatorSettings(seed=1)) as served:
        stage = Stage(Sandbox("sk_test_tidemark", served.url), NOW_S)
        await stage.play(FEW)
    whole = await played(NOW_S, 2, FEW)

    assert (stage.failures, list(differences(stage.answers, whole.answers))) == ([], [])


async def test_the_run_cleans_up() -> None:
    """Nothing stays but what Stripe never deletes, and that is inactive."""
    async with simulated(NOW_S, 1) as one:
        stage = Stage(one, NOW_S)
        await stage.play(ALL)
        left = {
            name: (await one(f"v1.{name}.list", params))["data"]
            for name, params in {
                "test_helpers.test_clocks": {}, "customers": {}, "webhook_endpoints": {}, "prices": {"active": True},
                "products": {"active": True}, "billing.meters": {"status": "active"},
            }.items()
        }  # fmt: skip

    assert stage.failures == []
    assert not any(left.values()), left


@pytest.mark.parametrize("key", ["sk_live_abc", "rk_live_abc", "pk_test_abc", "sk_test_", "whsec_abc", "sk_test_a b"])
def test_only_a_test_key_is_taken(key: str) -> None:
    """The suite creates and deletes objects. The error does not repeat the key."""
    with pytest.raises(ValueError, match="must begin with sk_test_ or rk_test_") as refused:
        Sandbox(key)
    assert key not in str(refused.value).replace("sk_test_ or", "")


def test_every_question_has_its_step() -> None:
    """The page names for each question the step that notes Stripe's answer."""
    rows = re.findall(r"^\| (\d+) \|.*\| `(\w+)` \|$", PAGE.read_text(), re.M)

    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert {step for _, step in rows} == QUESTIONS.keys()
