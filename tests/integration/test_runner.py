"""The runner on both transports: what it promises to one process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from faust.types import TP

from pipeline.clock import SystemClock
from pipeline.logs.open import open_log
from pipeline.runner.embedded import EmbeddedConsumer
from pipeline.runner.runner import Runner, RunnerSettings
from schemas.errors import InvalidInput, OperatorNeeded, Transient
from schemas.log import Log, TopicSpec
from tests.integration.runner_world import (
    PARTITIONS,
    PATIENCE_S,
    Recorder,
    committed,
    fill,
    running,
    settings_for,
    until,
    until_committed,
)


async def test_every_record_is_processed_once_in_order_and_acknowledged(log_url: str, log: Log, topic: str) -> None:
    """The plain case, with more records than any queue holds, some of them appended while it runs."""
    await fill(log, topic, 400)
    recorder = Recorder(topic)

    async with running(recorder, log_url, topic) as (runner, _task):
        await until(lambda: recorder.count == 400, "the first records")
        await fill(log, topic, 400)
        await until(lambda: recorder.count == 800, "the later records")
        assert set(range(PARTITIONS)) == runner.assigned() == runner.assigned(topic)
        await until(lambda: all(part.next_offset == 200 for part in runner.progress()), "the progress")
        assert [part.lag for part in runner.progress()] == [0] * PARTITIONS

    assert {partition: list(range(200)) for partition in range(PARTITIONS)} == recorder.seen
    assert await committed(log, topic, topic) == [200] * PARTITIONS
    assert sum(call == "revoked" for call, _ in recorder.calls) == PARTITIONS


async def test_an_exception_in_a_step_stops_the_run_without_acknowledging_it(
    log_url: str, log: Log, topic: str
) -> None:
    """I2: neither the failed records nor anything after them may be passed by the committed offset."""
    await fill(log, topic, 200)
    recorder = Recorder(topic)
    recorder.fail_at = 22

    async with running(recorder, log_url, topic) as (_runner, task):
        await asyncio.wait({task}, timeout=PATIENCE_S)
        assert task.done()
        with pytest.raises(ValueError, match="cannot process offset 22"):
            task.result()

    for partition, offset in enumerate(await committed(log, topic, topic)):
        assert offset in (None, recorder.positions.get(partition))
        assert offset is None or offset <= 22


async def test_a_restart_reads_from_the_processors_position_not_from_the_committed_one(
    log_url: str, log: Log, topic: str
) -> None:
    """I2: a store that lost its last second goes back, and the records come again."""
    await fill(log, topic, 80)
    recorder = Recorder(topic)
    async with running(recorder, log_url, topic):
        await until(lambda: recorder.count == 80, "the first run")
    assert await committed(log, topic, topic) == [20] * PARTITIONS

    restored = Recorder(topic)
    restored.positions = {0: 5, 1: 20, 2: 0, 3: 19}
    async with running(restored, log_url, topic):
        await until(lambda: restored.count == 15 + 0 + 20 + 1, "the second run")

    assert {0: list(range(5, 20)), 2: list(range(20)), 3: [19]} == restored.seen
    assert await committed(log, topic, topic) == [20] * PARTITIONS


async def test_without_a_position_reading_goes_on_at_the_committed_offset(log_url: str, log: Log, topic: str) -> None:
    """Processors without state of their own, such as the router, use the group's offset."""
    await fill(log, topic, 40)
    recorder = Recorder(topic)
    async with running(recorder, log_url, topic):
        await until(lambda: recorder.count == 40, "the first run")
    await fill(log, topic, 4)

    following = Recorder(topic)
    async with running(following, log_url, topic):
        await until(lambda: following.count == 4, "the second run")

    assert {partition: [10] for partition in range(PARTITIONS)} == following.seen


