"""Partitions: murmur2 must match every Kafka client, or an account's events land on two partitions (S1)."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import murmur2 as kafka_murmur2
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.partitioning import murmur2, partition_of
from oracle import rules


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_murmur2_is_that_of_kafkas_clients(data: bytes) -> None:
    """Each remainder of the length modulo four takes another code path."""
    assert murmur2(data) == kafka_murmur2(data) & 0xFFFFFFFF


@given(account=st.text(min_size=1, max_size=256), partitions=st.integers(1, 1024))
def test_accounts_are_in_the_partition_of_kafkas_default_partitioner(account: str, partitions: int) -> None:
    """Any text and any number of partitions; the oracle agrees."""
    expected = (kafka_murmur2(account.encode()) & 0x7FFFFFFF) % partitions

    assert partition_of(account, partitions) == expected == rules.partition_of(account, partitions)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # org.apache.kafka.common.utils.UtilsTest.testMurmur2, signed as in Java.
        pytest.param(b"21", -973932308, id="two bytes"),
        pytest.param(b"foobar", -790332482, id="six bytes"),
        pytest.param(b"a-little-bit-long-string", -985981536, id="whole words"),
        pytest.param(b"a-little-bit-longer-string", -1486304829, id="two bytes more"),
        pytest.param(b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971, id="forty-eight bytes"),
        pytest.param(b"abc", 479470107, id="three bytes"),
    ],
)
def test_murmur2_has_kafkas_published_values(data: bytes, expected: int) -> None:
    """Fixed values, because two clients could share an error."""
    assert murmur2(data) == expected & 0xFFFFFFFF
