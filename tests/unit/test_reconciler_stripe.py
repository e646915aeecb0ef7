"""What Stripe holds, against what the log says of it: whose key it is, who pays, dead letters, sums of doubles."""

from __future__ import annotations

import pytest

from pipeline.deployment import ensure_deployment
from pipeline.settings import Settings
from reconciler.causes import Cause, Pair, Verdict
from sinks.stripe.memory import MemoryFault
from tests.unit.reconciler_world import Deployment, named
from tests.worlds import SECRET


@pytest.mark.parametrize(
    ("change", "theirs"),
    [
        pytest.param({"livemode": True}, "the key is of live mode of Stripe account acct_ours", id="mode"),
        pytest.param({"account": "acct_other"}, "the key is of test mode of Stripe account acct_other", id="account"),
    ],
)
@pytest.mark.parametrize("is_refused", [False, True], ids=["accepted", "dead letters"])
async def test_a_key_of_another_account_or_mode_compares_nothing_and_says_so(
    change: dict[str, str | bool], theirs: str, is_refused: bool
) -> None:
    """Nothing of it was sent under that key, so that nothing read with it proves anything."""
    deployment = Deployment()
    topics = Settings(partitions=2, retention_days=3650).topics()
    await ensure_deployment(deployment.log, SECRET, topics, stripe_account="acct_ours")
    deployment.stripe.account = "acct_ours"
    await deployment.start()
    deployment.stripe.fault = lambda _event: MemoryFault.BAD_REQUEST if is_refused else None
    await deployment.traffic(1)
    await deployment.settle()
    with_its_own = await deployment.reconcile()
    for name, value in change.items():
        setattr(deployment.stripe, name, value)

    report = await deployment.reconcile()

    assert with_its_own.verdict is (Verdict.DRIFT if is_refused else Verdict.EQUAL)
    assert report.verdict is Verdict.INCOMPLETE
    (row,) = named(report, Cause.UNCHECKED, Pair.STRIPE)
    assert row.detail.startswith(f"{theirs}, these intents are of test mode of Stripe account acct_ours: ")
    assert "TIDEMARK_STRIPE_API_KEY" in row.detail
    stripe = next(s for s in report.summaries if s.pair is Pair.STRIPE)
    assert (stripe.compared, stripe.unchecked) == (0, 16)
