"""Records whose header names are not UTF-8, as a producer in C may write them."""

from __future__ import annotations

import inspect
import struct
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy
from aiokafka.record.util import calc_crc32c

from pipeline.logs.header_names import LenientBatch, ReadableRecords
from pipeline.logs.kafka import KafkaLog, to_record
from pipeline.runner.runner import RunnerSettings
from tests.traffic.header_names import raw_name
from tests.worlds.runner import client

PARTITION = TopicPartition("usage.inbox", 0)
START_MS = 1_760_000_000_000
UNCOMPRESSED, GZIP, LZ4 = 0, 1, 3
LOG_APPEND_TIME, TRANSACTIONAL, CONTROL = 0x08, 0x10, 0x20
SENDER, OTHER = 7, 8
READ_COMMITTED = 1
ABORTED, COMMITTED = struct.pack(">HH", 0, 0), struct.pack(">HH", 0, 1)
Headers = list[tuple[str, bytes | None]]


BAD = raw_name(b"\xff\xfe")
GOOD: Headers = [("trace", b"1"), ("empty", None), ("größe", b"")]


def batch(
    first_offset: int,
    *headers: Headers,
    key: bytes | None = None,
    codec: int = UNCOMPRESSED,
    attributes: int = 0,
    sender: int = SENDER,
) -> bytes:
    """A batch from the library's own builder, one record per list of headers, as the broker stores it."""
    builder = _DefaultRecordBatchBuilderPy(
        magic=2, compression_type=codec, is_transactional=False, producer_id=sender, producer_epoch=0,
        base_sequence=0, batch_size=1 << 20,
    )  # fmt: skip
    for number, each in enumerate(headers):
        value = None if number % 3 == 2 else b"value %d " % number * 50
        assert builder.append(number, START_MS + number, key or (b"k" if number % 2 else None), value, each)
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, first_offset)
    struct.pack_into(">h", data, 21, struct.unpack_from(">h", data, 21)[0] | attributes)
    struct.pack_into(">I", data, 17, calc_crc32c(bytes(data[21:])))
    return bytes(data)


def reading(data: bytes, offset: int = 0, aborted: Any = ()) -> Any:
    """The library's iterator over a broker's answer."""
    return fetcher.PartitionRecords(
        PARTITION, fetcher.MemoryRecords(data), list(aborted), offset, None, None, True, READ_COMMITTED
    )


