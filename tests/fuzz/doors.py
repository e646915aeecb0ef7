"""Broken inputs at every door, with valid events between them: `python -m tests.fuzz doors --inputs 1000000`.

One gateway lives through the whole run. Each round has stores of its own, and a worker, an archive, a router and a
mirror that read all that came in. After each round:

- No request got a failure of the gateway, and each refusal has a code that docs/http-api.md names.
- Each event of a request is accepted or rejected with a reason. The log has as many events as were accepted, and the
  quarantine as many as were rejected.
- The router forwards each event of a record, or quarantines what only Tidemark may write.
- Each event in the log is counted, found to be a duplicate, deferred or unmetered, or stands in the quarantine with a
  reason that docs/errors.md names, at its place and with its bytes.
- The account of the valid events has counted what the oracle says, which has read the valid events only.
- Each signed delivery of Stripe is kept or quarantined, and the mirror knows all valid ones.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from fastapi import FastAPI
from pydantic import SecretStr

from aggregators.codec import parse_value
from aggregators.columns import MakerOf, PythonColumns
from aggregators.decode import decode
from aggregators.native.columns import NativeColumns
from aggregators.partitioning import partition_of
from oracle.model import Oracle
from pipeline.http.api_keys import KeyFile, Role, create_key
from pipeline.http.app import GatewayDependencies, create_gateway
from pipeline.ingest.archive import ArchiveProcessor
from pipeline.ingest.router import RouterProcessor, structured_value
from pipeline.logs.quarantine import Header
from pipeline.native.load import load
from pipeline.settings import Settings
from schemas.control import CONTROL_HEADER, Genesis
from schemas.log import BILLING_EVENTS_TOPIC, EVENTS_TOPIC, INBOX_TOPIC, REJECTED_TOPIC, Record
from schemas.meters import MeterSet
from schemas.reasons import Reason
from sinks.clickhouse.fake import FakeClickHouse
from sinks.redis.fake import FakeLiveView
from tests.traffic.malformed import BODY_BYTES_MAX, GOOD, PARTITIONS, WEBHOOK_SECRET, Door, Malformed, Sent
from tests.traffic.odd_records import METER_SET, NOW_MS
from tests.worlds.billing import SCOPE, BillingWorld
from tests.worlds.clock import ManualClock
from tests.worlds.deployment import SECRET

ROUND: Final = 1_000
AT_ONCE: Final = 50
TRIES_MAX: Final = 150
# Where failing inputs are kept; git ignores the folder.
KEPT: Final = Path(".tidemark") / "fuzz"
PATHS: Final = {Door.HTTP: "/v1/events", Door.WEBHOOK: "/v1/stripe/webhook"}
DOCUMENTED: Final = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
REASONS: Final = frozenset(reason.value for reason in Reason)


class Wrong(Exception):
    """An input did not get what it must."""


class Tally(NamedTuple):
    """What became of inputs: `refused` requests and deliveries by their code, `events` of requests by their answer, and
    what the worker made of all events in the log."""

    inputs: int
    refused: Counter[str]
    events: Counter[str]
    counters: Counter[str]

    def __add__(self, other: object) -> Tally:
        assert isinstance(other, Tally)
        pairs = zip(self[1:], other[1:], strict=True)
        return Tally(self.inputs + other.inputs, *(Counter(a) + Counter(b) for a, b in pairs))


NOTHING: Final = Tally(0, Counter(), Counter(), Counter())


class _LogOfRound:
    """The log of the round that runs."""

    log: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)


class Gateway(NamedTuple):
    """A gateway that lives longer than its stores, and a key for events."""

    app: FastAPI
    log: _LogOfRound
    key: str


@contextmanager
def opened_gateway() -> Iterator[Gateway]:
    """A gateway whose log is exchanged with each round."""
    with TemporaryDirectory() as name:
        folder, clock, log = Path(name), ManualClock(NOW_MS), _LogOfRound()
        secrets, keys = folder / "webhook_secrets", folder / "keys.jsonl"
        secrets.write_text(f"{WEBHOOK_SECRET}\n")
        key = create_key(keys, Role.INGEST, clock)[0]
        meter_set = MeterSet.model_validate(METER_SET)

        async def in_force() -> MeterSet | None:
            return meter_set

        settings = Settings(
            body_bytes_max=BODY_BYTES_MAX, secret=SecretStr(SECRET.decode()), stripe_webhook_secrets=secrets
        )
        genesis = Genesis(log_id="fuzz", partitions=PARTITIONS, stripe_account="acct_ours")
        given: dict[str, Any] = {"log": log, "genesis": genesis, "settings": settings, "clock": clock}
        app = create_gateway(GatewayDependencies(**given, keys=KeyFile(keys), meter_set=in_force))
        yield Gateway(app, log, key)


async def ask(gateway: Gateway, sent: Sent) -> tuple[int, dict[str, Any]]:
    """Send one request to the app without a server; the status and the JSON of the answer."""
    headers = [*sent.headers, (b"authorization", b"Bearer " + gateway.key.encode())]
    path = PATHS[sent.door]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "root_path": "",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    messages = [{"type": "http.request", "body": sent.body, "more_body": sent.is_cut}]
    answers = list[Any]()

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answers.append(message)

    await gateway.app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in answers[1:])
    return int(answers[0]["status"]), json.loads(content)


class Round:
    """One round: fresh stores, and all that reads them."""

    def __init__(self, gateway: Gateway, library: ctypes.CDLL | None) -> None:
        self._gateway = gateway
        self._world = BillingWorld(NOW_MS, PARTITIONS)
        self._library = library
        self._read_to: dict[int, int] = {}
        self._in_log = 0
        self.refused, self.events = Counter[str](), Counter[str]()

    async def run(self, inputs: Sequence[Sent]) -> Tally:
        """Send, have everything read, and judge. Raises `Wrong`, or what the product raises."""
        world = self._world
        await world.start(METER_SET)
        await world.tables.migrate(SCOPE, world.log_id)
        self._gateway.log.log = world.log
        for partition in range(PARTITIONS):
            self._read_to[partition] = (await world.log.bounds(EVENTS_TOPIC, partition)).next
        by_door = {door: [each for each in inputs if each.door is door] for door in Door}
        await self._requests(by_door[Door.HTTP])
        await self._deliveries(by_door[Door.WEBHOOK])
        await self._inbox(by_door[Door.INBOX])
        await self._records(by_door[Door.LOG])
        counters = await self._fold()
        await self._judge(counters)
        self._judge_valid(inputs)
        return Tally(len(inputs), self.refused, self.events, counters)

    async def _answers(self, inputs: Sequence[Sent]) -> list[tuple[Sent, int, dict[str, Any]]]:
        found = list[tuple[Sent, int, dict[str, Any]]]()
        for start in range(0, len(inputs), AT_ONCE):
            some = inputs[start : start + AT_ONCE]
            answers = await asyncio.gather(*(ask(self._gateway, each) for each in some))
            found += [(each, *answer) for each, answer in zip(some, answers, strict=True)]
        return found

    def _is_refused(self, sent: Sent, status: int, answer: dict[str, Any]) -> bool:
        _require(status < 500, f"{status} {answer}", sent)
        if "error" not in answer:
            return False
        code = answer["error"]["code"]
        _require(f"`{code}`" in DOCUMENTED and answer["error"]["message"], f"an unknown refusal: {answer}", sent)
        _require(not (sent.event or sent.delivery), f"a valid input is refused: {answer}", sent)
        self.refused[code] += 1
        return True

    async def _requests(self, inputs: Sequence[Sent]) -> None:
        accepted, rejected = 0, 0
        for sent, status, answer in await self._answers(inputs):
            if self._is_refused(sent, status, answer):
                continue
            for event in answer["events"]:
                said = event["status"]
                if said == "rejected":
                    is_told = event["reason"] in REASONS and event["detail"] and event["remedy"]
                    _require(is_told, f"a rejection without a reason: {event}", sent)
                self.events[said if said == "accepted" else event["reason"]] += 1
            sums = answer["accepted"], answer["rejected"]
            _require(sum(sums) == len(answer["events"]), f"sums: {sums} of {len(answer['events'])}", sent)
            accepted, rejected = accepted + sums[0], rejected + sums[1]
        _require(await self._appended() == accepted, f"{accepted} events were accepted, and the log has others")
        _require(await self._count(REJECTED_TOPIC) == rejected, f"{rejected} were rejected: the quarantine has others")

    async def _deliveries(self, inputs: Sequence[Sent]) -> None:
        before, taken = await self._count(REJECTED_TOPIC), 0
        for sent, status, answer in await self._answers(inputs):
            taken += not self._is_refused(sent, status, answer)
        kept, put_aside = await self._count(BILLING_EVENTS_TOPIC), await self._count(REJECTED_TOPIC) - before
        _require(kept + put_aside == taken, f"{taken} deliveries were taken, {kept} kept, {put_aside} put aside")
        await self._world.process()
        valid = [sent.delivery for sent in inputs if sent.delivery]
        tables = self._world.tables
        # An event of a customer who has no account yet is held.
        lost = await tables.unknown(valid) - await tables.held_among(valid)
        _require(not lost, f"the mirror does not know {sorted(lost)[:3]}")

    async def _inbox(self, inputs: Sequence[Sent]) -> None:
        expected, log, before = 0, self._world.log, await self._count(REJECTED_TOPIC)
        for sent in inputs:
            headers = tuple((name.decode("latin-1"), text) for name, text in sent.headers)
            await log.append(INBOX_TOPIC, 0, sent.body, headers=headers)
            expected += _events_of(Record(INBOX_TOPIC, 0, 0, NOW_MS, None, sent.body, headers))
        router = RouterProcessor(log)
        await router.start_offset(0)
        offset = 0
        while records := await log.read(INBOX_TOPIC, 0, offset, 100):
            await router.step(0, records)
            offset = records[-1].next_offset
        found, refused = await self._appended(), await self._count(REJECTED_TOPIC) - before
        told = f"the inbox has {expected} events, {found} were forwarded, {refused} refused"
        _require(found + refused == expected, told)

    async def _records(self, inputs: Sequence[Sent]) -> None:
        for sent in inputs:
            headers = tuple((name.decode("latin-1"), text) for name, text in sent.headers)
            await self._world.log.append(EVENTS_TOPIC, sent.partition, sent.body, headers=headers)
        await self._appended()

    async def _fold(self) -> Counter[str]:
        """Let the worker and the archive read the log; the worker's counters."""
        world, library = self._world, self._library
        maker_of: MakerOf = PythonColumns if library is None else partial(NativeColumns, library)
        await world.fold_all(world.rollup(maker_of=maker_of))
        archive = ArchiveProcessor(world.log, FakeClickHouse(), SECRET, native=library)
        for partition in range(PARTITIONS):
            offset = await archive.start_offset(partition)
            while records := await world.log.read(EVENTS_TOPIC, partition, offset):
                await archive.step(partition, records)
                offset = records[-1].next_offset
        found = Counter[str]()
        for stored in _live(world).server.partitions.values():
            assert stored.checkpoint is not None
            found.update(stored.checkpoint.counters._asdict())
        return found

    async def _judge(self, counters: Counter[str]) -> None:
        """Every event in the log has an end, and those that do not count are in the quarantine."""
        outcomes = counters.total() - counters["received"]
        _require(counters["received"] == self._in_log == outcomes, f"{self._in_log} events in the log: {counters}")
        rows = {}
        for partition in range(PARTITIONS):
            values = {each.offset: each.value or b"" for each in await self._world.records(partition)}
            for row in await self._world.records(partition, REJECTED_TOPIC):
                headers = dict(row.headers)
                _require(headers[Header.REASON].decode() in REASONS, f"an unknown reason: {headers}")
                if Header.OFFSET in headers and headers[Header.TOPIC] == EVENTS_TOPIC.encode():
                    offset = int(headers[Header.OFFSET])
                    # An empty record with a forged header stands there as an empty object.
                    _require(
                        (row.value or b"") in (values[offset] or b"{}"), f"other bytes in the quarantine: {headers}"
                    )
                    rows[partition, offset, headers[Header.INDEX]] = row
        put_aside = counters["rejected"] + counters["late"]
        _require(len(rows) == put_aside, f"{put_aside} events are not counted, {len(rows)} in the quarantine")

    def _judge_valid(self, inputs: Sequence[Sent]) -> None:
        """The valid events are counted as the oracle counts them alone."""
        oracle, home = Oracle(METER_SET, partitions=PARTITIONS), partition_of(GOOD, PARTITIONS)
        for offset, sent in enumerate(each for each in inputs if each.event):
            oracle.feed(home, offset, NOW_MS, sent.event)
        expected = {(meter, period[0]): minor for (_, meter, period), minor in oracle.totals.items()}
        found = {
            (meter, key.period_start_ms): parse_value(text).minor
            for key, fields in _live(self._world).server.partitions[home].totals.items()
            for meter, text in fields.items()
            if key.account == GOOD
        }
        _require(found == expected, f"the valid events: {expected}, counted: {found}")

    async def _appended(self) -> int:
        """How many events are new in the log."""
        before = self._in_log
        for partition, start in self._read_to.items():
            offset = start
            while records := await self._world.log.read(EVENTS_TOPIC, partition, offset):
                self._in_log += sum(_events_of(record) for record in records)
                offset = records[-1].next_offset
            self._read_to[partition] = offset
        return self._in_log - before

    async def _count(self, topic: str) -> int:
        return sum([len(await self._world.records(each, topic)) for each in range(PARTITIONS)])


