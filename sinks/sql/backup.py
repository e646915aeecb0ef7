"""Backups of the side tables: one file with a consistent copy of every table, and its way back.

The file is a ZIP archive. It has each table in the text format of PostgreSQL's COPY, which every version of PostgreSQL
reads, and `manifest.json`, which says whose the tables are, their migration, and the rows and the SHA-256 of each one.
Source: postgresql.org/docs/current/sql-copy.html.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import psycopg
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from sqlalchemy import Connection, MetaData, create_engine, inspect, make_url, select
from sqlalchemy.exc import DBAPIError

from schemas.errors import InvalidInput, OperatorNeeded, Transient
from schemas.side_tables import AuditRow
from sinks.sql.audit import chain_hash
from sinks.sql.schema import migrate, upgrade
from sinks.sql.tables import accounts, audit, meta

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
_MANIFEST_BYTES_MAX: Final = 1 << 20
_CHUNK_BYTES: Final = 1 << 20
_VERSION_TABLE: Final = "alembic_version"
_CONNECT_TIMEOUT_S: Final = 5
_AUDIT_COLUMNS: Final = (
    "account", "seq", "at_ms", "actor", "cause", "entity", "entity_id", "before_json", "after_json", "reason",
)  # fmt: skip


class TableCopy(msgspec.Struct, frozen=True):
    """A table in a backup. `sha256` is that of its bytes in the archive."""

    columns: Sequence[str]
    rows: int
    sha256: str


class Backup(msgspec.Struct, frozen=True):
    """What a backup holds: all that was committed until `at_ms`, in the schema of `migration`."""

    format: int
    at_ms: int
    scope: str
    log_id: str
    migration: str
    tables: Mapping[str, TableCopy]


def back_up(url: str, path: Path, at_ms: int) -> Backup:
    """Copy all side tables of one instant into a new file, which only its owner can read. Writers are not held up.

    `at_ms` is the present. Blocks until the copy is on the disk. Raises `InvalidInput` if the file exists or cannot be
    written, `OperatorNeeded` if the database has no tables, and `Transient` if PostgreSQL does not answer.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".partial") as partial:
            with (
                _connected(url, isolation_level="REPEATABLE READ", postgresql_readonly=True) as connection,
                zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
            ):
                made = _written(connection, archive, at_ms)
            partial.flush()
            os.fsync(partial.fileno())
            # A link, other than a renaming, never replaces a file.
            os.link(partial.name, path)
    except FileExistsError:
        raise InvalidInput("FILE", f"{path} exists: name a new file") from None
    except OSError as error:
        raise InvalidInput("FILE", f"{path} cannot be written: {error.strerror}") from error
    return made


