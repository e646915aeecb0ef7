"""Compares the features that Stripe says a customer may use with the flags that we keep, per customer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Final

from reconciler.causes import Cause, Pair
from reconciler.mirror import DELAY_MS
from reconciler.reading import Answer, LastRead, Readable, plan, read_all
from reconciler.report import Findings, Row
from reconciler.views import ReconcilePolicy, Views
from schemas.clock import Clock
from schemas.entitlement_recount import EntitlementRecount, KeptFlag, LinkedCustomer
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.invoices import StripeInvoices

AT_ONCE: Final = 200
MISSING: Final = (
    "Stripe lacks {}: attach the feature to the product of the plan's version; what is attached later holds from the "
    "next billing period on"
)
EXTRA: Final = "Stripe gives {}, and no plan of the account does: compare the features of the products with the catalog"
SOON: Final = "{}, but Stripe changed the customer a moment ago"


@dataclass(frozen=True, slots=True)
class FlagComparison:
    """Compares customers in turns, as far as the reads suffice. `past` are the last reads by customer."""

    views: Views
    policy: ReconcilePolicy
    clock: Clock
    findings: Findings
    past: Mapping[str, LastRead]

    async def run(self, reads_max: int) -> None:
        """Compare with about `reads_max` calls to Stripe at most. What was due and not read is one `unchecked` row.

        Memory grows with the number of linked customers. May raise `Transient`.
        """
        stripe, recount = self.views.invoices, self.views.recount
        if stripe is None or recount is None or not await recount.has_stripe_features():
            return
        now_ms = self.clock.now_ms()
        customers = await _linked(recount, now_ms)
        readables = [
            Readable(each.customer, each.changed_ms, each.changed_ms, self.past.get(each.customer))
            for each in customers.values()
        ]
        planned = plan(readables, now_ms)
        chosen = [each.key for each in planned.keys[:reads_max]]
        first_read = stripe.reads
        differing: list[Row] = []
        for start in range(0, len(chosen), AT_ONCE):
            names = chosen[start : start + AT_ONCE]
            answers = await read_all(names, stripe.active_features, self.clock, self.policy)
            kept = await recount.flags([customers[name].account for name in names], self.clock.now_ms())
            by_account = {account: list(rows) for account, rows in groupby(kept, attrgetter("account"))}
            for name in names:
                row = _compared(customers[name], by_account.get(customers[name].account, []), answers[name])
                if row.cause is Cause.CONFIRMED:
                    self.findings.confirm(row)
                else:
                    differing.append(row)
        await self._report(stripe, differing)
        unread = planned.due - len(chosen)
        if unread > 0:
            detail = (
                f"over the limit of reads of Stripe: {len(chosen)} of {planned.due} customers that were due were read"
            )
            self.findings.add(Row(Pair.FLAGS, Cause.UNCHECKED, detail=detail), unread)
        self.findings.stripe_reads += stripe.reads - first_read

    async def _report(self, stripe: StripeInvoices, differing: Sequence[Row]) -> None:
        """Add rows. Only if something differs, the events of the last minutes are read."""
        changed: set[str] | None = None
        for found in differing:
            row = found
            if row.cause.is_drift and changed is None:
                try:
                    changed = set(await stripe.changed_since(self.clock.now_ms() - DELAY_MS))
                except (Transient, Refused, OperatorNeeded, InvalidInput) as error:
                    changed = set()
                    self.findings.add(Row(Pair.FLAGS, Cause.UNCHECKED, detail=str(error)))
            if row.cause.is_drift and changed and row.stripe_customer in changed:
                row = row._replace(cause=Cause.IN_FLIGHT, detail=SOON.format(row.detail.partition(":")[0]))
            self.findings.add(row)


async def _linked(recount: EntitlementRecount, now_ms: int) -> dict[str, LinkedCustomer]:
    found: dict[str, LinkedCustomer] = {}
    after = ""
    while page := await recount.linked(now_ms, after, AT_ONCE):
        found |= {each.customer: each for each in page}
        after = page[-1].account
    return found


def _compared(linked: LinkedCustomer, kept: Sequence[KeptFlag], answer: Answer[frozenset[str]]) -> Row:
    row = Row(Pair.FLAGS, Cause.CONFIRMED, account=linked.account, stripe_customer=linked.customer)
    if answer.value is None:
        return row._replace(cause=Cause.UNCHECKED, detail=answer.unread)
    found = answer.value & {flag.key for flag in kept}
    wanted = {flag.key for flag in kept if flag.is_bought}
    # What people granted or denied, a default plan and the extras of a trial are nothing that Stripe knows. A paused
    # subscription keeps its features at Stripe.
    allowed = {flag.key for flag in kept if flag.is_on or flag.is_decided or linked.is_paused}
    missing, extra = sorted(wanted - found), sorted(found - wanted - allowed)
    row = row._replace(expected=", ".join(sorted(wanted)), found=", ".join(sorted(found)))
    if missing and extra:
        both = f"Stripe lacks {', '.join(missing)} and gives {', '.join(extra)}"
        return row._replace(cause=Cause.DIFFERING, detail=f"{both}: compare the features of the products")
    if missing:
        return row._replace(cause=Cause.MISSING, detail=MISSING.format(", ".join(missing)))
    return row._replace(cause=Cause.EXTRA, detail=EXTRA.format(", ".join(extra))) if extra else row
