"""Runs a whole deployment on one machine, for `tidemark dev` and the demo.

Starts Valkey, PostgreSQL, the ClickHouse engine, the Stripe simulator, optionally a Kafka broker, and the roles. Writes
`dev.json` into the data directory; commands in other terminals read the addresses from this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from pipeline.clock import SystemClock
from pipeline.commands.operations import create_at_stripe
from pipeline.http.api_keys import Role, create_key
from pipeline.local import DEV_FILE
from pipeline.local.example import Example
from pipeline.local.kafka import LocalKafka
from pipeline.local.postgres import LocalPostgres
from pipeline.local.processes import free_port
from pipeline.local.supervisor import Supervisor
from pipeline.local.valkey import LocalValkey
from pipeline.open import apply_meter_set, following, meter_set_in_force, open_base, open_live_view
from pipeline.settings import Settings, load_settings
from schemas.billing_events import MIRRORED_TYPES
from schemas.errors import InvalidInput
from schemas.live_view import CheckpointedState

SIMULATOR_KEY: Final = "sk_test_simulator"
SIMULATOR_ACCOUNT: Final = "acct_simulator"
API_KEYS_FILE: Final = "api_keys.jsonl"
LOCK_FILE: Final = "lock"
NOTICES_FILE: Final = "notices.jsonl"
WEBHOOK_SECRETS_FILE: Final = "webhook_secrets"
PAGE_SECRETS_FILE: Final = "page_secrets"
# There from the first start until the example business is made.
EXAMPLE_DUE_FILE: Final = "example_due"
WEBHOOK_PATH: Final = "/v1/stripe/webhook"
ROLES: Final = ("worker", "archive", "router", "sink", "gateway", "mirror", "notifier")


@dataclass
class DevOptions:
    """Options of a deployment on one machine. A port of 0 takes a free port."""

    data_dir: Path
    kafka: bool = False
    gateway_port: int = 8080
    clickhouse_port: int = 8123
    clock: str = "system"
    meter_set: Path | None = None
    workers: int = 1
    roles: tuple[str, ...] = ROLES
    # Modules with arguments that replace `tidemark ROLE`, by role.
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    simulator_arguments: tuple[str, ...] = ()
    # Whether the first start also makes the example business.
    example: bool = False


class Dev:
    """A deployment on one machine. `environment` has the variables of its roles after `start`."""

    def __init__(self, options: DevOptions, progress: Callable[[str], None]) -> None:
        self.options = options
        self.progress = progress
        self.data_dir = options.data_dir.resolve()
        self.environment: dict[str, str] = {}
        self.supervisor = Supervisor(self.data_dir / "logs", progress)
        self.api_key = ""
        self.clickhouse_read_only_url = ""
        self.stripe_url = ""

    @property
    def gateway_url(self) -> str:
        """The URL of the gateway."""
        return f"http://127.0.0.1:{self.environment['TIDEMARK_GATEWAY_PORT']}"

    def settings(self, **overrides: Any) -> Settings:
        """The settings of the roles, with overrides."""
        named = {name.removeprefix("TIDEMARK_").lower(): value for name, value in self.environment.items()}
        return load_settings(**{**named, **overrides})

    async def start(self) -> None:
        """Start everything; return when gateway and workers are ready. Raises `OperatorNeeded` or `Transient`."""
        private_folder(self.data_dir)
        await self._start_services(self._identity())
        self.environment.update(self.options.environment)
        await self._start_roles()
        self._write_dev_file()

    def _identity(self) -> dict[str, str]:
        """The secret and the API key of the deployment; the first start makes both."""
        path = self.data_dir / "identity.json"
        if not path.exists():
            if self.options.example:
                (self.data_dir / EXAMPLE_DUE_FILE).touch()
            api_key, _ = create_key(self.data_dir / API_KEYS_FILE, Role.ADMIN, SystemClock())
            write_private(path, {"secret": secrets.token_hex(32), "api_key": api_key})
        identity: dict[str, str] = json.loads(path.read_text())
        return identity

    async def _start_services(self, identity: dict[str, str]) -> None:
        self.progress("Starting Valkey (append-only file on)")
        valkey = LocalValkey(self.data_dir / "valkey")
        await self.supervisor.start_service("valkey", valkey)
        log_url = f"embedded://{self.data_dir / 'log.db'}"
        if self.options.kafka:
            kafka = LocalKafka(self.data_dir / "kafka", progress=self.progress)
            await self.supervisor.start_service("kafka", kafka)
            log_url = kafka.url
        self.progress("Starting PostgreSQL, the ClickHouse engine and the Stripe simulator (1 s)")
        postgres = LocalPostgres(self.data_dir / "postgres")
        _, clickhouse, _ = await asyncio.gather(
            self.supervisor.start_service("postgres", postgres), self._start_clickhouse(), self._start_simulator()
        )
        self.api_key = identity["api_key"]
        gateway_port = str(self.options.gateway_port or free_port())
        self.environment = {
            "TIDEMARK_DATA_DIR": str(self.data_dir),
            "TIDEMARK_LOG_URL": log_url,
            "TIDEMARK_REDIS_URL": valkey.url,
            "TIDEMARK_CLICKHOUSE_URL": clickhouse,
            "TIDEMARK_SQL_URL": postgres.url,
            "TIDEMARK_SECRET": identity["secret"],
            "TIDEMARK_CLOCK": self.options.clock,
            "TIDEMARK_STRIPE_API_KEY": SIMULATOR_KEY,
            "TIDEMARK_STRIPE_API_BASE": self.stripe_url,
            "TIDEMARK_STRIPE_ACCOUNT": SIMULATOR_ACCOUNT,
            "TIDEMARK_API_KEYS": str(self.data_dir / API_KEYS_FILE),
            "TIDEMARK_GATEWAY_PORT": gateway_port,
            # A developer sees a notice at once.
            "TIDEMARK_NOTICES_SWEEP_S": os.environ.get("TIDEMARK_NOTICES_SWEEP_S", "3"),
            "TIDEMARK_MAIL_URL": os.environ.get("TIDEMARK_MAIL_URL", f"file://{self.data_dir / NOTICES_FILE}"),
            "TIDEMARK_PAGE_URL": f"http://127.0.0.1:{gateway_port}",
            "TIDEMARK_PAGE_SECRETS": str(self._page_secrets()),
            **await self._webhooks(gateway_port),
        }
        if self.options.meter_set is not None:
            self.environment["TIDEMARK_METERS"] = str(self.options.meter_set)

    def _page_secrets(self) -> Path:
        """The file with the secret that signs links to customers' pages; the first start makes the secret."""
        path = self.data_dir / PAGE_SECRETS_FILE
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(f"{secrets.token_hex(32)}\n")
        return path

    async def _start_clickhouse(self) -> str:
        port, read_only = free_port(), self.options.clickhouse_port or free_port()
        arguments = ["pipeline.local.clickhouse_server", "--path", str(self.data_dir / "clickhouse")]
        self.supervisor.start(
            "clickhouse",
            [*arguments, "--port", str(port), "--read-only-port", str(read_only)],
            {"TZ": "UTC"},
            service=True,
        )
        await self.supervisor.wait_ready("clickhouse", lambda: _answers(f"http://127.0.0.1:{port}/ping"))
        self.clickhouse_read_only_url = f"http://127.0.0.1:{read_only}"
        return f"http://127.0.0.1:{port}"

    async def _start_simulator(self) -> None:
        port = free_port()
        self.supervisor.start(
            "stripe",
            [
                "stripe_simulator",
                "--port", str(port), "--state", str(self.data_dir / "stripe.db"), "--clock", self.options.clock,
                "--account", SIMULATOR_ACCOUNT, *self.options.simulator_arguments,
            ],
            {},
            service=True,
        )  # fmt: skip
        self.stripe_url = f"http://127.0.0.1:{port}"
        await self.supervisor.wait_ready("stripe", lambda: _answers(f"{self.stripe_url}/_simulator/state"))

    async def _webhooks(self, gateway_port: str) -> dict[str, str]:
        """Have the simulator deliver to the gateway; the variables of the endpoint's secret and of the canary. The
        first start makes endpoint and canary, a later start corrects the endpoint's port."""
        path, state = self.data_dir / WEBHOOK_SECRETS_FILE, self.data_dir / "webhooks.json"
        url = f"http://127.0.0.1:{gateway_port}{WEBHOOK_PATH}"
        async with httpx.AsyncClient(
            base_url=self.stripe_url, headers={"Authorization": f"Bearer {SIMULATOR_KEY}"}
        ) as api:

            async def post(where: str, **fields: str | Sequence[str]) -> dict[str, Any]:
                answer = await api.post(where, data=fields)
                answer.raise_for_status()
                document: dict[str, Any] = answer.json()
                return document

            if state.exists():
                known: dict[str, str] = json.loads(state.read_text())
                await post(f"/v1/webhook_endpoints/{known['endpoint']}", url=url)
            else:
                canary = await post("/v1/customers", name="Tidemark's canary: shows that webhooks arrive")
                endpoint = await post("/v1/webhook_endpoints", url=url, **{"enabled_events[]": MIRRORED_TYPES})
                path.touch(mode=0o600)
                path.write_text(f"{endpoint['secret']}\n")
                known = {"endpoint": endpoint["id"], "canary": canary["id"]}
                write_private(state, known)
        return {"TIDEMARK_STRIPE_WEBHOOK_SECRETS": str(path), "TIDEMARK_CANARY_CUSTOMER": known["canary"]}

    async def _start_roles(self) -> None:
        self.progress("Preparing the log: topics, genesis records, meter set")
        settings = self.settings()
        base = await open_base(settings)
        try:
            meter_set = following(await meter_set_in_force(settings), self.options.meter_set)
            await apply_meter_set(base, meter_set)
        finally:
            await base.log.close()
        if self.environment["TIDEMARK_STRIPE_API_KEY"] == SIMULATOR_KEY:
            await create_at_stripe(settings, meter_set)
        for role in self.options.roles:
            command = self.options.modules.get(role, ("pipeline.cli", role))
            count = self.options.workers if role == "worker" else 1
            for number in range(count):
                name = role if count == 1 else f"{role}-{number + 1}"
                self.progress(f"Starting {name}")
                self.supervisor.start(name, command, self.environment)
        if "gateway" in self.options.roles:
            await self.supervisor.wait_ready("gateway", lambda: _answers(f"{self.gateway_url}/readyz"))
        view = open_live_view(settings)
        try:
            await self.supervisor.wait_ready("worker", lambda: _counting(view.state, settings.partitions))
        finally:
            await view.close()

    def _write_dev_file(self) -> None:
        document = {
            "environment": self.environment,
            "api_key": self.api_key,
            "gateway_url": self.gateway_url,
            "clickhouse_read_only_url": self.clickhouse_read_only_url,
            "stripe_url": self.stripe_url,
        }
        write_private(self.data_dir / DEV_FILE, document)

    async def make_example(self) -> None:
        """Make the example business if it is still due. Never raises: a deployment runs without it too."""
        due = self.data_dir / EXAMPLE_DUE_FILE
        if not due.exists():
            return
        try:
            await Example(self.settings(), self.gateway_url, self.api_key, self.progress).make()
            due.unlink()
        except Exception as error:  # noqa: BLE001  # whatever happens, the developer's own work goes on
            self.progress(f"The example business is not complete; the next start goes on with it: {error!r}")

    def kill_worker(self) -> bool:
        """Send SIGKILL to the first worker process; False if the process does not run."""
        workers = [child for name, child in self.supervisor.children.items() if name.startswith("worker")]
        return any(child.process.kill() for child in workers[:1])

    async def stop(self) -> None:
        """Stop everything and keep the data. Safe to call twice."""
        (self.data_dir / DEV_FILE).unlink(missing_ok=True)
        await self.supervisor.stop()