def restore(url: str, path: Path, scope: str, log_id: str) -> Backup:
    """Bring a backup into an empty database, in one transaction, and migrate it to this version.

    Blocks until all is committed; if anything fails, nothing is. Raises `InvalidInput` if the file is not a whole
    backup, `OperatorNeeded` if the database is not empty or the backup is of another Stripe account, log or version,
    and `Transient` if PostgreSQL does not answer.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            backup = _manifest(archive, path)
            for what, theirs, ours in (("Stripe account", backup.scope, scope), ("log", backup.log_id, log_id)):
                if theirs != ours:
                    raise OperatorNeeded(f"{path} is a backup of the {what} {theirs}, this deployment is of {ours}")
            with _connected(url) as connection:
                _read(connection, archive, backup, path)
                migrate(connection, scope, log_id)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise InvalidInput("FILE", f"{path} is damaged, or no backup: {error}") from error
    except OSError as error:
        raise InvalidInput("FILE", f"{path} cannot be read: {error.strerror}") from error
    return backup


@contextmanager
def _connected(url: str, **options: Any) -> Iterator[Connection]:
    """A transaction in a connection of its own."""
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "client_encoding": "utf8",
            "application_name": "tidemark backup",
        },
    ).execution_options(**options)
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.OperationalError):
            raise Transient(f"PostgreSQL: {str(error.orig).strip()}; check that the server runs") from error
        raise
    except psycopg.OperationalError as error:
        raise Transient(f"PostgreSQL: {str(error).strip()}; check that the server runs") from error
    finally:
        engine.dispose()


def _cursor(connection: Connection) -> psycopg.Cursor[Any]:
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection).cursor()


def _written(connection: Connection, archive: zipfile.ZipFile, at_ms: int) -> Backup:
    migration = MigrationContext.configure(connection).get_current_revision()
    if migration is None:
        raise OperatorNeeded("the SQL database has no tables: set TIDEMARK_SQL_URL to the database of this deployment")
    whose = connection.execute(select(meta.c.scope, meta.c.log_id)).one()
    found = inspect(connection)
    tables = {
        name: _copied_out(connection, archive, name, [column["name"] for column in found.get_columns(name)])
        for name in sorted(found.get_table_names())
        if name != _VERSION_TABLE
    }
    backup = Backup(FORMAT, at_ms, whose.scope, whose.log_id, migration, tables)
    archive.writestr(MANIFEST, msgspec.json.format(msgspec.json.encode(backup)))
    return backup


def _copied_out(connection: Connection, archive: zipfile.ZipFile, name: str, columns: Sequence[str]) -> TableCopy:
    digest = hashlib.sha256()
    statement = sql.SQL("COPY {} ({}) TO STDOUT").format(_name(name), _names(columns))
    with _cursor(connection) as cursor, archive.open(name, "w", force_zip64=True) as member:
        with cursor.copy(statement) as copy:
            for part in copy:
                digest.update(part)
                member.write(part)
        return TableCopy(columns, cursor.rowcount, digest.hexdigest())


def _name(name: str) -> sql.Identifier:
    return sql.Identifier(name)


def _names(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _manifest(archive: zipfile.ZipFile, path: Path) -> Backup:
    with archive.open(MANIFEST) as member:
        text = member.read(_MANIFEST_BYTES_MAX)
    try:
        backup = msgspec.json.decode(text, type=Backup)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput("FILE", f"{path} is damaged, or no backup: {error}") from error
    if backup.format != FORMAT:
        message = f"{path} has the format {backup.format}, this version reads {FORMAT}: use the version that made it"
        raise InvalidInput("FILE", message)
    return backup


def _read(connection: Connection, archive: zipfile.ZipFile, backup: Backup, path: Path) -> None:
    """Make the tables of a backup's version, and fill them."""
    if names := inspect(connection).get_table_names():
        raise OperatorNeeded(
            f"the SQL database has {len(names)} tables, such as {min(names)}: set TIDEMARK_SQL_URL to an empty one"
        )
    upgrade(connection, backup.migration)
    made = MetaData()
    made.reflect(connection)
    # Referenced tables come first.
    for table in made.sorted_tables:
        if table.name == _VERSION_TABLE:
            continue
        if _copied_in(connection, archive, table.name, backup.tables[table.name]) != backup.tables[table.name]:
            raise InvalidInput("FILE", f"{path} is damaged: the table {table.name} is not what was copied")
    if broken := broken_chain(connection):
        raise InvalidInput("FILE", f"{path}: the audit of account {broken!r} was changed after it was written")


def _copied_in(connection: Connection, archive: zipfile.ZipFile, name: str, expected: TableCopy) -> TableCopy:
    digest = hashlib.sha256()
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(_name(name), _names(expected.columns))
    with _cursor(connection) as cursor, archive.open(name) as member:
        with cursor.copy(statement) as copy:
            while part := member.read(_CHUNK_BYTES):
                digest.update(part)
                copy.write(part)
        return TableCopy(expected.columns, cursor.rowcount, digest.hexdigest())


def broken_chain(connection: Connection) -> str | None:
    """An account whose audit rows do not follow from one another or do not end where the account says; None if all are
    whole. Reads all rows, one after another."""
    ends: dict[str, tuple[int, str]] = {}
    statement = select(*(audit.c[name] for name in _AUDIT_COLUMNS), audit.c.hash).order_by(audit.c.account, audit.c.seq)
    account, previous = "", ""
    with connection.execute(statement, execution_options={"yield_per": 1_000}) as rows:
        for *values, found in rows:
            row = AuditRow(*values)
            previous = chain_hash(previous if row.account == account else "", row)
            if previous != found:
                return row.account
            account = row.account
            ends[account] = (row.seq, found)
    for each in connection.execute(select(accounts.c.account, accounts.c.audit_seq, accounts.c.audit_hash)):
        if (each.audit_seq, each.audit_hash) != ends.get(each.account, (each.audit_seq, "")):
            return str(each.account)
    return None
