"""The README's commands give the answers the README prints, in both shapes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from pipeline.local.processes import LocalProcess, free_port
from tests.integration.deployment import running_dev

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COUNTED_S = 90.0


class RunningDev(NamedTuple):
    """A running `tidemark dev` and where it listens."""

    process: LocalProcess
    gateway_port: int
    clickhouse_port: int
    api_key: str
    folder: Path


@pytest.fixture(scope="module", params=[(), ("--kafka", "--no-example")], ids=["embedded", "kafka"])
def dev(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDev]:
    """`tidemark dev` in an empty folder."""
    folder = tmp_path_factory.mktemp("dev")
    gateway_port, clickhouse_port = free_port(), free_port()
    ports = ("--port", str(gateway_port), "--clickhouse-port", str(clickhouse_port))
    with running_dev(folder, *ports, *request.param) as process:
        key = re.search(r"tm_\S+", process.output())
        assert key is not None
        yield RunningDev(process, gateway_port, clickhouse_port, key[0], folder)


def commands(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def printed(name: str) -> str:
    """The answer that the README prints under a name."""
    found = re.search(rf"<!-- answer: {name} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def run(dev: RunningDev, command: str) -> str:
    """Run a command of the README against this `dev`, which listens on other ports."""
    placed = (
        command.replace("127.0.0.1:8080", f"127.0.0.1:{dev.gateway_port}")
        .replace("127.0.0.1:8123", f"127.0.0.1:{dev.clickhouse_port}")
        .replace(".venv/bin/tidemark", f"{sys.executable} -m pipeline.cli")
    )
    environment = {**os.environ, "TIDEMARK_API_KEY": dev.api_key, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", placed],
        cwd=dev.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _await_usage(dev: RunningDev) -> None:
    """Until both events are counted and the hour's cells are in ClickHouse. A service that ended is started again, so a
    lost answer is asked for once more."""
    headers = {"authorization": f"Bearer {dev.api_key}"}
    deadline = time.monotonic() + COUNTED_S
    sql = "SELECT sum(value) FROM usage WHERE account = 'acme'"
    found = ""
    while time.monotonic() < deadline:
        try:
            live = httpx.get(f"http://127.0.0.1:{dev.gateway_port}/v1/accounts/acme/usage", headers=headers)
            relayed = httpx.post(f"http://127.0.0.1:{dev.clickhouse_port}/", content=sql).text.strip()
        except httpx.TransportError as error:
            found = repr(error)
        else:
            if live.status_code == 200 and '"1234"' in live.text and relayed == "1234":
                return
            found = f"{live.text} {relayed}"
        time.sleep(0.2)
    pytest.fail(f"not counted after {COUNTED_S} s: {found}\n{dev.process.output()}")


@pytest.mark.timeout(240)
def test_the_readme_gives_the_answers_it_prints(dev: RunningDev) -> None:
    """Every curl of the README, in order, the first one twice; then the reconciler."""
    blocks = commands("sh")
    first, second = (block for block in blocks if "/v1/events" in block)
    (usage,) = (block for block in blocks if "/usage" in block and "curl" in block)
    (sql,) = (block for block in blocks if "SELECT" in block)
    (reconcile,) = (block for block in blocks if "reconcile" in block)

    assert json.loads(printed("accepted")) == json.loads(run(dev, first))
    assert json.loads(run(dev, first))["accepted"] == 1
    assert json.loads(run(dev, second))["accepted"] == 1
    _await_usage(dev)
    expected, answer = json.loads(printed("usage")), json.loads(run(dev, usage))
    assert expected == {name: "…" if expected[name] == "…" else value for name, value in answer.items()}
    assert printed("sql") == run(dev, sql)
    assert "Verdict: " in run(dev, reconcile)


def _stripe(dev: RunningDev, method: str, path: str, **form: str) -> Any:
    """What a checkout does at Stripe."""
    environment = json.loads((dev.folder / ".tidemark" / "dev.json").read_text())["environment"]
    headers = {"authorization": f"Bearer {environment['TIDEMARK_STRIPE_API_KEY']}"}
    base = environment["TIDEMARK_STRIPE_API_BASE"]
    passed = {"params" if method == "GET" else "data": form}
    answer = httpx.request(method, f"{base}{path}", headers=headers, **passed)  # type: ignore[arg-type]  # one of them
    assert 200 == answer.status_code, answer.text
    return answer.json()


def _sign_up(dev: RunningDev, lookup_key: str) -> str:
    """A customer who buys a price; returns what one unit costs."""
    (price,) = _stripe(dev, "GET", "/v1/prices", **{"lookup_keys[0]": lookup_key})["data"]
    customer = _stripe(dev, "POST", "/v1/customers", name="Bar")["id"]
    by_mail = {"collection_method": "send_invoice", "days_until_due": "14"}
    subscription = {"customer": customer, "items[0][price]": price["id"], **by_mail}
    _stripe(dev, "POST", "/v1/subscriptions", **subscription)
    return str(price["unit_amount_decimal"])


def _await_versions(dev: RunningDev, line: str) -> str:
    """What `catalog show --versions` prints once the mirror has the subscription."""
    deadline = time.monotonic() + COUNTED_S
    while line not in (shown := run(dev, ".venv/bin/tidemark catalog show --versions")):
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    return shown


@pytest.mark.timeout(240)
@pytest.mark.parametrize("dev", [()], ids=["embedded"], indirect=True)
def test_another_price_is_for_new_customers_and_the_old_ones_keep_theirs(dev: RunningDev) -> None:
    """The commands of "Change your pricing", with the example business before the change, and a customer after it."""
    first, second = (block for block in commands("sh") if "catalog plan" in block)
    dev.process.wait_line("The example business is there")
    assert run(dev, ".venv/bin/tidemark check museum pos") == printed("check")
    run(dev, first)
    _await_versions(dev, "professional@1  open    8 subscriptions\n")

    shown = run(dev, second)
    backtest = r"\s+".join(re.escape(word).replace("…", r"\S+") for word in printed("backtest").split())
    assert re.search(backtest, shown), shown
    assert shown.endswith(printed("versions"))
    assert "15900" == _sign_up(dev, "tm.professional.v2.location.month.usd")

    shown = _await_versions(dev, "professional@2  open    1 subscription\n")
    assert "professional@1  closed  8 subscriptions\n" in shown
    assert ": hosting costs more\n" in run(dev, ".venv/bin/tidemark catalog show --history")
    assert "no drift\n" == run(dev, ".venv/bin/tidemark catalog drift")


@pytest.mark.parametrize("dev", [()], ids=["embedded"], indirect=True)
def test_the_example_business_gets_its_notices(dev: RunningDev) -> None:
    """Two of its accounts have used most of what the free plan allows. The role `notifier` writes into a file."""
    found: list[tuple[str, int]] = []
    deadline_s = time.monotonic() + COUNTED_S
    while len(found) < 3:
        assert time.monotonic() < deadline_s, f"only {found}"
        time.sleep(0.1)
        files = (dev.folder / ".tidemark").rglob("notices.jsonl")
        notices = [json.loads(line)["data"] for file in files for line in file.read_text().splitlines()]
        found = sorted((each["account"], each["percent"]) for each in notices)
    assert found == [("arcade", 80), ("atelier", 80), ("atelier", 100)]
    assert "file sent atelier limit_warning api_calls 100 %" in run(dev, ".venv/bin/tidemark notices list")


def test_the_readmes_python_is_right() -> None:
    """The emitter example runs as printed, against an address where nobody listens: `emit` returns at once."""
    (example,) = commands("python")

    done = subprocess.run(
        [sys.executable, "-c", example + "\nassert usage.stats().emitted == 1\nusage.close(0.1)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
