"""The stores of which the operator's page asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from schemas.account_records import AccountRecords
from schemas.acknowledgements import Acknowledgements
from schemas.bills import Bills
from schemas.catalog_changes import CatalogStore
from schemas.dunning import DunningStore
from schemas.duplicates import DuplicateStore
from schemas.entitlements import Entitlements
from schemas.flat_to_metered import Migrations
from schemas.intent_ledger import IntentLedger
from schemas.invoices import UnfinalizedInvoices
from schemas.notices import NoticeOutbox
from schemas.plan_changes import PlanChanges
from schemas.reconciliation import ReconciliationRecords
from schemas.redrives import Redrives
from schemas.seats import Seats
from schemas.side_tables import Cursor, Due, HeldCustomer, HeldEvent
from schemas.trials import TrialStore


class SideReads(Protocol):
    """What the page reads of the side tables; `schemas.side_tables.SideTables` has the meanings."""

    async def position(self, partition: int) -> int | None:
        """The next offset of `billing.events` to read."""
        ...

    async def cursor(self, name: str) -> Cursor | None:
        """A walker's cursor."""
        ...

    async def heard_ms(self, customer: str, since_ms: int) -> int | None:
        """When the canary was last heard."""
        ...

    async def held(self, customer: str = "", limit: int = 1_000) -> Sequence[HeldEvent]:
        """Held events."""
        ...

    async def held_customers(self, limit: int = 1_000) -> Sequence[HeldCustomer]:
        """The customers of held events."""
        ...

    async def set_aside(self, limit: int = 1_000) -> Sequence[HeldEvent]:
        """Events that are set aside."""
        ...

    async def due(self) -> Due:
        """How many bindings there are to send."""
        ...


class OperatorTables(NamedTuple):
    """The stores of one database."""

    side: SideReads
    account_records: AccountRecords
    acknowledgements: Acknowledgements
    bills: Bills
    catalog: CatalogStore
    dunning: DunningStore
    duplicates: DuplicateStore
    entitlements: Entitlements
    intents: IntentLedger
    migrations: Migrations
    notices: NoticeOutbox
    plan_changes: PlanChanges
    redrives: Redrives
    seats: Seats
    trials: TrialStore
    unfinalized: UnfinalizedInvoices


class OperatorStores(NamedTuple):
    """`tables` may raise `Transient` and `OperatorNeeded`. `walker`: the name of the cursor of who reads Stripe's list.
    `redrive` sends a report again: identifier, who and why; it returns what was done."""

    tables: Callable[[], Awaitable[OperatorTables]]
    reconciliations: ReconciliationRecords
    walker: str
    redrive: Callable[[str, str, str], Awaitable[str]]
