"""`python -m demo.worker`: a worker that also counts events that it reads again after a crash.

These counts are only a statistic and no part of the worker's state.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from pipeline.cli import main
from pipeline.cli.context import role_settings
from pipeline.roles.worker import run_worker
from pipeline.rollup.processor import RollupProcessor
from pipeline.runner.runner import run_in_loop
from schemas.log import Record

_WIDTH: Final = 20


class ReplayCounter:
    """Three numbers per partition, in files of the worker's data directory. They survive kill -9."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "replays"
        self._folder.mkdir(parents=True, exist_ok=True)

    def delivered(self, partition: int) -> int:
        """The offset after the last record that was ever delivered to the worker; 0 before the first."""
        return self._numbers(partition)[0]

    def replayed(self, partition: int) -> int:
        """The number of committed events that were delivered again."""
        return self._numbers(partition)[1]

    def is_in_hand(self, partition: int) -> bool:
        """Whether the worker has records that it has not committed."""
        delivered, _, folded = self._numbers(partition)
        return delivered > folded

    def note(self, partition: int, next_offset: int, replayed: int = 0, folded: int = 0) -> None:
        """Raise the delivered offset to `next_offset` and the committed one to `folded`, and add `replayed` events."""
        delivered, before, committed = self._numbers(partition)
        numbers = max(delivered, next_offset), before + replayed, max(committed, folded)
        text = "".join(f"{number:{_WIDTH}d}" for number in numbers)
        number = os.open(self._path(partition), os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(number, text.encode(), 0)
        os.close(number)

    def _path(self, partition: int) -> Path:
        return self._folder / f"partition-{partition}"

    def _numbers(self, partition: int) -> tuple[int, int, int]:
        path = self._path(partition)
        text = path.read_text() if path.exists() else ""
        delivered, replayed, folded = (int(text[at * _WIDTH : (at + 1) * _WIDTH] or 0) for at in range(3))
        return delivered, replayed, folded


class CountedReplays:
    """A processor that wraps the rollup and records each delivery before the rollup folds the records."""

    def __init__(self, rollup: RollupProcessor, counter: ReplayCounter) -> None:
        self.topic = rollup.topic
        self.revoked, self.idle = rollup.revoked, rollup.idle
        self._rollup = rollup
        self._counter = counter
        self._replay_until: dict[int, int] = {}

    async def start_offset(self, partition: int) -> int:
        """See `Processor`."""
        self._replay_until[partition] = self._counter.delivered(partition)
        return await self._rollup.start_offset(partition)

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """See `Processor`. Folds replayed records in a separate step."""
        again = [record for record in records if record.offset < self._replay_until[partition]]
        self._counter.note(partition, records[-1].next_offset)
        if again:
            before = self._rollup.checkpoints[partition].counters.received
            await self._rollup.step(partition, again)
            after = self._rollup.checkpoints[partition].counters.received
            self._counter.note(partition, 0, after - before)
        if fresh := records[len(again) :]:
            await self._rollup.step(partition, fresh)
        self._counter.note(partition, 0, folded=records[-1].next_offset)


@click.command()
@click.option("--replay-from-start", is_flag=True)
def worker(replay_from_start: bool) -> None:
    """Run the worker."""
    chosen = role_settings()
    counter = ReplayCounter(chosen.data_dir)
    run_in_loop(
        run_worker(chosen, replay_from_start=replay_from_start, around=lambda rollup: CountedReplays(rollup, counter))
    )


if __name__ == "__main__":
    main(worker)
