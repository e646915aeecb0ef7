"""What a scrape shows of trials, second subscriptions, stuck invoices and migrations."""

from __future__ import annotations

from pipeline.changes.gauges import BoughtGauges
from pipeline.metrics import Metrics
from schemas.catalog import PlanId
from schemas.duplicates import DuplicateState
from schemas.flat_to_metered import Migration, WaveRule
from schemas.trials import TrialState
from tests.worlds.clock import ManualClock

FLAT = PlanId("flat", 1)


class Counts:
    """Stands in for the stores."""

    def __init__(self, **found: object) -> None:
        self._found = found

    def __getattr__(self, name: str) -> object:
        async def answer(*_arguments: int) -> object:
            return self._found[name]

        return answer


def text(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


async def test_the_owner_shows_what_was_counted() -> None:
    """A process without the partition shows nothing, and no zeros before the first count."""
    trials = Counts(counts={TrialState.RUNNING: 3}, flagged=1)
    duplicates = Counts(counts={DuplicateState.REFUND_PROPOSED: 2, DuplicateState.SETTLED: 9})
    halted = Migration("a", FLAT, FLAT, FLAT, 30, WaveRule.SETTLED, 0, "ann", "why", "a figure differs")
    migrations = Counts(listed=[halted, halted._replace(name="b", halted="")])
    stores = trials, duplicates, Counts(count=4), migrations, Counts(stuck=(2, 1)), ManualClock(0)
    gauges, metrics = BoughtGauges(*stores), Metrics()  # type: ignore[arg-type]  # stand-ins
    gauges.show(metrics, is_owner=True)
    assert "tidemark_trials" not in text(metrics)
    await gauges.count()
    gauges.show(metrics, is_owner=True)
    shown = text(metrics)

    assert 'tidemark_trials{state="running"} 3' in shown
    assert 'tidemark_trials{state="ending"} 0' in shown
    assert "tidemark_trials_flagged 1" in shown
    assert 'tidemark_duplicate_subscriptions{state="refund_proposed"} 2' in shown
    assert 'state="settled"' not in shown
    assert "tidemark_unfinalized_invoices 4" in shown
    assert "tidemark_migrations_halted 1" in shown
    assert 'tidemark_credits_stuck_orders{state="refused"} 2' in shown
    assert 'tidemark_credits_stuck_orders{state="waiting"} 1' in shown
    gauges.show(metrics, is_owner=False)
    assert "tidemark_trials" not in text(metrics)