@pytest.mark.parametrize("start", [99, -1], ids=["past-the-end", "before-the-start"])
async def test_a_position_that_the_log_does_not_hold_needs_an_operator(
    log_url: str, log: Log, topic: str, start: int
) -> None:
    """Never fall through to another offset: the counts would be wrong and nobody would know."""
    await fill(log, topic, 8)
    recorder = Recorder(topic)
    recorder.starts = {2: start}

    async with running(recorder, log_url, topic) as (_runner, task):
        await asyncio.wait({task}, timeout=PATIENCE_S)
        with pytest.raises(OperatorNeeded, match=rf"{topic}-2: the stored position is {start}, the log holds \[0, 2\)"):
            task.result()

    assert 2 not in recorder.seen


async def test_an_error_in_start_offset_ends_the_run_with_its_message(log_url: str, log: Log, topic: str) -> None:
    """The remedy in the message is for the operator who reads the exit."""
    await fill(log, topic, 8)

    class Refusing(Recorder):
        async def start_offset(self, partition: int) -> int | None:
            raise OperatorNeeded(f"the store of partition {partition} is empty: rebuild it")

    async with running(Refusing(topic), log_url, topic) as (_runner, task):
        await asyncio.wait({task}, timeout=PATIENCE_S)
        with pytest.raises(OperatorNeeded, match="rebuild it"):
            task.result()


async def test_a_slow_partition_holds_back_neither_steps_nor_commits_of_the_others(
    log_url: str, log: Log, topic: str
) -> None:
    """The slow one's queue fills and is left out of the fetch; the others go on past many queue sizes."""
    recorder = Recorder(topic)
    recorder.gates[1] = asyncio.Event()
    await fill(log, topic, 800)

    async with running(recorder, log_url, topic) as (runner, _task):
        await until(lambda: recorder.count == 600, "the three other partitions")
        await until_committed(log, topic, [200, None, 200, 200])
        (slow,) = (part for part in runner.progress() if part.partition == 1)
        assert slow.next_offset == 0
        # A fetch begins only while the queue has room, and adds at most 20 records.
        assert 20 <= slow.queued_records < 40
        assert runner.behind(topic, 1)

        recorder.gates[1].set()
        await until(lambda: recorder.count == 800, "the slow partition")
        assert not any(runner.behind(topic, partition) for partition in (*range(PARTITIONS), PARTITIONS))

    assert list(range(200)) == recorder.seen[1]


async def test_an_idle_partition_is_visited_between_steps(log_url: str, log: Log, topic: str) -> None:
    """Relays must run where no events arrive."""
    recorder = Recorder(topic)

    async with running(recorder, log_url, topic):
        await until(
            lambda: all(recorder.calls.count(("idle", partition)) >= 2 for partition in range(PARTITIONS)), "idle calls"
        )

    assert recorder.count == 0


async def test_a_stop_lets_the_running_step_finish_and_commits_it(log_url: str, log: Log, topic: str) -> None:
    """An orderly stop repeats nothing at the next start."""
    await log.append(topic, 0, b"a")
    recorder = Recorder(topic)
    recorder.gates[0] = asyncio.Event()
    runner = Runner([recorder], log_url, SystemClock(), settings_for(topic))
    stop = asyncio.Event()
    task = asyncio.create_task(runner.run(stop))
    await until(lambda: ("step", 0) in recorder.calls, "the step")

    stop.set()
    await asyncio.sleep(0)
    recorder.gates[0].set()
    await asyncio.wait_for(task, PATIENCE_S)

    assert recorder.seen[0] == [0]
    assert await log.committed(topic, topic, 0) == 1


async def test_a_stop_in_the_middle_of_a_fetch_commits_the_steps_that_ended(log_url: str, log: Log, topic: str) -> None:
    """One fetch returns the records of several steps; a restart must not repeat the ended ones."""
    for number in range(20):
        await log.append(topic, 0, b"%d" % number)
    recorder = Recorder(topic)
    recorder.gates[0] = asyncio.Event()
    settings = replace(settings_for(topic), queue_events_max=100, fetch_records_max=100)
    runner = Runner([recorder], log_url, SystemClock(), settings)
    stop = asyncio.Event()
    task = asyncio.create_task(runner.run(stop))
    await until(lambda: ("step", 0) in recorder.calls, "the step")

    stop.set()
    await until(lambda: runner._workers[TP(topic, 0)]._closing, "the stop")
    recorder.gates[0].set()
    await asyncio.wait_for(task, PATIENCE_S)

    assert recorder.seen[0] == [0, 1, 2, 3, 4]
    assert await log.committed(topic, topic, 0) == 5


