"""The commands of application developers, against a gateway that answers from the test."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.cli.develop import command_as_started, next_commands
from pipeline.local.dev import DevOptions, locked_folder, write_private
from tests.unit.cli.command_lines import run
from tests.worlds.gateway import NOW, event, running


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The gateway's next answer, and the requests that it got."""
    state: dict[str, Any] = {"status": 200, "body": {}, "requests": []}

    def request(method: str, url: str, **options: Any) -> httpx.Response:
        sent = httpx.Request(method, url, content=options.get("content"))
        state["requests"].append((method, sent.url.raw_path.decode()))
        state["sent"] = sent.content
        return httpx.Response(state["status"], json=state["body"], request=sent)

    monkeypatch.setattr(httpx, "request", request)
    monkeypatch.setenv("TIDEMARK_GATEWAY_URL", "http://gateway.test")
    monkeypatch.setenv("TIDEMARK_API_KEY", "tm_key")
    return state


@pytest.mark.parametrize(
    ("status", "entry", "code"),
    [
        pytest.param(202, {"status": "accepted"}, 0, id="accepted"),
        pytest.param(400, {"status": "rejected", "reason": "bad_time"}, 2, id="rejected"),
        pytest.param(503, {"status": "unknown"}, 1, id="the log did not confirm"),
    ],
)
def test_emit_exits_with_what_became_of_the_event(
    answers: dict[str, Any], status: int, entry: dict[str, str], code: int
) -> None:
    """A script must notice that an event was not taken."""
    answers |= {"status": status, "body": {"events": [entry]}}

    result = CliRunner().invoke(cli, ["emit", "call", "--account", "acme"])

    assert code == result.exit_code
    assert [entry] == json.loads(result.stdout)["events"]


@pytest.mark.parametrize(
    "account", ["acme", "a/b", "a%2Fb", "customer#billing", "a?b=c", "a b", "ä", "a+b", "..%2e", ".", "..", "a\nb"]
)
async def test_usage_asks_for_the_account_that_was_named(answers: dict[str, Any], account: str, tmp_path: Any) -> None:
    """The path that the command sends leads to that account at a real gateway, and to no other."""
    CliRunner().invoke(cli, ["usage", "--account", account])
    ((_, path),) = answers["requests"]

    async with running(tmp_path) as gateway:
        await gateway.world.fold_all()
        answer = await gateway.get(path)
    assert (200, account) == (answer.status_code, answer.json()["account"])


@pytest.mark.parametrize("period", ["", "2026-11-01T01:00:00+01:00"])
async def test_top_asks_for_the_meter_and_period_that_were_named(
    answers: dict[str, Any], period: str, tmp_path: Any
) -> None:
    """The request that the command sends is answered by a real gateway."""
    CliRunner().invoke(cli, ["top", "--meter", "tokens", "--limit", "3", *(["--period", period] if period else [])])
    ((_, path),) = answers["requests"]

    async with running(tmp_path) as gateway:
        await gateway.post(event())
        await gateway.world.fold_all()
        answer = await gateway.get(path)
    assert [{"account": "acme", "value": "7"}] == answer.json()["accounts"]


def test_a_file_with_a_secret_is_for_its_owner_only(tmp_path: Any) -> None:
    """Also if the file was there before with other permissions."""
    path = tmp_path / "dev.json"
    path.write_text("{}")
    path.chmod(0o644)

    write_private(path, {"api_key": "tm_secret", "now": NOW})

    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["api_key"] == "tm_secret"


def test_second_dev_in_a_folder_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Valkey on the first one's append-only file loses counts. The first one's dev.json must stay."""
    monkeypatch.setenv("TIDEMARK_DATA_DIR", str(tmp_path))
    (tmp_path / "dev.json").write_text("{}")
    with locked_folder(tmp_path, "TIDEMARK_DATA_DIR"):
        result = run(["dev", "--port", "0", "--clickhouse-port", "0"])
        kafka = run(["dev", "--kafka", "--port", "0", "--clickhouse-port", "0"])

    message = f"tidemark: TIDEMARK_DATA_DIR: process {os.getpid()} runs in {tmp_path} already: "
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(message)
    assert kafka == result
    assert {path.name for path in tmp_path.iterdir()} == {"dev.json", "lock"}
    with locked_folder(tmp_path, "TIDEMARK_DATA_DIR"):
        pass


def test_data_folder_that_is_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is wrong, so a supervisor need not try again."""
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below"):
        monkeypatch.setenv("TIDEMARK_DATA_DIR", str(tmp_path / path))

        result = run(["dev", "--port", "0", "--clickhouse-port", "0"])

        assert (result.code, result.err.count("\n")) == (2, 1)
        assert result.err.startswith(f"tidemark: TIDEMARK_DATA_DIR: {tmp_path / path} cannot be the data folder: ")