def _events_of(record: Record) -> int:
    """How many events a record has. One that cannot be split, or whose control header nobody signed, is one."""
    if any(name == CONTROL_HEADER for name, _ in record.headers) and record.topic == EVENTS_TOPIC:
        return 1
    value = structured_value(record) if record.topic == INBOX_TOPIC else record.value or b""
    return decode(value, len(value) + 1).received


def _live(world: BillingWorld) -> FakeLiveView:
    assert isinstance(world.store, FakeLiveView)
    return world.store


def _require(condition: object, message: str, sent: Sent | None = None) -> None:
    if not condition:
        raise Wrong(f"{message[:2000]}{'' if sent is None else f' to {str(sent)[:2000]}'}")


def play(gateway: Gateway, inputs: Sequence[Sent], library: ctypes.CDLL | None = None) -> Tally:
    """One round."""
    return asyncio.run(Round(gateway, library).run(inputs))


def resident_bytes() -> int:
    """The memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Share(NamedTuple):
    """What one process did, and its memory after a tenth of the rounds and at the end."""

    tally: Tally
    early_bytes: int
    late_bytes: int


def fuzz_doors(seeds: Sequence[int], count: int) -> Share:
    """One round of so many broken inputs for each seed, by turns with the C core and without. Raises `Wrong`."""
    logging.disable(logging.CRITICAL)
    library, tally, early_bytes = load(enabled=True).library, NOTHING, 0
    with opened_gateway() as gateway:
        for number, seed in enumerate(seeds):
            inputs = Malformed(seed).inputs(count)
            tally += judged(gateway, inputs, library if seed % 2 else None, f"seed-{seed}")
            if number == len(seeds) // 10:
                early_bytes = resident_bytes()
    return Share(tally, early_bytes, resident_bytes())


def judged(gateway: Gateway, inputs: Sequence[Sent], library: ctypes.CDLL | None, name: str) -> Tally:
    """One round. Keeps the fewest inputs that fail, and raises `Wrong` with the command that sends them again."""
    try:
        return play(gateway, inputs, library)
    except Exception as error:
        few = fewest(lambda some: not _fails(gateway, some, library), inputs)
        KEPT.mkdir(parents=True, exist_ok=True)
        path = KEPT / f"{name}.json"
        path.write_text(json.dumps([_packed(each) for each in few], indent=1))
        core = "" if library is None else " with the C core"
        raise Wrong(
            f"{type(error).__name__}: {error}\nreplay{core}: python -m tests.fuzz doors --replay {path}"
        ) from error


def fewest(is_good: Callable[[Sequence[Sent]], bool], inputs: Sequence[Sent]) -> Sequence[Sent]:
    """A part of the inputs that still fails and is not smaller for want of tries."""
    kept, size, tries = list(inputs), len(inputs) // 2, 0
    while size and tries < TRIES_MAX:
        for start in range(0, len(kept), size):
            rest, tries = kept[:start] + kept[start + size :], tries + 1
            if rest and not is_good(rest):
                kept = rest
                break
        else:
            size //= 2
    return kept


def replayed(path: Path) -> Tally:
    """The inputs of a file, once without the C core and once with it."""
    inputs = [_unpacked(each) for each in json.loads(path.read_text())]
    with opened_gateway() as gateway:
        return play(gateway, inputs) + play(gateway, inputs, load(enabled=True).library)


def _fails(gateway: Gateway, inputs: Sequence[Sent], library: ctypes.CDLL | None) -> bool:
    try:
        play(gateway, inputs, library)
    except Exception:  # noqa: BLE001 - the product may raise anything
        return True
    return False


def _packed(sent: Sent) -> dict[str, Any]:
    """An input as JSON, with its bytes in base64."""
    encoded = {"body": b64encode(sent.body).decode(), "event": b64encode(sent.event).decode()}
    headers = [[b64encode(part).decode() for part in pair] for pair in sent.headers]
    return {**sent._asdict(), **encoded, "headers": headers}


def _unpacked(packed: dict[str, Any]) -> Sent:
    headers = tuple((b64decode(name), b64decode(text)) for name, text in packed.pop("headers"))
    given = {name: b64decode(packed.pop(name)) for name in ("body", "event")}
    return Sent(**{**packed, **given, "door": Door(packed["door"]), "headers": headers})
