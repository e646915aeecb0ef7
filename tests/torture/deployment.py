"""The deployment that is tortured: its settings, its roles, and conditions that survive services being away."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from aggregators.partitioning import partition_of
from demo.worker import ReplayCounter
from pipeline.clock import SystemClock
from pipeline.commands.operations import create_at_stripe
from pipeline.http.api_keys import Role as KeyRole
from pipeline.http.api_keys import create_key
from pipeline.local.processes import LocalProcess, free_port, python
from pipeline.logs.control_records import append_control
from pipeline.logs.rejected import quarantine_entry
from pipeline.open import open_side_tables
from schemas.control import BindingRecord
from schemas.errors import Transient
from schemas.log import EVENTS_TOPIC, REJECTED_TOPIC
from schemas.meters import MeterSet
from schemas.periods import Billing, Binding
from schemas.side_tables import SideTables
from tests.integration.deployment import Deployment, Role, clean_environment
from tests.torture.plan import MIRRORS, WORKERS
from tests.torture.stripe import KEY, LocalStripe
from tests.traffic.generate import METER_SET, account_name

ACCOUNTS: Final = 40
FREE: Final = frozenset({account_name(5), account_name(19)})
PARTITIONS: Final = 4
REPORT_INTERVAL_MS: Final = 60_000
REBUILD_S: Final = 240.0
ROLES: Final = ("archive", "router", "gateway", "sink")


def customer_of(account: str) -> str:
    """The Stripe customer of an account."""
    return "cus_" + account.encode().hex()


class Tortured(Deployment):
    """All roles on a real broker, with Stripe and PostgreSQL; reports go out every minute."""

    meter_set: ClassVar[Mapping[str, Any]] = {
        **METER_SET,
        "meters": [{**meter, "stripe_event_name": meter["slug"]} for meter in METER_SET["meters"]],
        "policy": {**METER_SET["policy"], "report_interval_ms": REPORT_INTERVAL_MS},
    }
    # A machine that others use as well is slow, not stuck; the run as a whole has its deadline.
    patience_s: ClassVar[float] = 420.0

    def __init__(
        self, folder: Path, log_url: str, redis_url: str, clickhouse_url: str, sql_url: str, stripe: LocalStripe
    ) -> None:
        self.stripe = stripe
        self.sql_url = sql_url
        self.tables: SideTables
        self.gateway_port = free_port()
        self._commands = 0
        folder.mkdir(parents=True, exist_ok=True)
        keys = folder / "keys"
        self._webhook_secrets = folder / "webhook_secrets"
        self.api_key, _ = create_key(keys, KeyRole.ADMIN, SystemClock())
        super().__init__(
            folder, redis_url, clickhouse_url, log_url,
            TIDEMARK_PARTITIONS=str(PARTITIONS), TIDEMARK_SESSION_TIMEOUT_S="6", TIDEMARK_TICK_INTERVAL_S="1",
            TIDEMARK_STRIPE_API_KEY=KEY, TIDEMARK_STRIPE_API_BASE=stripe.url, TIDEMARK_STRIPE_RATE_PER_S="200",
            TIDEMARK_STRIPE_ACCOUNT="acct_simulator",
            TIDEMARK_API_KEYS=str(keys), TIDEMARK_GATEWAY_PORT=str(self.gateway_port),
            TIDEMARK_SQL_URL=sql_url, TIDEMARK_STRIPE_WEBHOOK_SECRETS=str(self._webhook_secrets),
        )  # fmt: skip

    @property
    def gateway_url(self) -> str:
        """Where the gateway listens, while there is one."""
        return f"http://127.0.0.1:{self.gateway_port}"

    async def begin(self) -> None:
        """Make the side tables, customers and a webhook endpoint at Stripe, bind the accounts, start all roles."""
        self.tables = await open_side_tables(self.base)
        self._webhook_secrets.write_text(self.stripe.make_endpoint(f"{self.gateway_url}/v1/stripe/webhook") + "\n")
        for number in range(ACCOUNTS):
            account = account_name(number)
            if account in FREE:
                binding = Binding(effective_from_ms=0, billing=Billing.FREE)
            else:
                self.stripe.make_customer(customer_of(account))
                binding = Binding(
                    effective_from_ms=0, billing=Billing.MAPPED, stripe_customer=customer_of(account)
                )  # fmt: skip
            record = BindingRecord(account=account, revision=1, binding=binding)
            partition = partition_of(account, PARTITIONS)
            await append_control(self.base.log, self.settings.secret_bytes(), partition, record)
        await create_at_stripe(self.settings, MeterSet.model_validate(self.meter_set))
        for name in WORKERS:
            # A data folder of its own, so that its counter tells what this one was handed.
            self.start("worker", name=name, TIDEMARK_DATA_DIR=str(self.folder / name))
        for name in MIRRORS:
            self.start("mirror", name=name)
        for name in ROLES:
            self.start(name)

    @property
    def workers(self) -> list[Role]:
        """The worker roles, running or not."""
        return [self.roles[name] for name in WORKERS]

    @property
    def mirrors(self) -> list[Role]:
        """The mirror roles, running or not."""
        return [self.roles[name] for name in MIRRORS]

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float | None = None) -> None:
        """As the base's; a service that does not answer means: not yet."""

        async def survived() -> bool:
            with contextlib.suppress(Transient):
                return await condition()
            return False

        await super().until(survived, what, timeout_s)

    async def folded_or_none(self) -> dict[int, int] | None:
        """`folded`, or None where Redis does not answer."""
        with contextlib.suppress(Transient):
            return await self.folded()
        return None

    def handed_again(self) -> int:
        """Events that a worker was handed a second time, over all workers."""
        counters = [ReplayCounter(self.folder / name) for name in WORKERS]
        return sum(counter.replayed(partition) for counter in counters for partition in self.partitions)

    async def quarantined(self) -> dict[tuple[int, int, int], str]:
        """The base's, without what the gateway refused, which never stood in `usage.events`."""
        found: dict[tuple[int, int, int], str] = {}
        for partition in self.partitions:
            for record in await self.records(REJECTED_TOPIC, partition):
                entry = quarantine_entry(record)
                place = (entry.partition, entry.offset, entry.place)
                if entry.topic == EVENTS_TOPIC:
                    assert found.setdefault(place, entry.reason) == entry.reason
        return found

    async def refused_by_the_gateway(self) -> list[tuple[bytes, str]]:
        """(bytes, reason) of what the gateway refused and kept."""
        entries = [
            quarantine_entry(record)
            for partition in self.partitions
            for record in await self.records(REJECTED_TOPIC, partition)
        ]
        return [(entry.value, entry.reason) for entry in entries if entry.topic == "gateway"]

    def command(self, *arguments: str, **variables: str) -> LocalProcess:
        """Start `tidemark ARGUMENTS` beside the roles."""
        self._commands += 1
        process = LocalProcess(
            f"tidemark {arguments[0]}", python("pipeline.cli", *arguments),
            self.folder / f"{arguments[0]}-{self._commands}.log",
            environment=clean_environment(**{**self.environment, **variables}), cwd=self.folder,
        )  # fmt: skip
        process.start()
        return process
