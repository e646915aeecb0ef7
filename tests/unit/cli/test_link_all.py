"""`account link-all`: the links of a file, and which line is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from aggregators.binding_timeline import timeline
from pipeline.cli import cli
from pipeline.commands import billing
from pipeline.commands.billing import Linked, Opened, Wanted, link_accounts
from schemas.clock import MINUTE_MS
from schemas.errors import InvalidInput
from schemas.side_tables import Link
from sinks.sql.fake import FakeSideTables
from tests.unit.cli.command_lines import problems, run
from tests.worlds.reconciler import START_MS


class _Recorded:
    """What the command asked for."""

    def __init__(self) -> None:
        self.wanted: list[Wanted] = []

    async def __call__(self, _: object, wanted: list[Wanted], actor: str, reason: str) -> list[Linked]:
        assert (actor, reason) == ("ada", "restored")
        self.wanted = wanted
        return [Linked(Link(each.account, each.customer, each.from_ms or 0), 2) for each in wanted]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> _Recorded:
    """The command without a deployment."""
    found = _Recorded()
    monkeypatch.setattr(billing, "link_accounts", found)
    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    monkeypatch.setenv("TIDEMARK_LOG_URL", "embedded:///nowhere/log.db")
    return found


def test_each_line_is_a_link(recorded: _Recorded, tmp_path: Path) -> None:
    """Quotes as in CSV; an empty instant is as in `account link` without --from; instants are cut to the minute."""
    path = tmp_path / "links.csv"
    path.write_text('"a,b",cus_1\nb,cus_2,\n\nc,cus_3,2026-11-01T00:00:59Z\n', encoding="utf-8")
    result = CliRunner().invoke(cli, ["account", "link-all", str(path), "--by", "ada", "--reason", "restored"])
    assert (result.exit_code, result.exception) == (0, None)
    assert recorded.wanted == [
        Wanted("a,b", "cus_1"), Wanted("b", "cus_2"), Wanted("c", "cus_3", 1_793_491_200_000)
    ]  # fmt: skip
    assert result.output.splitlines()[-2:] == [
        "c: linked to cus_3 from 2026-11-01T00:00:00Z on",
        "2 held events of cus_3 are processed now",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param("a", "line 2: write ACCOUNT,CUSTOMER", id="one field"),
        pytest.param("a,cus_1,now,x", "line 2: write ACCOUNT,CUSTOMER", id="four fields"),
        pytest.param("a,acct_1", "line 2: ", id="no customer"),
        pytest.param(",cus_1", "line 2: ", id="no account"),
        pytest.param("a,cus_1,yesterday", "line 2: ", id="no instant"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_linked(recorded: _Recorded, tmp_path: Path, line: str, said: str) -> None:
    """The lines before the wrong one are not linked either."""
    path = tmp_path / "links.csv"
    path.write_text(f"good,cus_0\n{line}\n", encoding="utf-8")
    result = run(["account", "link-all", str(path)])
    assert (result.code, problems(result), recorded.wanted) == (2, [], [])
    assert said in result.err


def test_bytes_that_are_no_text_are_refused(recorded: _Recorded, tmp_path: Path) -> None:
    """The message names the file."""
    path = tmp_path / "links.csv"
    path.write_bytes(b"a,cus_1\n\xff,cus_2\n")
    result = run(["account", "link-all", str(path)])
    assert (result.code, problems(result), recorded.wanted) == (2, [], [])
    assert "links.csv" in result.err


async def test_links_of_one_account_are_made_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first link of an account holds for all usage, a later one from now on; again, nothing changes."""
    tables = FakeSideTables(timeline)
    await tables.migrate("test:acct_1", "log")

    @contextlib.asynccontextmanager
    async def deployment(_: object) -> AsyncIterator[Opened]:
        base = SimpleNamespace(log=None, clock=SimpleNamespace(now_ms=lambda: START_MS + 1))
        yield Opened(cast("Any", base), tables, cast("Any", None))

    monkeypatch.setattr(billing, "opened", deployment)
    wanted = [Wanted("a", "cus_1"), Wanted("b", "cus_2", 5 * MINUTE_MS), Wanted("a", "cus_3")]
    done = await link_accounts(cast("Any", None), wanted, "ada", "")

    assert [(each.link.account, each.link.customer, each.link.starts_ms) for each in done] == [
        ("a", "cus_1", 0),
        ("a", "cus_3", START_MS // MINUTE_MS * MINUTE_MS),
        ("b", "cus_2", 5 * MINUTE_MS),
    ]
    before = [*await tables.audit("a"), *await tables.audit("b")]
    await link_accounts(cast("Any", None), [wanted[1], wanted[2]], "ada", "")
    assert [*await tables.audit("a"), *await tables.audit("b")] == before
    with pytest.raises(InvalidInput, match="cus_2 belongs to account b"):
        await link_accounts(cast("Any", None), [Wanted("c", "cus_2")], "ada", "")