def test_empty_id_or_time_is_sent_as_it_is(answers: dict[str, Any]) -> None:
    """An empty shell variable. A made-up id would count the event again in each run."""
    answers["body"] = {"events": [{"status": "rejected"}]}

    run(["emit", "call", "--account", "acme", "--id", "", "--time", ""])

    event_sent = json.loads(answers["sent"])
    assert (event_sent["id"], event_sent["time"]) == ("", "")


def test_usage_in_pages_and_billing_periods_are_asked_for(answers: dict[str, Any]) -> None:
    span = ["--meter", "tokens", "--account", "a&b", "--from", "2026-11-01T00:00:00+01:00", "--to", "x"]

    assert run(["usage", *span, "--limit", "7", "--cursor", "c=1"]).code == 0
    assert run(["periods", *span]).code == 0

    ends = "from=2026-11-01T00%3A00%3A00%2B01%3A00&to=x"
    assert [path for _, path in answers["requests"]] == [
        f"/v1/usage?meter=tokens&account=a%26b&{ends}&limit=7&cursor=c%3D1",
        f"/v1/usage/periods?meter=tokens&account=a%26b&{ends}",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["usage", "--meter", "tokens"], "--from: is missing"),
        (["usage", "--meter", "tokens", "--from", "now", "--to", "2026-11-01T00:00:00Z"], "--from: is not an RFC 3339"),
        (["usage", "--account", ""], "--account: must not be empty"),
        (["usage", "--account", "acme", "--limit", "7"], "--limit: needs a --meter"),
        (["top", "--meter", "tokens", "--period", ""], "--period: is not an RFC 3339"),
    ],
)
async def test_error_of_the_gateway_names_the_option(
    answers: dict[str, Any], arguments: list[str], said: str, tmp_path: Path
) -> None:
    """Not the parameter, and not twice. The answer is that of a real gateway."""
    run(arguments)
    if answers["requests"]:
        ((_, path),) = answers["requests"]
        async with running(tmp_path) as gateway:
            await gateway.world.fold_all()
            answer = await gateway.get(path)
        answers |= {"status": answer.status_code, "body": answer.json()}

    result = run(arguments)

    assert result.code == 2
    assert result.err.startswith(f"tidemark: {said}")
    assert result.err.count("\n") == 1
    assert "the parameters are" not in result.err


@pytest.mark.parametrize(
    ("started", "on_path", "command"),
    [
        pytest.param(".venv/bin/tidemark", "", ".venv/bin/tidemark", id="by its path"),
        pytest.param(".venv/bin/tidemark", ".venv/bin", "tidemark", id="on PATH"),
        pytest.param("pipeline/cli/__main__.py", "", f"{sys.executable} -m pipeline.cli", id="as a module"),
    ],
)
def test_dev_prints_the_command_by_which_it_was_started(
    started: str, on_path: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader copies the printed lines into another terminal."""
    script = tmp_path / ".venv" / "bin" / "tidemark"
    script.parent.mkdir(parents=True)
    script.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", on_path)
    monkeypatch.setattr("sys.argv", [started, "dev"])

    assert command_as_started() == command


@pytest.mark.parametrize(
    ("options", "commands"),
    [
        pytest.param({"example": True}, ["emit", "usage", "check"], id="the example business"),
        pytest.param({}, ["emit", "usage", "catalog example"], id="no example"),
        pytest.param({"meter_set": Path("my catalog.yaml")}, ["meters show", "catalog plan 'my catalog.yaml'", "usage"],
                     id="meters of its own"),
    ],
)  # fmt: skip
def test_dev_names_commands_that_have_an_answer(options: dict[str, Any], commands: list[str]) -> None:
    """Without the example business no account has a plan, and meters of somebody else count other events."""
    found = next_commands(DevOptions(Path(), **options), "tidemark")

    assert [True] * len(commands) == [
        line.startswith(f"tidemark {command}") for line, command in zip(found, commands, strict=True)
    ]