async def test_the_last_commit_is_made_although_another_commit_runs_at_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust would leave it out, and the router would forward the last records again."""
    url, first, gate = f"embedded://{tmp_path / 'log.db'}", asyncio.Event(), asyncio.Event()
    commit = EmbeddedConsumer._commit

    async def slow(consumer: EmbeddedConsumer, offsets: Mapping[TP, int]) -> bool:
        first.set()
        await gate.wait()
        return await commit(consumer, offsets)

    monkeypatch.setattr(EmbeddedConsumer, "_commit", slow)
    log = open_log(url, SystemClock())
    await log.start()
    await log.create_topics([TopicSpec("t", 1, retention_ms=-1)])
    await log.append("t", 0, b"a")
    recorder = Recorder("t")

    async with running(recorder, url, "t"):
        await asyncio.wait_for(first.wait(), PATIENCE_S)
        await log.append("t", 0, b"b")
        await until(lambda: recorder.count == 2, "the record after the commit")
        asyncio.get_running_loop().call_later(0.05, gate.set)

    assert await log.committed("t", "t", 0) == 2
    await log.close()


async def test_a_step_that_never_ends_ends_the_run(log_url: str, log: Log, topic: str) -> None:
    """The group keeps a member as long as it beats; only the process's end gives its partitions to others."""
    await log.append(topic, 0, b"a")
    recorder = Recorder(topic)
    recorder.gates[0] = asyncio.Event()
    settings = replace(settings_for(topic), step_timeout_s=0.2, stop_timeout_s=0.1)

    with pytest.raises(Transient, match=f"{topic}/0: the step from offset 0 did not end in 0.2 s"):
        await asyncio.wait_for(Runner([recorder], log_url, SystemClock(), settings).run(asyncio.Event()), PATIENCE_S)

    assert await log.committed(topic, topic, 0) is None


async def test_a_stop_before_the_start_has_finished_is_not_lost(log_url: str, log: Log, topic: str) -> None:
    """Joining a group takes a while; ctrl-C may come first."""
    runner = Runner([Recorder(topic)], log_url, SystemClock(), settings_for(topic))
    stop = asyncio.Event()
    stop.set()

    await asyncio.wait_for(runner.run(stop), PATIENCE_S)

    assert set() == runner.assigned()


async def test_two_topics_of_one_group_are_apart(log_url: str, log: Log, topic: str) -> None:
    """Same partition numbers, other processors."""
    other = f"{topic}.other"
    await log.create_topics([TopicSpec(other, PARTITIONS, retention_ms=-1)])
    await log.append(topic, 0, b"a")
    await log.append(other, 0, b"b")
    first, second = Recorder(topic), Recorder(other)
    stop = asyncio.Event()
    task = asyncio.create_task(Runner([first, second], log_url, SystemClock(), settings_for(topic)).run(stop))

    await until(lambda: first.count == second.count == 1, "both")
    stop.set()
    await task

    assert {0: [0]} == first.seen == second.seen


def test_two_processors_of_one_topic_are_refused() -> None:
    """One group reads a topic once."""
    with pytest.raises(InvalidInput, match="one processor per topic"):
        Runner([Recorder("t"), Recorder("t")], "embedded://log.db", SystemClock(), RunnerSettings("g"))


async def test_the_embedded_log_feeds_one_process_per_group(tmp_path: Path) -> None:
    """Two would each process everything."""
    url = f"embedded://{tmp_path / 'log.db'}"
    log = open_log(url, SystemClock())
    await log.start()
    await log.create_topics([TopicSpec("t", 1, retention_ms=-1)])
    await log.append("t", 0, b"a")
    recorder = Recorder("t")

    async with running(recorder, url, "g"):
        await until(lambda: recorder.count == 1, "the first runner")
        with pytest.raises(OperatorNeeded, match="already runs"):
            await Runner([Recorder("t")], url, SystemClock(), RunnerSettings("g")).run(asyncio.Event())

    await log.close()
