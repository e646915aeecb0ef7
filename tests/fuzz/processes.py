"""Broken inputs to real processes, over sockets and a real broker: `python -m tests.fuzz processes --inputs 4000`.

`tidemark dev --kafka` runs in a folder of its own. No process may end, print a stack trace or grow, and what became of
the inputs is read from the broker and from Redis.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from aggregators.codec import parse_value
from aggregators.decode import decode
from aggregators.partitioning import partition_of
from pipeline.logs.quarantine import Header
from pipeline.open import open_base, open_live_view
from pipeline.settings import load_settings
from schemas.control import CONTROL_HEADER, SIGNATURE_HEADER
from schemas.live_view import LiveView
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC, REJECTED_TOPIC, Log, Record
from schemas.rollup import TotalKey
from tests.fuzz.doors import REASONS, Wrong
from tests.integration.deployment import running_dev
from tests.traffic.malformed import GOOD, Door, Malformed, Sent
from tests.traffic.odd_records import METER_SET

AT_ONCE: Final = 16
COUNTED_S: Final = 120.0
ANSWER_S: Final = 60.0
POLL_S: Final = 0.1
GROWTH_MEBIBYTES_MAX: Final = 64
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """A process of the deployment and its memory."""

    name: str
    mebibytes: int


def fuzz_processes(seed: int, count: int) -> str:
    """Send so many broken inputs, and the valid ones between them. Raises `Wrong`."""
    inputs = [each for each in Malformed(seed).inputs(count) if each.door is not Door.WEBHOOK]
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "meters.yaml").write_text(json.dumps(METER_SET))
        ports = ("--port", "0", "--clickhouse-port", "0")
        with running_dev(folder, "--no-example", "--kafka", "--meters", "meters.yaml", *ports) as dev:
            document = json.loads((folder / ".tidemark" / "dev.json").read_text())
            assert dev.pid is not None
            return asyncio.run(_sent(document, dev.pid, inputs))


async def _sent(document: Mapping[str, Any], dev_pid: int, inputs: Sequence[Sent]) -> str:
    given = {name.removeprefix("TIDEMARK_").lower(): text for name, text in document["environment"].items()}
    settings = load_settings(**given)
    base, view = await open_base(settings), open_live_view(settings)
    try:
        door = _Deployment(document, base.log, view, settings.partitions)
        await door.send(inputs[: len(inputs) // 4])
        early = _children(dev_pid)
        await door.send(inputs[len(inputs) // 4 :])
        late = _children(dev_pid)
        counters = await door.judge(inputs)
    finally:
        await view.close()
        await base.log.close()
    if gone := early.keys() - late.keys():
        raise Wrong(f"ended: {[early[pid].name for pid in gone]}")
    grown = [late[pid] for pid in early if late[pid].mebibytes > early[pid].mebibytes + GROWTH_MEBIBYTES_MAX]
    if grown:
        raise Wrong(f"the memory grew from {early} to {late}")
    memory = ", ".join(f"{found.name} {found.mebibytes} to {late[pid].mebibytes}" for pid, found in early.items())
    told = ", ".join(f"{name} {number}" for name, number in [*door.answers.items(), *counters.items()])
    return f"{len(inputs)} inputs, nothing lost, every valid event exact\n  {told}\n  memory in MiB: {memory}"


class _Deployment:
    """The doors of a running deployment, and where its views are read."""

    def __init__(self, document: Mapping[str, Any], log: Log, view: LiveView, partitions: int) -> None:
        self._document = document
        self._log = log
        self._view = view
        self._partitions = partitions
        self._rejected = 0
        self.answers = Counter[str]()

    async def send(self, inputs: Sequence[Sent]) -> None:
        """Requests over sockets, and records into the broker."""
        requests = [each for each in inputs if each.door is Door.HTTP]
        for start in range(0, len(requests), AT_ONCE):
            await asyncio.gather(*(self._request(each) for each in requests[start : start + AT_ONCE]))
        for sent in inputs:
            headers = tuple((name.decode("latin-1"), text) for name, text in sent.headers)
            if sent.door is Door.INBOX:
                await self._log.append(INBOX_TOPIC, 0, sent.body, headers=headers)
            elif sent.door is Door.LOG:
                home = partition_of(GOOD, self._partitions) if sent.event else sent.partition % self._partitions
                await self._log.append(EVENTS_TOPIC, home, sent.body, headers=headers)

    async def _request(self, sent: Sent) -> None:
        status, answer = await self._ask(sent)
        self.answers[str(status or "cut")] += 1
        if status >= 500 or (sent.event and status not in (202, 207)):
            raise Wrong(f"{status} {answer} to {sent}")
        self._rejected += answer.get("rejected", 0)

    async def _ask(self, sent: Sent) -> tuple[int, dict[str, Any]]:
        """Send the bytes as they are; (0, {}) if the client goes away."""
        url, key = urlsplit(self._document["gateway_url"]), self._document["api_key"].encode()
        ours = ((b"host", b"fuzz"), (b"connection", b"close"), (b"authorization", b"Bearer " + key))
        lines = [b"%s: %s\r\n" % pair for pair in (*ours, *sent.headers)]
        lines.append(b"content-length: %d\r\n\r\n" % (len(sent.body) + sent.is_cut))
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(b"".join((b"POST /v1/events HTTP/1.1\r\n", *lines, sent.body)))
            if sent.is_cut:
                return 0, {}
            async with asyncio.timeout(ANSWER_S):
                head, _, content = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        # Bytes that are no HTTP are answered by the server, in plain text.
        return int(head.split(b" ", 2)[1]), json.loads(content) if b"application/json" in head else {}

    async def judge(self, inputs: Sequence[Sent]) -> Counter[str]:
        """Wait until all is counted, and compare. Returns the worker's counters."""
        forwarded = sum(each.door is Door.INBOX for each in inputs)
        tokens = sum(json.loads(each.event)["data"]["tokens"] for each in inputs if each.event)
        deadline_s = asyncio.get_running_loop().time() + COUNTED_S
        while True:
            received, counters = await self._received(), await self._counters()
            outcomes = counters.total() - counters["received"]
            rows, counted = await self._rows(), await self._tokens()
            put_aside = counters["rejected"] + counters["late"]
            found = received, outcomes, len(rows["worker"]), len(rows["gateway"]), counted
            expected = counters["received"], received, put_aside, self._rejected, tokens
            if found == expected and received > forwarded:
                return counters
            if asyncio.get_running_loop().time() > deadline_s:
                raise Wrong(f"after {COUNTED_S:.0f} s: {found}, expected {expected}")
            await asyncio.sleep(POLL_S)

    async def _received(self) -> int:
        """How many events the log has."""
        return sum([_events_of(each) for each in await self._all(EVENTS_TOPIC)])

    async def _counters(self) -> Counter[str]:
        found = Counter[str]()
        for partition in range(self._partitions):
            checkpoint = await self._view.state.load_checkpoint(partition)
            assert checkpoint is not None
            found.update(checkpoint.counters._asdict())
        return found

    async def _rows(self) -> dict[str, set[tuple[object, ...]]]:
        """The entries of the quarantine by their writer."""
        rows: dict[str, set[tuple[object, ...]]] = {"worker": set(), "gateway": set()}
        for row in await self._all(REJECTED_TOPIC):
            headers = dict(row.headers)
            if headers[Header.REASON].decode() not in REASONS:
                raise Wrong(f"an unknown reason: {headers}")
            if headers[Header.TOPIC] == INBOX_TOPIC.encode():
                continue
            if Header.OFFSET in headers:
                place = headers[Header.PARTITION], headers[Header.OFFSET], headers[Header.INDEX]
                rows["worker"].add(place)
            else:
                rows["gateway"].add((row.partition, row.offset))
        return rows

    async def _tokens(self) -> int:
        """What the account of the valid events has, from the live view."""
        partition, cursor, keys = partition_of(GOOD, self._partitions), 0, set[TotalKey]()
        while True:
            cursor, some = await self._view.totals.total_keys(partition, cursor, 1_000)
            keys |= {key for key in some if key.account == GOOD}
            if not cursor:
                break
        _, totals = await self._view.totals.account_totals(partition, sorted(keys))
        return sum(parse_value(meters.get("tokens", "0")).minor for meters in totals.values())

    async def _all(self, topic: str) -> list[Record]:
        found = list[Record]()
        for partition in range(self._partitions):
            bounds = await self._log.bounds(topic, partition)
            offset = bounds.first
            while offset < bounds.next and (records := await self._log.read(topic, partition, offset)):
                found += records
                offset = records[-1].next_offset
        return found


def _events_of(record: Record) -> int:
    names = {name for name, _ in record.headers}
    if CONTROL_HEADER in names:
        # Genuine control records are no events; a forged one is.
        return SIGNATURE_HEADER not in names
    return decode(record.value, len(record.value or b"") + 1).received


def _children(pid: int) -> dict[int, Process]:
    """The processes that run Python under another one, by their ids."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"pipeline.cli" in words:
                pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
                found[int(child)] = Process(words[-2].decode(), pages * PAGE_BYTES >> 20)
    return found
