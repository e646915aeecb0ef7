"""The schema's version and whose the database is."""

from __future__ import annotations

from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text

from schemas.errors import OperatorNeeded
from sinks.sql.queries import LOCK_SPACE, insert_new
from sinks.sql.tables import meta

# One above the locks of customers.
MIGRATION_LOCK: Final = 1 << 20


def migrate(connection: Connection, scope: str, log_id: str) -> None:
    """Bring a PostgreSQL database to this version, in the caller's transaction. A second process waits.

    Raises `OperatorNeeded`; see `schemas.side_tables.SideTables.migrate`.
    """
    connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK_SPACE}, {MIGRATION_LOCK})"))
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None:
        _check_known(current)
    # Another deployment's database is left as it is, also at an older version.
    if inspect(connection).has_table(meta.name):
        claim_database(connection, scope, log_id)
    upgrade(connection, "head")
    claim_database(connection, scope, log_id)


def upgrade(connection: Connection, migration: str) -> None:
    """Bring a PostgreSQL database to a migration. Raises `OperatorNeeded` if this version does not know it."""
    if migration != "head":
        _check_known(migration)
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, migration)


def _check_known(migration: str) -> None:
    if migration not in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}:
        raise OperatorNeeded(
            f"the SQL database has migration {migration}, which this version does not know: run the version that made "
            "the migration, or restore a backup from before the upgrade"
        )


def claim_database(connection: Connection, scope: str, log_id: str) -> None:
    """Note whose the database is, or raise `OperatorNeeded` if it belongs to another scope or log."""
    insert_new(connection, meta, [{"one": 1, "scope": scope, "log_id": log_id}])
    _compare(connection, scope, log_id)


def check(connection: Connection, scope: str, log_id: str) -> None:
    """Raise `OperatorNeeded` if a PostgreSQL database is not migrated to this version, or is another scope's or log's.
    Writes nothing."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        raise OperatorNeeded("the SQL database has no tables yet: start `tidemark mirror`, which makes them")
    _compare(connection, scope, log_id)
    if current != head:
        raise OperatorNeeded(
            f"the SQL database has migration {current}, this version needs {head}: start `tidemark mirror` of this "
            "version, which migrates"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "sinks.sql:migrations")
    config.set_main_option("path_separator", "os")
    return config


def _compare(connection: Connection, scope: str, log_id: str) -> None:
    row = connection.execute(select(meta.c.scope, meta.c.log_id)).one()
    for what, theirs, ours in (("Stripe account", row.scope, scope), ("log", row.log_id, log_id)):
        if theirs != ours:
            raise OperatorNeeded(
                f"the SQL database belongs to the {what} {theirs}, this process to {ours}: set TIDEMARK_SQL_URL to the "
                "database of this deployment, or to an empty one and resync from Stripe"
            )
