"""Whatever Stripe answers, one sum is unchecked at most, and a difference that was found is reported."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from reconciler.causes import Cause, Pair, Verdict
from reconciler.report import Report
from sinks.stripe.fake import FakeFault
from tests.worlds.hostile_answers import FOREIGN, LISTS, REPORTS, STATUSES, SUMS, Hostile, error
from tests.worlds.reconciler import Deployment, rows_of, settled
from tests.worlds.stripe_http import StripeOverHttp

NAMES = ["requests", "gigabytes", "peak", "users"]
REFUSALS = (error(401), error(403))


class World:
    """A deployment whose Stripe lacks one event of bob, and the real client whose answers a test replaces."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.http = StripeOverHttp(deployment.stripe, NAMES)
        self.meters = self.http.client()
        deployment.stripe.account = "acct_memory"
        deployment.views = dataclasses.replace(deployment.views, stripe=self.meters, rejections=self.meters)

    async def reconcile(self, path: str, answer: Hostile, customer: str = "") -> Report:
        """The report if requests to a path, of one customer or of all, get this answer."""

        def hostile(request: httpx.Request) -> httpx.Response | None:
            is_it = request.url.path.endswith(path) and request.url.params.get("customer", "") == customer
            return answer.response() if is_it else None

        self.http.hostile = hostile
        return await self.deployment.reconcile()


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """All is counted and sent; Stripe lost one event of bob's."""
    deployment = await settled()
    stripe = deployment.stripe
    lost = deployment.sent("bob", "gigabytes")
    stripe.events = [stored for stored in stripe.events if stored.event != lost]
    world = World(deployment)
    yield world
    await world.meters.close()


def differences(report: Report) -> set[tuple[str, str]]:
    """The sums of Stripe that differ, by account and meter."""
    drifts = (Cause.MISSING, Cause.EXTRA, Cause.REJECTED_BY_STRIPE)
    return {(row.account, row.meter) for cause in drifts for row in rows_of(report, cause, Pair.STRIPE)}


@pytest.mark.parametrize("answer", [*REFUSALS, *STATUSES, *FOREIGN, *LISTS, *SUMS], ids=lambda answer: answer.name)
async def test_answer_to_one_customers_sums_leaves_those_unchecked(world: World, answer: Hostile) -> None:
    """All other sums are compared."""
    report = await world.reconcile("/event_summaries", answer, "cus_ada")

    assert ("bob", "gigabytes") in differences(report)
    assert {account for account, _ in differences(report)} <= {"bob", "ada"}
    assert {row.account for row in rows_of(report, Cause.UNCHECKED, Pair.STRIPE)} <= {"ada"}
    assert report.verdict is Verdict.DRIFT


@pytest.mark.parametrize("answer", [*REFUSALS, *STATUSES, *FOREIGN, *LISTS, *REPORTS], ids=lambda answer: answer.name)
async def test_answer_to_the_error_reports_hides_no_difference(world: World, answer: Hostile) -> None:
    """A 400 dropped the difference and exited 0; `data: null` ended the whole run."""
    report = await world.reconcile("/v2/core/events", answer)

    assert differences(report) == {("bob", "gigabytes")}
    assert report.verdict is Verdict.DRIFT
    assert rows_of(report, Cause.UNCHECKED, Pair.STRIPE) == []


@pytest.mark.parametrize("answer", [*REFUSALS, *STATUSES, *FOREIGN, *LISTS], ids=lambda answer: answer.name)
@pytest.mark.parametrize("path", ["/v1/billing/meters", "/v1/account"])
async def test_answer_to_a_shared_call_leaves_stripe_unchecked_and_all_else_compared(
    world: World, answer: Hostile, path: str
) -> None:
    """Dead letters are known without Stripe."""
    deployment = world.deployment
    deployment.stripe.fault = lambda _event: FakeFault.BAD_REQUEST
    await deployment.emit("ada", gb="4", user="u", region="eu")
    await deployment.settle()

    report = await world.reconcile(path, answer)

    dead = rows_of(report, Cause.REJECTED_BY_STRIPE, Pair.STRIPE)
    assert ("ada", "gigabytes") in {(row.account, row.meter) for row in dead}
    by_pair = {summary.pair: summary for summary in report.summaries}
    assert all(by_pair[pair].compared for pair in (Pair.REDIS, Pair.HOURLY, Pair.INTENTS))
    assert not any(by_pair[pair].unchecked for pair in (Pair.REDIS, Pair.HOURLY, Pair.INTENTS))
    assert report.verdict is Verdict.DRIFT


@pytest.mark.parametrize("field", ["identifier", "idempotency_key"])
async def test_samples_of_a_report_are_found_by_identifier_or_by_idempotency_key(world: World, field: str) -> None:
    """Stripe documents both, and our key was a hash that no sample could match."""
    event = world.deployment.sent("bob", "requests")
    keys: list[str] = []
    world.http.hostile = lambda request: keys.append(request.headers.get("Idempotency-Key", ""))
    await world.meters.send(event)
    request = {field: keys[0] if field == "idempotency_key" else event.identifier}
    sample = {"error_message": "no", "request": request}
    reason = {"error_count": 1, "error_types": [{"code": "archived", "error_count": 1, "sample_errors": [sample]}]}
    data = {"reason": reason, "validation_start": "2026-11-10T12:00:00Z", "validation_end": "2026-11-10T12:00:10Z"}
    body = {"data": [{"object": "v2.core.event", "id": "evt", "data": data, "related_object": {"id": "mtr_requests"}}]}
    world.http.hostile = lambda request: (
        httpx.Response(200, json=body) if request.url.path == "/v2/core/events" else None
    )

    (rejection,) = await world.meters.rejections(0)

    assert (rejection.identifiers, rejection.event_name, rejection.code) == (
        (event.identifier,),
        "requests",
        "archived",
    )
