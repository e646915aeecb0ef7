"""Stripe's features of each customer against our flags: what is drift, what is ours alone, and who is read when."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from reconciler.causes import Cause, Pair
from reconciler.past import Past
from reconciler.reading import REREAD_AFTER_MS
from reconciler.report import Findings, Report
from reconciler.stripe_flags import FlagComparison
from reconciler.views import ReconcilePolicy
from schemas.clock import DAY_MS
from schemas.entitlement_recount import EntitlementRecount, KeptFlag, LinkedCustomer
from schemas.errors import Transient
from schemas.invoices import StripeInvoices
from schemas.reconciliation import PastRead
from tests.worlds.reconciler import START_MS, Deployment

BOUGHT = KeptFlag("acme", "sso", is_on=True, is_bought=True, is_decided=False)
GIVEN = BOUGHT._replace(is_bought=False)
OFF = GIVEN._replace(is_on=False)


class Kept:
    """What SQL has of customers `cus_ACCOUNT`."""

    def __init__(self, *flags: KeptFlag, is_paused: bool = False) -> None:
        self._flags, self._is_paused = flags, is_paused

    async def has_stripe_features(self) -> bool:
        return bool(self._flags)

    async def linked(self, now_ms: int, after: str = "", limit: int = 200) -> Sequence[LinkedCustomer]:
        names = sorted({flag.account for flag in self._flags if flag.account > after})[:limit]
        return [LinkedCustomer(name, f"cus_{name}", now_ms - DAY_MS, self._is_paused) for name in names]

    async def flags(self, accounts: Sequence[str], now_ms: int) -> Sequence[KeptFlag]:
        assert now_ms > 0
        return sorted(flag for flag in self._flags if flag.account in accounts)


class Stripe:
    """What Stripe says of every customer."""

    def __init__(self, features: Collection[str] = (), changed: Collection[str] = ()) -> None:
        self.features, self.changed = frozenset(features), set(changed)
        self.read: list[str] = []
        self.is_away = False

    @property
    def reads(self) -> int:
        return len(self.read)

    async def active_features(self, stripe_customer: str) -> frozenset[str]:
        self.read.append(stripe_customer)
        if self.is_away:
            raise Transient("no answer")
        return self.features

    async def changed_since(self, since_ms: int) -> set[str]:
        assert since_ms < START_MS
        self.read.append("events")
        return self.changed


async def compared(
    kept: Kept, stripe: Stripe, past: Sequence[PastRead] = (), reads_max: int = 100
) -> tuple[Report, list[tuple[Cause, str, str]]]:
    deployment = Deployment()
    views = replace(
        deployment.views, recount=cast("EntitlementRecount", kept), invoices=cast("StripeInvoices", cast("Any", stripe))
    )
    findings = Findings()
    policy = ReconcilePolicy()
    await FlagComparison(views, policy, deployment.clock, findings, Past(past).flags()).run(reads_max)
    report = findings.report(deployment.clock.now_ms(), None, None)
    assert report.stripe_reads == stripe.reads
    return report, [(row.cause, row.expected, row.found) for row in report.rows]


CASES: Mapping[str, tuple[Kept, Collection[str], Cause | None]] = {
    "bought on both sides": (Kept(BOUGHT), ["sso"], None),
    "off on both sides": (Kept(OFF), [], None),
    "Stripe lacks what is bought": (Kept(BOUGHT), [], Cause.MISSING),
    "Stripe gives what nobody bought": (Kept(OFF), ["sso"], Cause.EXTRA),
    "each side has another": (Kept(BOUGHT, OFF._replace(key="pos")), ["pos"], Cause.DIFFERING),
    "a person or a trial gives it": (Kept(GIVEN), [], None),
    "given, and bought too": (Kept(GIVEN), ["sso"], None),
    "a person denied it": (Kept(OFF._replace(is_decided=True)), ["sso"], None),
    "paused": (Kept(OFF, is_paused=True), ["sso"], None),
    "a feature of somebody else": (Kept(OFF), ["theirs"], None),
}


@pytest.mark.parametrize(("kept", "features", "cause"), CASES.values(), ids=CASES)
async def test_what_is_drift(kept: Kept, features: Collection[str], cause: Cause | None) -> None:
    report, rows = await compared(kept, Stripe(features))

    assert [found for found, *_ in rows] == ([cause] if cause else [])
    assert len(report.confirmed) == (cause is None)
    shown = (*report.rows, *report.confirmed)
    assert {(row.pair, row.account, row.stripe_customer) for row in shown} == {(Pair.FLAGS, "acme", "cus_acme")}


async def test_without_features_at_stripe_nothing_is_read() -> None:
    stripe = Stripe()
    assert (await compared(Kept(), stripe))[1] == []
    assert stripe.read == []


async def test_what_stripe_changed_a_moment_ago_is_in_flight() -> None:
    """The events are read only because something differs."""
    stripe = Stripe(changed=["cus_acme"])
    report, rows = await compared(Kept(BOUGHT), stripe)

    assert (rows, stripe.read) == ([(Cause.IN_FLIGHT, "sso", "")], ["cus_acme", "events"])
    assert not report.differences
    assert "changed the customer a moment ago" in report.rows[0].detail


async def test_a_stripe_that_does_not_answer_proves_nothing() -> None:
    stripe = Stripe()
    stripe.is_away = True
    _, rows = await compared(Kept(BOUGHT), stripe)

    assert rows == [(Cause.UNCHECKED, "", "")]


def read(account: str, at_ms: int, cause: str = "confirmed") -> PastRead:
    return PastRead("flags", "", f"cus_{account}", 0, 0, at_ms, cause)


async def test_customers_take_turns() -> None:
    """First drift, then who was never read, then who changed since, the oldest read first."""
    kept = Kept(*(BOUGHT._replace(account=name) for name in ("a_new", "changed", "drifted", "fresh", "old", "other")))
    past = [
        read("drifted", START_MS - 1, "missing"), read("changed", START_MS - 2 * DAY_MS), read("fresh", START_MS - 1),
        read("old", START_MS - REREAD_AFTER_MS - DAY_MS), read("other", START_MS - 1),
    ]  # fmt: skip
    first, everything = Stripe(["sso"]), Stripe(["sso"])
    _, rows = await compared(kept, first, past, reads_max=2)
    await compared(kept, everything, past)

    assert first.read == ["cus_drifted", "cus_a_new"]
    assert [cause for cause, *_ in rows] == [Cause.UNCHECKED]
    assert everything.read == ["cus_drifted", "cus_a_new", "cus_old", "cus_changed"]
