"""`tidemark key` with the keys in PostgreSQL and those in the file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from pipeline.commands import keys as commands
from pipeline.open import open_base, open_side_tables
from pipeline.settings import load_settings
from tests.unit.cli.command_lines import Result, run


class Keys:
    """The command line of a deployment whose tables are made."""

    def run(self, *words: str) -> Result:
        return run(["key", *words])

    def lines(self, *words: str) -> list[str]:
        """What a command prints that ends well."""
        result = self.run(*words)
        assert (result.code, result.error) == (0, None), result.err
        return result.out.splitlines()

    def states(self) -> dict[str, tuple[str, str]]:
        """Where each key is kept, and its state, by id."""
        rows = [json.loads(line) for line in self.lines("list", "--all", "--json")]
        return {row["id"]: (row["kept"], row["state"]) for row in rows}


@pytest.fixture
def keys(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Keys:
    for name, value in {
        "LOG_URL": f"embedded://{tmp_path / 'log.db'}", "SECRET": "a secret of sixteen characters", "PARTITIONS": "1",
        "SQL_URL": postgres_url, "DATA_DIR": str(tmp_path), "API_KEYS": str(tmp_path / "keys.jsonl"),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"TIDEMARK_{name}", value)

    async def make() -> None:
        base = await open_base(load_settings())
        await (await open_side_tables(base)).close()
        await base.log.close()

    asyncio.run(make())
    return Keys()


def test_a_key_is_created_listed_rotated_and_revoked(keys: Keys) -> None:
    """The life of a key, with one in the file beside it."""
    (text,) = keys.lines("create", "--role", "read", "--account", "acme", "--valid-days", "30", "--note", "their page")
    (filed,) = keys.lines("create", "--role", "admin", "--file")
    first, in_file = text.split("_")[1], filed.split("_")[1]
    assert keys.states() == {first: ("sql", "valid"), in_file: ("file", "valid")}
    (line,) = (line for line in keys.lines("list") if line.startswith(first))
    assert line.startswith(f"{first}  read  acme  valid  until ")
    assert line.endswith("  last used never  their page")

    rotated = keys.run("rotate", first, "--overlap-hours", "2", "--by", "bob")
    second = rotated.out.split("_")[1]
    assert f"tidemark: the key {first} ends at " in rotated.err
    assert keys.states() == {first: ("sql", "rotated"), second: ("sql", "valid"), in_file: ("file", "valid")}

    # A person may give the whole key by mistake.
    for key_id, given in ((first, text), (in_file, in_file)):
        assert keys.lines("revoke", given, "--reason", "not used", "--by", "eve") == [f"revoked {key_id}"]
    assert keys.states() == {first: ("sql", "revoked"), second: ("sql", "valid")}
    assert [line.split("  ")[1] for line in keys.lines("history")] == [
        f"key create {first}", f"key rotate {second}", f"key rotate {first}", f"key revoke {first}",
    ]  # fmt: skip
    secret = text.split("_", 2)[2]
    assert not any(secret in line for line in (*keys.lines("history"), *keys.lines("list", "--all")))


def test_a_list_that_is_cut_says_so(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who revokes by the list must know that an old key of an admin may be missing."""
    monkeypatch.setattr(commands, "LISTED_MAX", 2)
    for _ in range(2):
        keys.lines("create", "--role", "admin")

    assert "only the 2 newest keys of PostgreSQL are listed" in keys.run("list").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["revoke", "0" * 12], f"id: there is no key {'0' * 12!r}: `tidemark key list` prints the ids"),
        (["rotate", "0" * 12], f"id: there is no key {'0' * 12!r}"),
        (["create", "--role", "read", "--account", ""], "account: must have 1 to 256 characters"),
        (["create", "--role", "read", "--file", "--note", "x"], "--note: is kept in PostgreSQL only"),
    ],
    ids=["revoke", "rotate", "an account without a name", "a note in the file"],
)
def test_what_cannot_be_done_is_refused(keys: Keys, words: list[str], said: str) -> None:
    result = keys.run(*words)

    assert (result.code, result.err.startswith(f"tidemark: {said}")) == (2, True), result.err


def test_a_key_of_the_file_needs_no_database(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """As do its listing, by a command without the database, and its revocation, by any."""
    (text,) = keys.lines("create", "--role", "admin", "--file")
    monkeypatch.setenv("TIDEMARK_SQL_URL", "postgresql://tidemark@127.0.0.1:1/tidemark")
    away = keys.run("list")
    assert (away.code, "PostgreSQL at 127.0.0.1:1" in away.err) == (1, True)
    assert keys.lines("revoke", text.split("_")[1]) == [f"revoked {text.split('_')[1]}"]

    monkeypatch.setenv("TIDEMARK_SQL_URL", "pgserver://none")
    (text,) = keys.lines("create", "--role", "ingest", "--events-per-s", "5")
    assert keys.lines("list") == [f"{text.split('_')[1]}  ingest  all accounts  valid  5 events/s  in the file"]
