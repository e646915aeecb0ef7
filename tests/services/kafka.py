"""A real Kafka broker for the session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.local.kafka import LocalKafka


@pytest.fixture(scope="session")
def kafka_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The log URL of a broker that runs for the whole session; tests keep apart by their topics' and groups' names."""
    folder: Path = tmp_path_factory.mktemp("kafka")
    with LocalKafka(folder, progress=lambda message: print(message, file=sys.stderr)) as broker:
        yield broker.url
