"""A step that blocks the event loop, for real, in a process of its own."""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from pipeline.cli import roles
from tests.integration.deployment import ROOT

BLOCKED_AFTER_S = 1.0
PROGRAM = f"""
import asyncio, re, sys, time
from pipeline.runner.runner import run_in_loop

def blocking_step():
    {{step}}

async def main():
    print("running", flush=True)
    {{body}}
    print("done", flush=True)

run_in_loop(main(), {BLOCKED_AFTER_S})
"""
# Backtracks for ever, and holds the lock of the interpreter while it does.
LOCKED = 're.match("(a|a)*b", "a" * 60)'


def start(step: str, body: str) -> subprocess.Popen[str]:
    """Run the program; returns once its loop runs."""
    program = PROGRAM.format(step=step, body=body)
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize(
    ("step", "said"),
    [("time.sleep(60)", "the event loop is blocked for 1 s"), (LOCKED, "Timeout (0:00:02)!")],
    ids=["waits", "holds the interpreter"],
)
def test_blocked_loop_ends_the_process_with_the_stack(step: str, said: str) -> None:
    """Otherwise the process would keep its partitions for ever, alive to the system and dead to everybody else."""
    process = start(step, "blocking_step()")

    _, errors = process.communicate(timeout=90)

    assert process.returncode == 1
    assert said in errors
    assert "blocking_step" in errors


def test_busy_loop_is_not_blocked() -> None:
    """Work in pieces, however much of it, lets the loop run."""
    pieces = "for _ in range(15):\n        time.sleep(0.2)\n        await asyncio.sleep(0)"

    output, errors = start("pass", pieces).communicate(timeout=90)

    assert (output, errors) == ("done\n", "")


def test_each_line_of_a_roles_log_has_its_time() -> None:
    """Otherwise the lines of several roles cannot be put in order."""
    _, errors = start("pass", "__import__('logging').getLogger('pipeline.http').warning('late')").communicate(
        timeout=90
    )

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING pipeline.http: late\n", errors)


def test_stopped_process_goes_on() -> None:
    """A process that the system stopped for longer than the limit was not blocked by a step."""
    process = start("pass", "await asyncio.sleep(2)")

    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * BLOCKED_AFTER_S)
    process.send_signal(signal.SIGCONT)

    assert process.communicate(timeout=90) == ("done\n", "")


def test_every_role_is_watched() -> None:
    """`run_in_loop` has the watchdog, and every command of a role uses it."""
    tree = ast.parse(inspect.getsource(roles))
    commands = [node for node in tree.body if isinstance(node, ast.FunctionDef)]

    assert {"archive", "auditor", "gateway", "mirror", "notifier", "router", "sink", "worker"} == {
        command.name for command in commands
    }
    assert all("run_in_loop(" in ast.unparse(command) for command in commands)