async def _counting(state: CheckpointedState, partitions: int) -> bool:
    """Whether every partition has folded its meter set. Only then is the first event metered."""
    checkpoints = [await state.load_checkpoint(partition) for partition in range(partitions)]
    return all(checkpoint is not None and checkpoint.meter_set is not None for checkpoint in checkpoints)


@contextlib.contextmanager
def locked_folder(path: Path, field: str) -> Iterator[None]:
    """Make a private folder and lock it for this process until the block ends.

    Two deployments on one folder would write the same append-only file. The kernel drops the lock when the process
    dies. Raises `InvalidInput` of `field` at once if another process has the lock, or if the path cannot be a folder.
    """
    try:
        private_folder(path)
        lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        message = f"{path} cannot be the data folder: {error.strerror}; name a folder that this user may write"
        raise InvalidInput(field, message) from error
    with os.fdopen(lock, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = f"process {file.read()} runs in {path} already: use that one, stop it, or name another folder"
            raise InvalidInput(field, message) from error
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter. Also narrows a folder that exists, such as one of an older run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)


def write_private(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON that holds a secret: all of it or nothing, and readable for the owner only at any time."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(document, file, indent=1)
    new.replace(path)


async def _answers(url: str) -> bool:
    try:
        # Twenty calls a second: to load the certificates for each would take half a processor from what is starting.
        async with httpx.AsyncClient(timeout=1.0, verify=False, trust_env=False) as client:  # noqa: S501  a local http URL
            return (await client.get(url)).status_code == 200
    except httpx.HTTPError:
        return False
