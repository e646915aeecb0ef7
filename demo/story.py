"""The results of a run of the demo, and the decision whether they prove the counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from demo.answers import Check
from demo.plan import INVOICES
from demo.verify import Mismatch
from reconciler.causes import Verdict
from reconciler.report import Report


@dataclass
class Story:
    """The results of a run so far."""

    kills: int = 0
    replayed: int = 0
    emitted: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    traffic: dict[str, Any] = field(default_factory=dict)
    traffic_s: float = 0.0
    mismatches: list[Mismatch] = field(default_factory=list)
    report: Report | None = None
    faulty_report: Report | None = None
    faults_found: list[str] = field(default_factory=list)
    mirror_kills: int = 0
    invoices: int = 0
    invoice_mismatches: list[Mismatch] = field(default_factory=list)
    webhooks_dropped: int = 0
    webhooks_doubled: int = 0
    webhooks_recovered: int = 0
    mirror_rows: int = 0
    resync_differences: int | None = None
    rebound: int | None = None
    check_denied: Check | None = None
    check_allowed: Check | None = None
    check_allowed_after_s: float = 0.0

    def result(self) -> dict[str, object]:
        """The results for the line of JSON."""
        counted = {
            name: self.counters[name] for name in ("received", "counted", "duplicate", "unmetered", "late", "rejected")
        }
        return {
            "sent": self.traffic.get("sent", 0),
            **counted,
            "replayed": self.replayed,
            "oracle_mismatches": len(self.mismatches),
            "drift": self.report.differences if self.report else None,
            "injected_faults_found": len(self.faults_found),
            "invoices": self.invoices,
            "invoice_mismatches": len(self.invoice_mismatches),
            "webhooks_dropped": self.webhooks_dropped,
            "webhooks_doubled": self.webhooks_doubled,
            "resync_differences": self.resync_differences,
            "check_denied": self.check_denied is not None,
            "check_unlocked_by": self.check_denied.unlocked_by if self.check_denied else "",
            "check_allowed_after_s": round(self.check_allowed_after_s, 2) if self.check_allowed else None,
            "events_per_s": round(self.traffic.get("sent", 0) / self.traffic_s) if self.traffic_s else 0,
        }


def verdict(story: Story, kills: int) -> list[str]:
    """The problems of a run; empty if the counts are proven."""
    problems = []
    counters = story.counters
    if story.mismatches:
        problems.append(f"{len(story.mismatches)} values differ from the oracle's")
    if story.report is None or story.report.verdict is not Verdict.EQUAL:
        problems.append(f"the reconciler says {story.report.verdict if story.report else 'nothing'}")
    if len(story.faults_found) != 2:
        problems.append("the reconciler did not name both faults")
    if story.kills < kills or not story.replayed:
        problems.append(f"{story.kills} kills and {story.replayed} replayed events prove nothing; run it again")
    if counters["received"] != story.traffic.get("sent"):
        problems.append(f"{story.traffic.get('sent')} events sent, {counters['received']} received")
    if counters["received"] != sum(
        counters[name] for name in ("counted", "duplicate", "unmetered", "late", "rejected", "deferred")
    ):
        problems.append("the counters do not add up")
    return problems + _billing_problems(story) + _access_problems(story)


def _billing_problems(story: Story) -> list[str]:
    problems = []
    if story.invoice_mismatches:
        problems.append(f"{len(story.invoice_mismatches)} invoices differ from the oracle's")
    if story.invoices != INVOICES:
        problems.append(f"{story.invoices} invoices of the ended month instead of {INVOICES}")
    if story.resync_differences != 0 or not story.mirror_rows:
        problems.append(f"after the resync, {story.resync_differences} rows differ from the {story.mirror_rows} before")
    if story.rebound != 0:
        problems.append(f"{story.rebound} accounts were bound anew, although nothing had changed at Stripe")
    if not (story.webhooks_dropped and story.webhooks_doubled and story.webhooks_recovered and story.mirror_kills):
        problems.append("no webhook was dropped, doubled and recovered, or the mirror was not killed; run it again")
    return problems


def _access_problems(story: Story) -> list[str]:
    denied, allowed = story.check_denied, story.check_allowed
    if denied is None or allowed is None or denied.unlocked_by not in allowed.by or not denied.unlocked_by:
        return ["no check was denied, named the plan that would allow it, and was allowed by that plan afterwards"]
    return []
