"""Fixtures for every test; the services are started by the session itself and none is skipped."""

from __future__ import annotations

from typing import Any, Final

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from pipeline.native.build import build, library_path

pytest_plugins: list[str] = [
    "tests.services.browser",
    "tests.services.clickhouse",
    "tests.services.clickhouse_stores",
    "tests.services.kafka",
    "tests.services.postgres",
    "tests.services.stripe",
    "tests.services.stripe_wire",
    "tests.services.stripe_sdk",
    "tests.services.stripe_shop",
    "tests.services.valkey",
]
# These compare the C core with Python. Where no compiler is, there is nothing to compare.
OF_THE_CORE: Final = ("unit/native", "conformance/test_event_blocks.py")
_BUILT: Final = build()
collect_ignore: list[str] = [] if library_path().exists() else [*OF_THE_CORE]
# Each xdist worker starts its own services, and a single test of `tests/integration` keeps several processes busy.
ON_ONE_WORKER: Final = ("tests/conformance", "tests/integration")


def pytest_report_header() -> str:
    """Whether the tests of the C core run."""
    return _BUILT


class ByFolderAndFile(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
    """With `-n`: all of a folder of `ON_ONE_WORKER` on one worker, every other file on the next free worker."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        folder = path.rpartition("/")[0]
        return folder if folder in ON_ONE_WORKER else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFolderAndFile:
    """In the order of the folders: the two that take the longest begin."""
    config.option.loadscopereorder = False
    return ByFolderAndFile(config, log)
