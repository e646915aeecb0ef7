"""Does at Stripe what a dunning case needs: a new card pays, what was given up is cleared away, a pause ends.

Each is an operation of `pipeline.changes.operating`: noted in SQL before Stripe is called, once by its name, one at a
time for an account, and gone on with wherever a process ended.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Final

from aggregators.dunning import Wish, wish_of
from pipeline.changes.operating import carry_on
from pipeline.changes.parts import Parts, shop_of
from pipeline.changes.quoting import QUOTE_PREFIX
from schemas.catalog import Dunning
from schemas.dunning import Collecting, DunningOutcome, DunningStore
from schemas.errors import TidemarkError
from schemas.plan_changes import Calls, Quote, SubscriptionView, When
from schemas.upgrades import Money

ACTOR: Final = "dunning"
AT_ONCE: Final = 500

_log: Final = logging.getLogger(__name__)


async def collect(parts: Parts, dunning: DunningStore) -> int:
    """Look at all cases about which Stripe may be to be called. Returns how many operations were begun. A failure of
    one case keeps no other. Raises `Transient` if SQL does not answer; repeatable."""
    found, begun = await dunning.collecting("", AT_ONCE), 0
    policy = (await shop_of(parts.catalog)).commerce.catalog.dunning if found else Dunning()
    while found:
        for each in found:
            try:
                begun += await _collected(parts, dunning, each, policy)
            except TidemarkError as error:
                _log.warning("case %s waits: %s", each.case.id, error)
            # Such as a row that an older program cannot read. There are other cases to go on with.
            except Exception:  # noqa: BLE001
                _log.exception("case %s cannot be collected; it is tried again later", each.case.id)
        found = await dunning.collecting(found[-1].case.id, AT_ONCE) if len(found) == AT_ONCE else ()
    return begun


async def _collected(parts: Parts, dunning: DunningStore, found: Collecting, policy: Dunning) -> bool:
    """Begin what a case needs, if nothing else of the account is being carried out, and go on as far as Stripe
    answers."""
    now_ms = parts.clock.now_ms()
    wish = wish_of(found, policy, now_ms)
    if wish is None:
        return False
    quote = _quote(found, wish, now_ms)
    operation = await parts.changes.operation(quote.id)
    if operation is None:
        if found.customer not in [
            link.customer
            for link in await parts.links(found.case.account)
            if link.starts_ms <= now_ms and (link.ends_ms is None or now_ms < link.ends_ms)
        ]:
            return False
        if found.case.outcome is DunningOutcome.CHURNED and not await _is_owed(parts, found.invoices):
            # The mirror has not seen the payment yet.
            return False
        await parts.changes.add_quote(quote)
        operation = await parts.changes.intend(quote, ACTOR, now_ms)
        if operation.quote != quote.id:
            return False
        await carry_on(parts, operation)
    if wish.card:
        await dunning.tried(found.case.id, wish.card)
    return True


async def _is_owed(parts: Parts, invoices: Sequence[str]) -> bool:
    """Whether all invoices that the mirror calls open are open at Stripe."""
    return all([(await parts.stripe.invoice(each)).status == "open" for each in invoices])


def _quote(found: Collecting, wish: Wish, now_ms: int) -> Quote:
    """The change as one that costs nothing by itself, which nobody need accept."""
    case = found.case
    about = f"{case.id} {wish.name}"
    identifier = QUOTE_PREFIX + hashlib.sha256(about.encode()).hexdigest()[:24]
    base = SubscriptionView(found.customer, id=case.subscription, status=found.status, currency=case.currency)
    return Quote(
        id=identifier, account=case.account, request=about, base=base, decided=Calls(0, When.NOW, wish.calls),
        lines=(), total=Money(0, case.currency, case.exponent), due_minor=0, tax_minor=0, drift_minor=0,
        subtotal_minor=0, ours_minor=None, next_minor=None, next_ms=None, words=wish.words, made_ms=now_ms,
        expires_ms=now_ms, made_by=ACTOR,
    )  # fmt: skip
