"""`account link-all`: the links of a file, and which line is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.commands import billing
from pipeline.webhooks.linking import Linked, Wish
from schemas.errors import InvalidInput
from schemas.side_tables import Link
from tests.unit.cli.command_lines import problems, run


class _Recorded:
    """What the command asked for."""

    def __init__(self) -> None:
        self.wanted: list[Wish] = []

    async def __call__(self, _: object, wanted: list[Wish]) -> list[Linked]:
        self.wanted = wanted
        return [Linked(Link(each.account, each.customer, each.from_ms or 0), 2) for each in wanted]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> _Recorded:
    """The command without a deployment."""
    found = _Recorded()
    monkeypatch.setattr(billing, "link", found)
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
        Wish(account, customer, from_ms, "ada", "restored")
        for account, customer, from_ms in (
            ("a,b", "cus_1", None),
            ("b", "cus_2", None),
            ("c", "cus_3", 1_793_491_200_000),
        )
    ]
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


def test_a_refused_link_names_the_option(monkeypatch: pytest.MonkeyPatch, recorded: _Recorded) -> None:
    """The field of the store is no word of the command."""

    async def refused(*_: object) -> list[Linked]:
        raise InvalidInput("starts_ms", "link from 2026-11-01T00:01:00Z or later on")

    monkeypatch.setattr(billing, "link", refused)

    result = run(["account", "link", "acme", "--customer", "cus_1"])

    assert (2, "tidemark: --from: link from 2026-11-01T00:01:00Z or later on\n") == (result.code, result.err)
