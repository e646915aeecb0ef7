"""The oracle, told what producers wrote down before they sent it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oracle.model import Oracle, Place
from oracle.rules import RejectedError, decode, time_us_of


def from_producer_files(
    paths: Iterable[Path | str],
    meter_set: Mapping[str, Any],
    bindings: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Oracle:
    """Recount from what producers wrote down before sending: one JSON line `{"sent_at": …, "events": […]}` a request.

    `sent_at` (int milliseconds, or RFC 3339) stands in for stream time; lines are taken in its order, whatever file
    they are in, so that totals do not depend on the order of files or lines. Where it would matter which of an
    identity's arrivals the log took first, the identity is in `order_sensitive`. A deferred event has its decision at
    once. Totals and `by_dimension` may be
    compared with a pipeline's; cells may not, since arrival buckets are the log's own. `bindings` are in force from
    the start. A last line that a killed producer left half-written is ignored; any other bad line raises ValueError.
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
