"""The runner on both transports: what a failure, a kill and a rebalance leave behind."""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.clock import SystemClock
from pipeline.faust_runner import Runner, RunnerSettings
from pipeline.local_kafka import LocalKafka
from pipeline.logs.open import kafka_servers, open_log
from schemas.errors import InvalidInput, OperatorNeeded
from schemas.log import Log, Record, TopicSpec
from tests.integration.runner_worker import FencedStore

TRANSPORTS = ("embedded", "kafka")
PARTITIONS = 4
PATIENCE_S = 30.0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`, which others make true."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"timed out: {what}"
        await asyncio.sleep(0.01)


class Recorder:
    """A processor that keeps what it was given, and can be made to fail or to wait."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.positions: dict[int, int] = {}
        self.seen: dict[int, list[int]] = defaultdict(list)
        self.calls: list[tuple[str, int]] = []
        self.fail_at: int | None = None
        self.gates: dict[int, asyncio.Event] = {}
        self.starts: dict[int, int | None] = {}
        self.in_step: set[int] = set()

    @property
    def count(self) -> int:
        return sum(map(len, self.seen.values()))

    async def start_offset(self, partition: int) -> int | None:
        self.calls.append(("start", partition))
        return self.starts.get(partition, self.positions.get(partition))

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        assert partition not in self.in_step
        self.in_step.add(partition)
        self.calls.append(("step", partition))
        if partition in self.gates:
            await self.gates[partition].wait()
        if self.fail_at is not None and any(record.offset == self.fail_at for record in records):
            raise ValueError(f"cannot process offset {self.fail_at}")
        self.seen[partition] += [record.offset for record in records]
        self.positions[partition] = records[-1].next_offset
        self.in_step.discard(partition)

    async def revoked(self, partition: int) -> None:
        assert partition not in self.in_step
        self.calls.append(("revoked", partition))

    async def idle(self, partition: int) -> None:
        assert partition not in self.in_step
        self.calls.append(("idle", partition))


def settings_for(group: str) -> RunnerSettings:
    return RunnerSettings(
        group, flush_records_max=5, queue_records_max=20, commit_interval_s=0.1, session_timeout_s=6,
        heartbeat_interval_s=0.5, idle_interval_s=0.1,
    )  # fmt: skip


@asynccontextmanager
async def running(processor: Recorder, log_url: str, group: str) -> AsyncIterator[tuple[Runner, asyncio.Task[None]]]:
    """A runner in this process, stopped in order at the end."""
    runner = Runner([processor], log_url, SystemClock(), settings_for(group))
    stop = asyncio.Event()
    task = asyncio.create_task(runner.run(stop))
    try:
        yield runner, task
    finally:
        stop.set()
        await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        task.result()


@pytest.fixture(params=TRANSPORTS)
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "embedded":
        return f"embedded://{tmp_path / 'log.db'}"
    url: str = request.getfixturevalue("kafka_url")
    return url


@pytest.fixture
async def log(log_url: str) -> AsyncIterator[Log]:
    driver = open_log(log_url, SystemClock())
    await driver.start()
    yield driver
    await driver.close()


@pytest.fixture
async def topic(log: Log) -> str:
    name = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(name, PARTITIONS, retention_ms=-1)])
    return name


async def fill(log: Log, topic: str, count: int) -> None:
    """`count` records over all partitions."""
    await asyncio.gather(*(log.append(topic, number % PARTITIONS, b"%d" % number) for number in range(count)))


async def committed(log: Log, group: str, topic: str) -> list[int | None]:
    return [await log.committed(group, topic, partition) for partition in range(PARTITIONS)]


async def until_committed(log: Log, topic: str, expected: list[int | None]) -> None:
    """Wait until the group named as the topic has committed `expected`."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while (offsets := await committed(log, topic, topic)) != expected:
        assert asyncio.get_running_loop().time() < deadline, f"timed out: committed {offsets}, not {expected}"


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
        with pytest.raises(OperatorNeeded, match=rf"{topic}/2: the stored position is {start}, the log holds \[0, 2\)"):
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
        assert slow.queued_records < 60

        recorder.gates[1].set()
        await until(lambda: recorder.count == 800, "the slow partition")

    assert list(range(200)) == recorder.seen[1]


async def test_an_idle_partition_is_visited_between_steps(log_url: str, log: Log, topic: str) -> None:
    """Drains must run where no events arrive."""
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


class Worker:
    """`runner_worker` in a process of its own."""

    def __init__(self, log_url: str, topic: str, store_path: Path, pause_s: float = 0.01) -> None:
        self._arguments = (log_url, topic, topic, str(store_path), str(pause_s))
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> int:
        """Returns the process id."""
        command = (sys.executable, "-m", "tests.integration.runner_worker", *self._arguments)
        self.process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        return self.process.pid

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()

    async def terminate(self) -> int:
        """Stop in order; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        _, errors = await self.process.communicate()
        assert self.process.returncode == 0, errors.decode()
        return self.process.returncode


async def test_a_killed_worker_resumes_at_the_position_in_its_store(
    log_url: str, log: Log, topic: str, tmp_path: Path
) -> None:
    """Kill -9 in mid-work: nothing is lost, nothing is committed twice."""
    await fill(log, topic, 400)
    store_path = tmp_path / "state.db"
    store = FencedStore(str(store_path))
    worker = Worker(log_url, topic, store_path)

    await worker.start()
    await until(lambda: store.count() >= 50, "the first worker's progress")
    await worker.kill()
    positions = {partition: store.next_offset(partition) for partition in range(PARTITIONS)}
    assert store.count() < 400

    following = Worker(log_url, topic, store_path)
    second_id = await following.start()
    await until(lambda: store.count() == 400, "the second worker")
    await following.terminate()

    assert positions == store.starts(second_id)
    assert {partition: list(range(100)) for partition in range(PARTITIONS)} == store.processed()
    assert await committed(log, topic, topic) == [100] * PARTITIONS
    store.close()


async def test_two_workers_share_a_topic_and_one_survives_the_others_kill(kafka_url: str, tmp_path: Path) -> None:
    """A rebalance in mid-flight, then kill -9 of one: the store's fence decides, no record is lost or acked early."""
    log = open_log(kafka_url, SystemClock())
    await log.start()
    topic = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(topic, PARTITIONS, retention_ms=-1)])
    await fill(log, topic, 2000)
    store_path = tmp_path / "state.db"
    store = FencedStore(str(store_path))
    first, second = Worker(kafka_url, topic, store_path, 0.03), Worker(kafka_url, topic, store_path, 0.03)

    await first.start()
    await until(lambda: store.count() >= 50, "the first worker's progress")
    second_id = await second.start()
    await until(lambda: second_id in store.workers(), "the second worker's share")
    await second.kill()
    await until(lambda: store.count() == 2000, "everything")
    for partition, offset in enumerate(await committed(log, topic, topic)):
        assert offset is None or offset <= store.next_offset(partition)
    await first.terminate()

    assert {partition: list(range(500)) for partition in range(PARTITIONS)} == store.processed()
    assert await committed(log, topic, topic) == [500] * PARTITIONS
    store.close()
    await log.close()


async def test_a_rebalance_waits_for_the_running_step_and_drops_what_is_queued(kafka_url: str) -> None:
    """The partition's new owner must not start while the old one still commits; what was queued is the new one's."""
    log = open_log(kafka_url, SystemClock())
    await log.start()
    topic = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(topic, PARTITIONS, retention_ms=-1)])
    await fill(log, topic, 80)
    first, second = Recorder(topic), Recorder(topic)
    second.positions = first.positions
    first.gates = {partition: asyncio.Event() for partition in range(PARTITIONS)}

    async with running(first, kafka_url, topic) as (first_runner, _):
        await until(lambda: len(first.in_step) == PARTITIONS, "a step on every partition")
        async with running(second, kafka_url, topic) as (second_runner, _):
            await asyncio.sleep(1.0)  # time in which a wrong runner would hand the partitions over
            assert 0 == second.count == first.count
            for gate in first.gates.values():
                gate.set()
            await until(lambda: first.count + second.count >= 80, "everything")
            await until(lambda: len(second_runner.assigned()) == len(first_runner.assigned()) == 2, "an even share")

    for partition in range(PARTITIONS):
        assert list(range(20)) == first.seen[partition] + second.seen[partition]
    assert await committed(log, topic, topic) == [20] * PARTITIONS
    await log.close()


async def test_gaps_in_the_offsets_hold_nothing_up(kafka_url: str) -> None:
    """Transaction markers and aborted records leave gaps; read_committed must not show what was aborted."""
    log = open_log(kafka_url, SystemClock())
    await log.start()
    topic = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(topic, PARTITIONS, retention_ms=-1)])
    producer = AIOKafkaProducer(bootstrap_servers=kafka_servers(kafka_url), transactional_id=topic)
    await producer.start()
    for number in range(6):
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"%d" % number, partition=0)
        await (producer.abort_transaction() if number % 2 else producer.commit_transaction())
    await producer.stop()
    recorder = Recorder(topic)

    async with running(recorder, kafka_url, topic):
        await until(lambda: recorder.count == 3, "the committed records")
        last = await log.append(topic, 0, b"plain")
        await until(lambda: recorder.count == 4, "the record after the gap")

    assert [0, 4, 8, last] == recorder.seen[0]
    assert [0, 4, 8, last] == [record.offset for record in await log.read(topic, 0, 0)]
    assert last + 1 == await log.committed(topic, topic, 0)
    await log.close()


async def test_a_killed_broker_that_comes_back_costs_no_record(tmp_path: Path) -> None:
    """The client reconnects by itself; every partition starts again at the processor's position."""
    broker = LocalKafka(tmp_path)
    await asyncio.to_thread(broker.start)
    log = open_log(broker.url, SystemClock())
    await log.start()
    await log.create_topics([TopicSpec("t", PARTITIONS, retention_ms=-1)])
    await fill(log, "t", 40)
    recorder = Recorder("t")

    async with running(recorder, broker.url, "t"):
        await until(lambda: recorder.count == 40, "the records before")
        broker.kill()
        await asyncio.to_thread(broker.start)
        await fill(log, "t", 40)
        await until(lambda: recorder.count == 80, "the records after")
        await until_committed(log, "t", [20] * PARTITIONS)

    assert {partition: list(range(20)) for partition in range(PARTITIONS)} == recorder.seen
    await log.close()
    await asyncio.to_thread(broker.stop)


async def test_the_runner_leaves_no_topics_of_its_own_on_the_broker(kafka_url: str) -> None:
    """Faust would create a leader topic; an operator should find only what `create_topics` made."""
    from aiokafka.admin import AIOKafkaAdminClient

    log = open_log(kafka_url, SystemClock())
    await log.start()
    topic = f"runner.{uuid.uuid4().hex}"
    await log.create_topics([TopicSpec(topic, 1, retention_ms=-1)])
    await log.append(topic, 0, b"a")
    recorder = Recorder(topic)
    async with running(recorder, kafka_url, topic):
        await until(lambda: recorder.count == 1, "the record")

    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_servers(kafka_url))
    await admin.start()
    names = [name for name in await admin.list_topics() if topic in name]
    await admin.close()

    assert [topic] == names
    await log.close()
