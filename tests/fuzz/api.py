"""Requests of every kind to every route, by schemathesis: `python -m tests.fuzz api`.

Schemathesis makes requests from the OpenAPI document: valid ones, and ones that break a rule of the document in one
place. No answer may be a failure of the gateway, every answer is one that the document describes, a request that breaks
a rule is refused, and without a valid key nobody gets anything.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.worlds.gateway import NOW_MS
from tests.worlds.paged import Open, open_to_browsers
from tests.worlds.whole_gateway import WEBHOOK_SECRET, Whole

# That a request is valid does not mean that it is allowed: an account may have no plan to change.
UNCHECKED: Final = "positive_data_acceptance"
QUICK: Final = "examples,coverage"
ALL: Final = "examples,coverage,fuzzing,stateful"
# A list of events is answered with 207 if one of them breaks a rule.
CONFIG: Final = """\
[checks.negative_data_rejection]
expected-statuses = [207, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429]
"""
# Beside `--max-time`, for the start, the requests on the way and the report.
SPARE_S: Final = 150


class Served(NamedTuple):
    """A gateway on a port of this machine, and a key of each role, also of another account than acme."""

    opened: Open
    keys: Mapping[str, str]


@contextlib.contextmanager
def served() -> Iterator[Served]:
    """A gateway with every store, in a thread of this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secrets = folder / "webhook_secrets"
        secrets.write_text(f"{WEBHOOK_SECRET}\n")
        with open_to_browsers(folder, NOW_MS, Whole.begin_whole, Whole, stripe_webhook_secrets=secrets) as opened:
            business = opened.business
            assert isinstance(business, Whole)
            opened.run(business.use_something)
            yield Served(opened, business.all_keys(folder))


def fuzz_api(gateway: Served, key: str, seed: int, phases: str = QUICK, max_time_s: int = 0) -> str:
    """Let schemathesis ask with a key; returns the failures as schemathesis prints them, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "schemathesis.toml").write_text(CONFIG)
        done = subprocess.run(
            [*_command(gateway, key), "--phases", phases, "--seed", str(seed), *_time(max_time_s)],
            cwd=folder, capture_output=True, text=True, check=False, timeout=max_time_s + SPARE_S,
        )  # fmt: skip
    if not done.returncode:
        return ""
    _, heading, failures = done.stdout.partition("= FAILURES =")
    return heading + failures or done.stdout + done.stderr


def _command(gateway: Served, key: str) -> Sequence[str]:
    given = ["-H", f"Authorization: Bearer {gateway.keys[key]}"]
    ours = ["--exclude-checks", UNCHECKED, "--generation-database", "none", "--no-color", "--warnings", "off"]
    limits = ["--request-timeout", "20", "--max-examples", "25", "--suppress-health-check", "all"]
    ours += ["--continue-on-failure", "--output-truncate", "false"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.opened.url}/openapi.json"]
    return [*command, *given, *ours, *limits]


def _time(max_time_s: int) -> Sequence[str]:
    return ["--max-time", str(max_time_s)] if max_time_s else []


__all__ = ["ALL", "QUICK", "Served", "fuzz_api", "served"]
