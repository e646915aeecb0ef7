"""Behaviour of the Kafka client library that Tidemark corrects or relies on."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.transaction_manager import TransactionManager

from pipeline.logs.kafka import KafkaLog, to_record

PARTITION = TopicPartition("usage.events", 0)


def test_a_header_without_a_value_has_an_empty_one() -> None:
    """Kafka allows such headers and any producer may write one, which must not stop every role that reads it."""
    message = SimpleNamespace(
        topic="usage.inbox", partition=0, offset=5, timestamp=7, key=None, value=b"{}", headers=[("trace", None)]
    )

    assert to_record(message).headers == (("trace", b""),)


class Cluster:
    """Cluster metadata with the leader of one partition; -1 if there is none."""

    leader = 1

    def leader_for_partition(self, _partition: TopicPartition) -> int:
        return self.leader


@pytest.mark.parametrize(("batch_ttl", "lost"), [(0.0, 1), (math.inf, 0)], ids=["as shipped", "as set here"])
async def test_a_batch_that_does_not_expire_leaves_no_gap_in_the_sequence(batch_ttl: float, lost: int) -> None:
    """After a gap the broker refuses everything, so a long time without a leader would block the partition."""
    loop, cluster = asyncio.get_running_loop(), Cluster()
    numbers = TransactionManager(None, 0)
    numbers.set_pid_and_epoch(7, 0)
    batches = MessageAccumulator(cluster, 1 << 18, 0, batch_ttl=batch_ttl, loop=loop, txn_manager=numbers)
    cluster.leader = -1
    answer = await batches.add_message(PARTITION, None, b"x", 30)
    # The caller has given up.
    answer.cancel()
    batches.drain_by_nodes([])

    assert numbers.sequence_number(PARTITION) == lost


async def test_batches_of_the_log_never_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has no setting for this."""
    log = KafkaLog(["nowhere:1"])

    async def connected(*_arguments: object) -> None:
        return

    monkeypatch.setattr(log, "_retried", connected)
    await log.start()

    producer = log._producer

    assert producer is not None
    assert producer._message_accumulator._batch_ttl == math.inf
    await log.close()
