"""A count by the oracle from the files that producers wrote before sending."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oracle.model import Oracle
from oracle.records import Place
from oracle.rules import RejectedError, decode, time_us_of


def from_producer_files(
    paths: Iterable[Path | str],
    meter_set: Mapping[str, Any],
    bindings: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Oracle:
    """Count the events of producer files with one JSON line `{"sent_at": …, "events": […]}` per request.

    `sent_at` (int milliseconds, or RFC 3339) replaces stream time. Lines of all files are processed in the order of
    `sent_at`. Identities for which the real order of arrival matters are in `order_sensitive`. Deferred events get
    their dedup decision at once. Totals and `by_dimension` are comparable with the product's; cells are not, because
    the files have no arrival buckets. `bindings` are in force from the start. Ignores an incomplete last line of a
    killed producer; raises ValueError for any other bad line.
    """
    oracle = Oracle(meter_set)
    for account, known in (bindings or {}).items():
        oracle.bind_from_the_start(account, known)
    lines: list[tuple[int, str, list[Any]]] = []
    for path in paths:
        for raw in Path(path).read_bytes().splitlines(keepends=True):
            try:
                (line,) = decode(raw)
                sent_at, events = line["sent_at"], line["events"]
                sent_ms = sent_at if isinstance(sent_at, int) else time_us_of(sent_at) // 1000
            except (RejectedError, ValueError, KeyError, TypeError) as error:
                if raw.endswith(b"\n"):
                    raise ValueError(f"{path}: not a producer's line: {raw[:200]!r}") from error
                continue
            lines.append((sent_ms, str(path), events))
    for offset, (sent_ms, _, events) in enumerate(sorted(lines, key=lambda line: line[:2])):
        oracle.tick(0, sent_ms)
        for index, body in enumerate(events):
            oracle.take(Place(0, offset, index), body)
            oracle.resolve(Place(0, offset, index), offset, index)
    return oracle
