"""The benchmark of checks keeps up with what a check reads: its stores are its own, and no type checker sees them."""

from __future__ import annotations

from benchmarks.access import in_process


async def test_checks_in_a_process_are_measured() -> None:
    figures = await in_process(4, 40)

    assert [figure.name for figure in figures] == ["median", "p99", "memory of an account"]
    assert figures[0].value > 0
