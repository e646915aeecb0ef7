"""Writes events to Kafka directly, instead of HTTP. Needs the package confluent-kafka."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from emitter.encoding import batch, bodies, decoded
from emitter.transport import Answer

RECORD_BYTES_MAX: Final = 8_000_000
# What the promises of the emitter depend on.
FIXED: Final = {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2_random"}
_FIXED_ALIASES: Final = frozenset({*FIXED, "request.required.acks"})

# A child of a fork must not destroy the producer of its parent, whose threads it does not have.
_of_parents: Final[list[Any]] = []


class KafkaTransport:
    """A `Transport` for `Emitter` that writes to `usage.inbox`, or with `by_account` to `usage.events`.

    An event is accepted once all in-sync replicas have its record (acks=all, idempotent producer). Nothing checks the
    event before: what the gateway would reject, the workers quarantine later.
    """

    def __init__(
        self,
        servers: str,
        *,
        by_account: bool = False,
        topic: str | None = None,
        config: Mapping[str, Any] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """`servers` are `HOST:PORT`, with commas. To the inbox, a batch is one record, which the router splits. With
        `by_account` each account of a batch has a record, keyed by the account with murmur2, and no router is needed.
        `config` are settings of librdkafka, such as those for SASL and TLS. Connects at the first event. Raises
        `ImportError` without confluent-kafka, and `ValueError` for a setting that would weaken what is promised.
        """
        try:
            import confluent_kafka
        except ImportError:
            message = "KafkaTransport needs confluent-kafka: pip install 'tidemark-emitter[kafka]'"
            raise ImportError(message) from None
        refused = sorted(_FIXED_ALIASES & set(config or {}))
        if refused:
            raise ValueError(f"config: {', '.join(refused)} cannot be set: an accepted event must be on all replicas")
        self._kafka = confluent_kafka
        self._by_account = by_account
        self._topic = topic or ("usage.events" if by_account else "usage.inbox")
        self._timeout_s = timeout_s
        self._config = {
            "bootstrap.servers": servers,
            # The client writes to stderr otherwise. `stats().last_error` has the cause.
            "log_level": 0,
            "message.max.bytes": RECORD_BYTES_MAX,
            "message.timeout.ms": int(timeout_s * 1000),
            **(config or {}),
            **FIXED,
        }
        self._producer: Any = None
        self._process = 0

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:  # noqa: ARG002  # the protocol's
        """Write a batch and wait for its acknowledgements, at most for about `timeout_s`.

        Raises `ConnectionError` if none came. Other events than the acknowledged ones are `unknown`: send them again.
        """
        producer = self._own_producer()
        events = bodies(body)
        accepted = [False] * len(events)
        errors: list[Any] = []
        for key, numbers in self._records(events):
            value = batch(events[number] for number in numbers)
            try:
                producer.produce(self._topic, value, key=key, on_delivery=_noting(numbers, accepted, errors))
            except self._kafka.KafkaException as failure:
                errors.append(failure.args[0])
            except BufferError:
                # The queue of the client is full: what is in it has to be delivered first.
                break
        producer.flush(self._timeout_s + 1)
        if any(error.fatal() for error in errors):
            self._producer = None
        if any(error.code() == self._kafka.KafkaError.MSG_SIZE_TOO_LARGE for error in errors):
            refusal = {"code": "record_too_large", "message": f"the topic {self._topic} takes no record of this size"}
            return Answer(413, {}, json.dumps({"error": refusal}).encode())
        if not any(accepted):
            raise ConnectionError(f"Kafka: {errors[0].str() if errors else 'no acknowledgement in time'}")
        answers = [
            {"index": number, "status": "accepted" if is_accepted else "unknown"}
            for number, is_accepted in enumerate(accepted)
        ]
        return Answer(202 if all(accepted) else 503, {}, json.dumps({"events": answers}).encode())

    def _records(self, events: list[bytes]) -> list[tuple[bytes | None, list[int]]]:
        """The keys of the records, and the numbers of the events in each."""
        if not self._by_account:
            return [(None, list(range(len(events))))]
        by_account: dict[str, list[int]] = {}
        for number, event in enumerate(events):
            by_account.setdefault(decoded(event).account, []).append(number)
        return [(account.encode(), numbers) for account, numbers in by_account.items()]

    def _own_producer(self) -> Any:
        if self._process != os.getpid():
            _of_parents.append(self._producer)
            self._producer, self._process = None, os.getpid()
        if self._producer is None:
            self._producer = self._kafka.Producer(self._config)
        return self._producer


def _noting(numbers: list[int], accepted: list[bool], errors: list[Any]) -> Callable[[Any, Any], None]:
    def delivered(error: Any, _record: Any) -> None:
        if error is not None:
            errors.append(error)
            return
        for number in numbers:
            accepted[number] = True

    return delivered
