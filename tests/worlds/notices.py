"""A deployment that makes and sends notices, and a receiver whose answers may be lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.notices.sending import Sending
from pipeline.notices.sweep import WAITING_MAX, Sweep
from pipeline.notices.terms import Terms
from pipeline.notices.truth import Truth
from schemas.catalog import Catalog
from schemas.entitlements import Grant, Operation, SourceKind, Value
from schemas.errors import Transient
from schemas.meters import MeterSet
from schemas.notices import ChannelName, Delivery, Notice, NoticeOutbox
from schemas.periods import AccountState, Period
from schemas.rollup import TotalKey
from sinks.redis.fake import FakeLiveView
from tests.unit.catalog.files import SMALL, catalog_of
from tests.worlds.business import Business

WEBHOOK: Final = (ChannelName.WEBHOOK,)
SMALL_WITHOUT_WARNINGS: Final = SMALL.replace("meter: tokens}", "meter: tokens, warn_percent: []}", 1)


class Receiver:
    """Takes notices. `answers` are used up one by one: `lost` (taken, and the answer is lost), `refused`, `nobody`."""

    def __init__(self) -> None:
        self.taken: list[Notice] = []
        self.answers: list[str] = []

    async def send(self, notice: Notice) -> bool:
        answer = self.answers.pop(0) if self.answers else ""
        if answer == "nobody":
            return False
        if answer != "refused":
            self.taken.append(notice)
        if answer:
            raise Transient(f"the receiver's answer: {answer}")
        return True

    def bodies(self) -> Counter[str]:
        """How often each id was taken."""
        return Counter(notice.id for notice in self.taken)


class NoticeWorld(Business):
    """A business with a notifier. Usage is written into the live view as the fold would leave it."""

    def __init__(self, catalog: str = SMALL) -> None:
        super().__init__()
        self.catalog: Catalog = catalog_of(catalog)
        self.receiver = Receiver()
        assert isinstance(self.store, FakeLiveView)
        self.view = self.store
        self.outbox: NoticeOutbox = self.sql.notices

    async def begin(self) -> None:
        """Make the log, the tables and the catalog."""
        await self.open()
        await self.apply(self.catalog, {})
        await self.fold_all()
        for partition in range(self.partitions):
            state = self.view.server.at(partition)
            assert state.checkpoint is not None
            meters = MeterSet(version=2, meters=self.catalog.meters)
            state.checkpoint = _replaced(state.checkpoint, meter_set=meters)

    def notifier(
        self,
        outbox: Any = None,
        channel: Any = None,
        waiting_max: int = WAITING_MAX,
        channels: Sequence[ChannelName] = WEBHOOK,
    ) -> tuple[Sweep, Sending]:
        """A new process on the same stores."""
        terms = Terms(self.sql.catalog, self.sql.entitlements, self.clock)
        live = self.view.accounts, self.view.totals
        kept, receivers = outbox or self.outbox, dict.fromkeys(channels, channel or self.receiver)
        sweep = Sweep(terms, *live, kept, channels, self.clock, self.log_id, self.partitions, waiting_max)
        return sweep, Sending(kept, Truth(terms, *live, self.clock, self.partitions), receivers, self.clock)

    def period(self, account: str) -> Period:
        """The account's running period."""
        state = self.view.server.at(partition_of(account, self.partitions)).accounts.get(account, AccountState())
        return period_at(state, self.clock.now_ms())

    def use(self, account: str, minor: int, meter: str = "tokens", start_ms: int | None = None) -> None:
        """Set the total of a period, of the running one if not said."""
        key = TotalKey(account, self.period(account).start_ms if start_ms is None else start_ms)
        totals = self.view.server.at(partition_of(account, self.partitions)).totals
        totals.setdefault(key, {})[meter] = str(minor)

    async def allow(self, account: str, limit: Value, feature: str = "tokens") -> None:
        """Set an account's limit, as an override does."""
        now_ms = self.clock.now_ms()
        grant = Grant(
            feature, SourceKind.OVERRIDE, f"o{now_ms}", Operation.SET, limit, now_ms, cause="ann", reason="a test"
        )
        await self.sql.entitlements.override(account, grant, "ann", now_ms)
        self.clock.advance(1)
        while await self.renewal.turn():
            pass

    async def rows(self) -> Sequence[Delivery]:
        """All deliveries, oldest first."""
        return list(reversed(await self.outbox.listed(limit=1_000)))

    async def states(self) -> list[tuple[str, str, int, str]]:
        """Account, kind, percent and state of each delivery."""
        rows = [
            (row.notice.account, row.notice.kind.value, row.notice.percent, row.state.value)
            for row in await self.rows()
        ]
        return sorted(rows)


def limit(number: int) -> Value:
    """A limit."""
    return Decimal(number)


def _replaced(checkpoint: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(checkpoint, **changes)
