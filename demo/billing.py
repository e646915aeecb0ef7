"""What the demo does about billing: accounts are bound through webhooks, invoices are compared with the oracle's count,
and the SQL database is lost and built again from Stripe."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from aggregators.partitioning import partition_of
from demo import plan
from demo.story import Story
from demo.stripe import DOUBLED, DROPPED, Invoice, StripeAccount
from demo.verify import Mismatch, TotalName
from pipeline.commands.billing import Opened, lag_events, link, opened, recover, run_resync
from pipeline.local.dev import Dev
from pipeline.open import open_live_view
from pipeline.webhooks.linking import Wish
from schemas.billing_events import Via
from schemas.clock import HOUR_MS, SECOND_MS
from schemas.errors import OperatorNeeded
from schemas.side_tables import Row

PATIENCE_S: Final = 600.0
POLL_S: Final = 0.5
ACTOR: Final = "demo"
# Of these events the demo counts how many were found by no webhook.
COUNTED_TYPES: Final = ("customer.subscription.created", "invoice.paid")
MIRROR: Final = "mirror"
POSTGRES: Final = "postgres"
SQL_ROLES: Final = (MIRROR, "sink")
_Mirror = Mapping[str, Sequence[Row]]


class BillingWalk:
    """The demo's walk through billing, in a running deployment."""

    def __init__(self, dev: Dev, story: Story, step: Callable[[str], None]) -> None:
        self._dev = dev
        self._story = story
        self._step = step
        self._stripe = StripeAccount(dev.stripe_url)
        self._settings = dev.settings()
        self._customers: dict[str, str] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self._stripe.close()

    async def sign_up(self) -> None:
        """Have all customers sign up at Stripe while webhooks get lost; return when their accounts are bound."""
        self._step(f"{len(plan.ACCOUNTS)} customers sign up at Stripe; webhooks are dropped, doubled and permuted")
        await self._stripe.begin_faults()
        prices = await self._stripe.prices()
        made = await asyncio.gather(*(self._stripe.customer(account) for account in plan.ACCOUNTS))
        self._customers = {account: customer for account, (customer, _) in zip(plan.ACCOUNTS, made, strict=True)}
        await self._link()
        paying = [
            (account, *both)
            for account, both in zip(plan.ACCOUNTS, made, strict=True)
            if account not in plan.FREE_ACCOUNTS
        ]
        half = len(paying) // 2
        for some in (paying[:half], paying[half:]):
            self._kill_mirror()
            await asyncio.gather(*(self._stripe.subscribe(*each, prices) for each in some))
        # The mirror walks by itself every five minutes, and now.
        await recover(self._settings, HOUR_MS // SECOND_MS)
        async with opened(self._settings) as tools:

            async def is_bound() -> bool:
                if not await _are_sent(tools):
                    return False
                mirror = await tools.tables.mirror()
                return sum(row["status"] == "active" for row in mirror["subscriptions"]) == plan.INVOICES

            await self.until(is_bound, "the bindings that follow from the subscriptions")
            if tools.base.clock.now_ms() > plan.BOUND_BY_MS:
                raise OperatorNeeded(
                    "the sign-ups took eight minutes, which is too long: run the demo on a quiet machine"
                )

    async def bill(self, totals: Mapping[TotalName, int]) -> None:
        """Compare the invoices with the oracle's totals. The clock must be beyond the end of their grace."""
        self._step("A month has ended: comparing every invoice with the oracle's count of the producers' files")
        self._kill_mirror()

        async def are_final() -> bool:
            return not await self._stripe.has_drafts()

        await self.until(are_final, "the invoices to be final")
        invoices = await self._stripe.invoices()
        self._story.invoices = sum(invoice.reason == "subscription_cycle" for invoice in invoices)
        self._story.invoice_mismatches = compared(self._customers, invoices, totals)

    async def lose_database(self) -> None:
        """Delete the SQL database; have it built again from Stripe, and compare the mirrors."""
        async with opened(self._settings) as tools:
            # What was dropped since the first period ended; the next walk of the mirror comes later.
            await recover(self._settings, (tools.base.clock.now_ms() - plan.ANCHOR_MS + HOUR_MS) // SECOND_MS)
            await self._rest(tools)
            before = await tools.tables.mirror()
            listed = [await self._stripe.event_ids(event_type) for event_type in COUNTED_TYPES]
            seen = await tools.tables.seen([identifier for ids in listed for identifier in ids])
            self._story.webhooks_recovered = sum(via is Via.LIST for via in seen.values())
        revisions = await self._revisions()
        self._step("Deleting the SQL database, and filling a new one from Stripe: tidemark billing resync")
        await self._delete_database()
        async with opened(self._settings) as tools:
            await run_resync(self._settings, "demo")
            await self._rest(tools)
            after = await tools.tables.mirror()
        self._story.mirror_rows = sum(len(rows) for rows in before.values())
        self._story.resync_differences = differences(before, after)
        self._step("Linking the accounts again: no resync brings links back, only a backup or your own list of them")
        await self._link()
        async with opened(self._settings) as tools:
            await self.until(lambda: _are_sent(tools), "the bindings")
        self._story.rebound = sum(revision != revisions[name] for name, revision in (await self._revisions()).items())
        happened = await self._stripe.happened()
        self._story.webhooks_dropped, self._story.webhooks_doubled = happened.get(DROPPED, 0), happened.get(DOUBLED, 0)

    def _kill_mirror(self) -> None:
        self._story.mirror_kills += self._dev.supervisor.children[MIRROR].process.kill()

    async def _link(self) -> None:
        """Link all accounts: the paying ones from the instant that was agreed on."""
        wishes = [
            Wish(account, customer, None if account in plan.FREE_ACCOUNTS else plan.PAID_FROM_MS, ACTOR, "")
            for account, customer in self._customers.items()
        ]
        await link(self._settings, wishes)

    async def _rest(self, tools: Opened) -> None:
        """Return when the mirror has processed every event in the log."""

        async def is_done() -> bool:
            return await lag_events(tools.base, tools.tables) == 0

        await self.until(is_done, "the events in the SQL database")

    async def _revisions(self) -> dict[str, int]:
        """The revision of each account's last binding, by account."""
        view, revisions = open_live_view(self._settings), dict[str, int]()
        try:
            for partition in range(self._settings.partitions):
                names = [name for name in plan.ACCOUNTS if partition_of(name, self._settings.partitions) == partition]
                _, states = await view.accounts.accounts(partition, names)
                revisions |= {name: state.revision for name, state in states.items()}
        finally:
            await view.close()
        return revisions

    async def _delete_database(self) -> None:
        supervisor = self._dev.supervisor
        server = supervisor.children[POSTGRES].process
        await asyncio.gather(*(supervisor.children[role].stop() for role in SQL_ROLES))
        await supervisor.children[POSTGRES].stop()
        shutil.rmtree(self._dev.data_dir / POSTGRES)
        await supervisor.start_service(POSTGRES, server)
        for role in SQL_ROLES:
            supervisor.start(role, ("pipeline.cli", role), self._dev.environment)

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str, look_s: float = POLL_S) -> None:
        """Return when a condition holds; raises `OperatorNeeded` after `PATIENCE_S`, or if a process fails for good."""
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while not await condition():
            if self._dev.supervisor.failure.done():
                self._dev.supervisor.failure.result()
            if asyncio.get_running_loop().time() > deadline_s:
                raise OperatorNeeded(f"waited {PATIENCE_S:.0f} s for {what}; see {self._dev.data_dir}/logs")
            await asyncio.sleep(look_s)


def compared(
    customers: Mapping[str, str], invoices: Sequence[Invoice], totals: Mapping[TotalName, int]
) -> list[Mismatch]:
    """The accounts whose paid invoices do not add up to one month's base price and the units of the ended period.

    `customers` are Stripe's ids by account, `totals` the oracle's. A free account has no invoice.
    """
    paid: dict[str, int] = {}
    for invoice in invoices:
        if invoice.status == "paid":
            paid[invoice.customer] = paid.get(invoice.customer, 0) + invoice.total
    found = []
    for account, customer in customers.items():
        expected = None
        if account not in plan.FREE_ACCOUNTS:
            units = totals.get((account, plan.METER, plan.PAID_FROM_MS), 0)
            expected = plan.BASE_CENTS + plan.UNIT_CENTS * units
        if paid.get(customer) != expected:
            found.append(Mismatch(f"the invoice of {account}, in cents", expected, paid.get(customer)))
    return found


async def _are_sent(tools: Opened) -> bool:
    return not await tools.tables.due_bindings(1)


def differences(before: _Mirror, after: _Mirror) -> int:
    """How many rows only one of two mirrors has."""

    def rows(mirror: _Mirror) -> set[tuple[Any, ...]]:
        return {(table, *sorted(row.items())) for table, listed in mirror.items() for row in listed}

    return len(rows(before) ^ rows(after))
