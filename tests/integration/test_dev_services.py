"""`tidemark dev` when one of its services is killed: the service is named and comes back, and no role is blamed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.local.processes import LocalProcess, python
from tests.integration.deployment import EXIT_OPERATOR, clean_environment, running_dev, tidemark

PATIENCE_S = 90.0
VALKEY = "valkey-server"


def until(condition: Callable[[], bool], what: str) -> None:
    """Block until `condition` holds."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def child(dev: LocalProcess, part: str) -> int | None:
    """The process id of the child whose command line contains `part`."""
    for thread in Path(f"/proc/{dev.pid}/task").iterdir():
        for pid in (thread / "children").read_text().split():
            if part.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return None


def kill(dev: LocalProcess, part: str, ended: str) -> None:
    """kill -9 of a service; returns once the supervisor has said so and the service is back."""
    pid, times = child(dev, part), dev.output().count(ended)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: dev.output().count(ended) > times, ended)
    until(lambda: child(dev, part) is not None, f"{part} is back")


def emitted(folder: Path) -> bool:
    """Whether an event is accepted."""
    return tidemark(folder, "emit", "api.request", "--account", "acme").returncode == 0


def counted(folder: Path) -> str:
    """The live value of `api_requests`."""
    done = tidemark(folder, "usage", "--account", "acme")
    if done.returncode:
        return "0"
    values = {each["meter"]: each["value"] for each in json.loads(done.stdout).get("meters", ())}
    return str(values.get("api_requests"))


def test_killed_service_is_named_and_comes_back_and_a_lost_one_is_the_cause(tmp_path: Path) -> None:
    """The roles that end meanwhile are not to blame; at last Valkey cannot come back, and `dev` ends for its sake."""
    command = python("pipeline.cli", "dev", "--port", "0", "--clickhouse-port", "0")
    dev = LocalProcess("tidemark dev", command, tmp_path / "output", environment=clean_environment(), cwd=tmp_path)
    dev.start()
    try:
        dev.wait_line("Press ctrl-C")
        for part, name in ((VALKEY, "Valkey"), (VALKEY, "Valkey"), ("pipeline.local.clickhouse_server", "clickhouse")):
            kill(dev, part, f"{name} ended (exit -9); starting it again")
        until(lambda: emitted(tmp_path), "an event is accepted")
        until(lambda: counted(tmp_path) == "1", "the event is counted")
        assert "dies at its start" not in dev.output()

        (manifest,) = (tmp_path / ".tidemark" / "valkey").glob("appendonlydir/*.manifest")
        manifest.write_text("spoiled\n")
        pid = child(dev, VALKEY)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert dev.wait(PATIENCE_S) == EXIT_OPERATOR
    finally:
        dev.kill()
    said = dev.output()[dev.output().index("Press ctrl-C") :]
    assert "tidemark: an operator must choose: Valkey dies at its start (exit 1)" in said
    assert "manifest" in said
    assert "worker" not in said


def test_killed_broker_is_named_and_comes_back(tmp_path: Path) -> None:
    """As Valkey."""
    with running_dev(tmp_path, "--no-example", "--kafka", "--port", "0", "--clickhouse-port", "0") as dev:
        assert emitted(tmp_path)

        kill(dev, "kafka.Kafka", "the Kafka broker ended (exit -9); starting it again")

        until(lambda: emitted(tmp_path), "an event is accepted")
        # An event that was not confirmed may have been stored all the same.
        until(lambda: int(counted(tmp_path) or 0) >= 2, "the events are counted")
        assert "dies at its start" not in dev.output()
