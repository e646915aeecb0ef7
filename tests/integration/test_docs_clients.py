"""Every client of docs/clients.md runs as printed, and what each sends is counted exactly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import pytest

from pipeline.local.processes import free_port
from tests.integration.deployment import running_dev

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "clients.md").read_text()
INSTALLED: Final = ROOT / ".venv" / "clients"
COUNTED_S: Final = 30.0

COMMANDS: Final = {
    "sh": ["bash", "-c"],
    "python": [sys.executable, "-W", "error", "-c"],
    "javascript": [str(ROOT / ".venv" / "bin" / "node"), "-e"],
}


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
    with running_dev(folder, "--no-example", "--kafka", *ports):
        document = json.loads((folder / ".tidemark" / "dev.json").read_text())
        yield {
            **os.environ,
            "GATEWAY": document["gateway_url"],
            "TIDEMARK_API_KEY": document["api_key"],
            "KAFKA": document["environment"]["TIDEMARK_LOG_URL"].removeprefix("kafka://"),
            "CLICKHOUSE": document["clickhouse_read_only_url"],
            "NODE_PATH": str(INSTALLED / "javascript" / "node_modules"),
        }


def run(client: Client, environment: dict[str, str]) -> str:
    """Run a program of the page as printed."""
    older = {"PYTHONPATH": str(INSTALLED / "cloudevents-1")} if client.name == "cloudevents-python-1" else {}
    done = subprocess.run(
        [*COMMANDS[client.language], client.text],
        env=environment | older, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
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
def test_every_client_of_the_page_is_counted_exactly_and_once(environment: dict[str, str]) -> None:
    """Each program runs twice: the ids are those of the operations, so the second run changes nothing."""
    senders = {f"clients-{client.name}": client for client in CLIENTS if client.tokens}
    assert len(senders) == 5
    for client in [*senders.values(), *senders.values()]:
        run(client, environment)
    expected = {account: Decimal(client.tokens) for account, client in senders.items()}
    (reader,) = (client for client in CLIENTS if not client.tokens)

    deadline = time.monotonic() + COUNTED_S
    rows = counted = None
    while time.monotonic() < deadline:
        counted = {account: tokens_of(account, environment) for account in senders}
        rows = {account: Decimal(tokens) for account, tokens in map(str.split, run(reader, environment).splitlines())}
        if counted == rows == expected:
            break
        time.sleep(0.2)

    assert expected == counted
    assert expected == rows


def test_the_matrix_has_every_client_of_the_page() -> None:
    """The table is what people read first."""
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    linked = re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", PAGE, re.MULTILINE)

    assert headings == [name for name, _ in linked]
    assert len(headings) == len(CLIENTS)
