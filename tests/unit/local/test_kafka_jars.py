"""The jars of the local broker."""

from __future__ import annotations

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.local.kafka import broker_jars


def test_two_that_start_at_once_resolve_the_jars_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache the second one started a broker while the first one was still copying jars."""
    running: list[str] = []
    at_once: list[int] = []

    def resolved(*_arguments: Any, **_options: Any) -> subprocess.CompletedProcess[str]:
        running.append(threading.current_thread().name)
        time.sleep(0.05)
        at_once.append(len(running))
        running.pop()
        return subprocess.CompletedProcess([], 0, "/cache/kafka.jar\nmodule path\n", "")

    monkeypatch.setattr(subprocess, "run", resolved)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: broker_jars(), range(4)))

    assert at_once == [1] * 4
    assert found == [["/cache/kafka.jar"]] * 4
