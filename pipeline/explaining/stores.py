"""The stores of which explain asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from schemas.account_records import AccountRecords
from schemas.analytics import UsageReader
from schemas.bills import Bills
from schemas.catalog_changes import CatalogStore
from schemas.clock import Clock
from schemas.corrections import CorrectionArchive
from schemas.intent_ledger import IntentLedger
from schemas.meters import MeterSet
from schemas.side_tables import Link
from schemas.usage_evidence import UsageEvidence


class Tables(Protocol):
    """The side tables, as far as explain reads them."""

    @property
    def account_records(self) -> AccountRecords:
        """What there is of one account."""
        ...

    @property
    def bills(self) -> Bills:
        """What invoices bill."""
        ...

    @property
    def intents(self) -> IntentLedger:
        """What was reported."""
        ...

    @property
    def catalog(self) -> CatalogStore:
        """What is sold."""
        ...

    async def links(self, account: str) -> Sequence[Link]:
        """The links of an account, oldest first."""
        ...


class Quarantined(NamedTuple):
    """The newest entry of the quarantine that was looked for, of the `looked` newest ones; `reason` None: none is."""

    looked: int
    reason: str | None = None
    detail: str = ""
    position: str = ""
    at_ms: int = 0


class ExplainStores(NamedTuple):
    """What explain asks. Every call may raise `Transient`. `evidence` and `usage` are ClickHouse. `quarantined` looks
    for the entry whose bytes satisfy a condition, among the newest ones; None: nobody can look. Without `corrections`
    none is named."""

    clock: Clock
    tables: Tables
    evidence: UsageEvidence
    usage: UsageReader
    meter_set: Callable[[], Awaitable[MeterSet | None]]
    quarantined: Callable[[Callable[[bytes], bool]], Awaitable[Quarantined]] | None = None
    corrections: CorrectionArchive | None = None