@pytest.fixture
async def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has opened a log, which installs the repair."""
    monkeypatch.setattr(fetcher, "MemoryRecords", fetcher.MemoryRecords)
    log = KafkaLog(["nowhere:1"])

    async def connected(*_arguments: object) -> None:
        return

    monkeypatch.setattr(log, "_retried", connected)
    await log.start()
    await log.close()


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("codec", [UNCOMPRESSED, GZIP, LZ4], ids=["uncompressed", "gzip", "lz4"])
@pytest.mark.parametrize("at", [0, 1, 3], ids=["first", "second", "last"])
def test_a_header_name_that_is_not_text_stops_neither_its_record_nor_the_others(codec: int, at: int) -> None:
    """One such record would stop every reader of its topic for good, even after a restart."""
    headers: list[Headers] = [GOOD] * 4
    headers[at] = [("trace", b"1"), (BAD, b"2"), ("empty", None)]
    answer = batch(10, *headers, codec=codec) + batch(14, GOOD, codec=codec)
    records = reading(answer, 10)

    converted = [to_record(message) for message in records]

    clean: list[Headers] = [GOOD] * 4
    clean[at] = [("trace", b"1"), ("\ufffd\ufffd", b"2"), ("empty", None)]
    expected = [to_record(message) for message in reading(batch(10, *clean) + batch(14, GOOD), 10)]
    assert [10, 11, 12, 13, 14] == [record.offset for record in expected]
    assert converted == expected
    assert records.next_fetch_offset == 15


@pytest.mark.usefixtures("started")
def test_reading_may_begin_and_be_interrupted_within_such_a_batch() -> None:
    """A consumer seeks to any offset, and fetches as many records at a time as its limits allow."""
    records = reading(batch(10, GOOD, [(BAD, b"1")], GOOD, [(BAD, b"2")]), 11)

    offsets = [next(records).offset, records.next_fetch_offset, next(records).offset, next(records).offset]

    assert offsets == [11, 12, 12, 13]
    assert list(records) == []


@pytest.mark.usefixtures("started")
def test_log_append_time_applies_to_such_a_record_too() -> None:
    """I7: stream time decides closing and expiry."""
    (first, second) = reading(batch(0, GOOD, [(BAD, b"1")], attributes=LOG_APPEND_TIME))

    assert (first.timestamp, second.timestamp) == (START_MS + 1, START_MS + 1)


@pytest.mark.usefixtures("started")
def test_aborted_transactions_and_their_markers_are_still_skipped() -> None:
    """The positions advance past them as before."""
    answer = (
        batch(0, [(BAD, b"1")], GOOD, attributes=TRANSACTIONAL)
        + batch(2, [(BAD, b"1")], attributes=TRANSACTIONAL, sender=OTHER)
        + batch(3, [], key=ABORTED, attributes=TRANSACTIONAL | CONTROL)
        + batch(4, [(BAD, b"1")], attributes=TRANSACTIONAL)
        + batch(5, [], key=COMMITTED, attributes=TRANSACTIONAL | CONTROL)
    )
    records = reading(answer, aborted=[(SENDER, 0)])

    assert [2, 4] == [record.offset for record in records]
    assert records.next_fetch_offset == 6


@pytest.mark.usefixtures("started")
def test_a_batch_cut_off_at_the_end_of_an_answer_is_left_for_the_next_one() -> None:
    """The broker cuts its answers at any byte."""
    whole = batch(0, [(BAD, b"1")])

    records = fetcher.MemoryRecords(whole + whole[:-1])

    assert records.size_in_bytes() == 2 * len(whole) - 1
    assert records.has_next()
    assert [record.offset for record in records.next_batch()] == [0]
    assert not records.has_next()
    assert records.next_batch() is None


@pytest.mark.usefixtures("started")
def test_corrupt_bytes_are_still_refused() -> None:
    """Only names are read leniently, not bytes that a disk or a network changed."""
    changed = bytearray(batch(0, [(BAD, b"1")]))
    changed[-1] ^= 1
    with pytest.raises(CorruptRecordException, match="Invalid CRC"):
        list(reading(bytes(changed)))

    longer = batch(0, [(BAD, b"1")]) + b"\x00"
    longer = longer[:8] + struct.pack(">i", len(longer) - 12) + longer[12:]
    with pytest.raises(CorruptRecordException):
        list(LenientBatch(memoryview(longer)))

    misleading = batch(0, [(BAD, b"1")]).replace(b"\x04\xff\xfe", b"\x08\xff\xfe")
    with pytest.raises(CorruptRecordException):
        list(LenientBatch(memoryview(misleading)))


def test_both_parsers_agree_on_records_that_both_can_read() -> None:
    """Tidemark's parser takes over in the middle of a batch, so the rest of a record must not depend on the parser."""
    data = batch(10, GOOD, [], [("trace", b"x" * 300)], GOOD, codec=GZIP)

    def parts(records: Any) -> list[tuple[Any, ...]]:
        return [
            (each.offset, each.timestamp, each.timestamp_type, each.key, each.value, list(each.headers), each.checksum)
            for each in records
        ]

    assert parts(DefaultRecordBatch(data)) == parts(LenientBatch(memoryview(data)))


def test_the_library_takes_its_batches_from_the_place_that_is_patched() -> None:
    """Another version of the library may use another place, and the repair would have no effect."""
    assert "MemoryRecords(" in inspect.getsource(fetcher.Fetcher._proc_fetch_request)
    assert hasattr(fetcher, "MemoryRecords")


async def test_a_member_of_a_group_reads_such_records_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group member uses another client than the log."""
    monkeypatch.setattr(fetcher, "MemoryRecords", None)
    consumer = await client(RunnerSettings("router"))

    assert fetcher.MemoryRecords is ReadableRecords
    await consumer.stop()
