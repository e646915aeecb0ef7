"""Numbered migrations: `sql/NNNN_name.sql`, applied in order and recorded in `schema_migrations`.

ClickHouse has no transactions for DDL, so every statement is repeatable: an interrupted migration, or one that two
processes apply at once, leads to the same schema.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import NamedTuple

import msgspec

from schemas.errors import OperatorNeeded
from sinks.clickhouse.client import ClickHouse

_RECORD = """
CREATE TABLE IF NOT EXISTS schema_migrations
(
    number UInt32,
    name String,
    checksum String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree
ORDER BY number
"""


class Migration(NamedTuple):
    """One file of `sql/`: number, name, statements, and a checksum of the text."""

    number: int
    name: str
    statements: tuple[str, ...]
    checksum: str


def known_migrations() -> list[Migration]:
    """All migrations of this version, by number."""
    migrations = []
    for entry in files("sinks.clickhouse").joinpath("sql").iterdir():
        if not entry.name.endswith(".sql"):
            continue
        text = entry.read_text(encoding="utf-8")
        number, name = entry.name.removesuffix(".sql").split("_", 1)
        migrations.append(
            Migration(int(number), name, _statements(text), hashlib.sha256(text.encode()).hexdigest()[:16])
        )
    return sorted(migrations)


async def migrate(clickhouse: ClickHouse) -> list[str]:
    """Apply the missing migrations and return their names. Harmless when repeated or run twice at once.

    Raises `OperatorNeeded` if a newer version migrated the database or an applied file was changed.
    """
    await clickhouse.ensure_database()
    await clickhouse.command(_RECORD)
    recorded = await clickhouse.rows("SELECT number, name, checksum FROM schema_migrations FINAL")
    applied = {int(number): (str(name), str(checksum)) for number, name, checksum in recorded}
    migrations = known_migrations()
    unknown = sorted(applied.keys() - {migration.number for migration in migrations})
    if unknown:
        raise OperatorNeeded(
            f"database {clickhouse.database} has migration {unknown[-1]} ({applied[unknown[-1]][0]}), which this "
            "version does not know: run the version that wrote it, or drop the database and rebuild it from the log"
        )
    done = []
    for migration in migrations:
        if migration.number in applied:
            _check_unchanged(migration, applied[migration.number][1])
            continue
        for statement in migration.statements:
            await clickhouse.command(statement)
        record = msgspec.json.encode([migration.number, migration.name, migration.checksum])
        await clickhouse.insert_lines("schema_migrations", ("number", "name", "checksum"), record)
        done.append(migration.name)
    return done


def _check_unchanged(migration: Migration, checksum: str) -> None:
    if checksum != migration.checksum:
        raise OperatorNeeded(
            f"migration {migration.number:04} ({migration.name}) was applied with another text: restore the file and "
            "put the change into a new one, or drop the database and rebuild it from the log"
        )


def _statements(text: str) -> tuple[str, ...]:
    """The statements of a file. Each ends with a semicolon at a line's end; lines starting with `--` are comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    return tuple(part.strip() for part in "\n".join([*lines, ""]).split(";\n") if part.strip())
