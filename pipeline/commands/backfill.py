"""Sends the events of a file to the gateway, with counts first, and goes on where it stopped.

An event keeps its identity, so what is sent twice counts once. A progress file beside the file says how many rows have
an answer; it only saves time.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from hashlib import blake2b, file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from schemas.errors import InvalidInput

BATCH_EVENTS: Final = 1_000
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
SOURCE: Final = "tidemark-backfill"
# Columns that are fields of the event. All others are its data.
FIELDS: Final = ("id", "account", "type", "time", "source")
_COUNTS: Final = ("accepted", "duplicates", "unmetered", "rejected")
FORMATS: Final = {".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv", ".parquet": "parquet"}

# Posts events and returns the gateway's answer; repeats what may be repeated.
Send = Callable[[Sequence[bytes]], Mapping[str, Any]]


class Shape(NamedTuple):
    """How rows of a CSV or Parquet file become events. `ids`: the columns that name a row. `type`: of all rows, or ""
    if a column has it."""

    ids: tuple[str, ...] = ("id",)
    type: str = ""


class Progress(NamedTuple):
    """What the answers so far say. `rejected_bytes`: the size of the file of rejected events."""

    sha256: str
    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    unmetered: int = 0
    rejected: int = 0
    rejected_bytes: int = 0
    is_done: bool = False


class Outcome(NamedTuple):
    """The counts of a file. `valid` counts events by (type, month), `reasons` the rejected ones by (reason, remedy)."""

    progress: Progress
    valid: Counter[tuple[str, str]]
    reasons: Counter[tuple[str, str]]


def format_of(path: Path, named: str | None = None) -> str:
    """`ndjson`, `csv` or `parquet`. Raises `InvalidInput`."""
    found = named or FORMATS.get(path.suffix.lower())
    if found is None:
        raise InvalidInput("--format", f"is needed, because {path.name} does not end in {', '.join(FORMATS)}")
    return found


def read_events(path: Path, kind: str, shape: Shape) -> Iterator[bytes]:
    """The JSON of each event of a file, in order, in bounded memory. Raises `InvalidInput` with the number of a row
    that cannot become an event."""
    try:
        if kind == "ndjson":
            yield from _lines(path)
        else:
            rows = _csv_rows(path) if kind == "csv" else _parquet_rows(path)
            for number, row in enumerate(rows, start=1):
                yield _event(number, row, shape)
    except OSError as error:
        raise InvalidInput("FILE", f"cannot read {path}: {error.strerror or error}") from error


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(BATCH_BYTES_MAX + 1):
            number += 1
            if len(line) > BATCH_BYTES_MAX:
                raise InvalidInput("FILE", f"line {number} has more than {BATCH_BYTES_MAX} bytes: is it NDJSON?")
            if stripped := line.strip():
                yield _rejected_before(stripped) or stripped


def _rejected_before(line: bytes) -> bytes | None:
    """The event of a line of FILE.rejected.ndjson, which somebody corrected there; None of any other line."""
    if not line.startswith((b'{"row":', b'{"row" :')):
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None
    if not {"row", "reason", "event"} <= document.keys():
        return None
    event = document["event"]
    return event.encode() if isinstance(event, str) else json.dumps(event, ensure_ascii=False).encode()


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            _check_columns(rows.fieldnames or ())
            for number, row in enumerate(rows, start=1):
                if None in row or None in row.values():
                    raise InvalidInput("FILE", f"row {number} has not as many cells as the header")
                # An empty cell is no value.
                yield {name: text for name, text in row.items() if text != ""}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput("FILE", f"{path.name} is not CSV in UTF-8: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=BATCH_EVENTS):
                for row in batch.to_pylist():
                    yield {name: value for name, value in row.items() if value is not None}
    except pa.ArrowException as error:
        raise InvalidInput("FILE", f"{path.name} is not Parquet: {error}") from error


def _check_columns(names: Sequence[str]) -> None:
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise InvalidInput("FILE", f"has the column {twice[0]!r} twice")


def _event(number: int, row: Mapping[str, Any], shape: Shape) -> bytes:
    missing = [name for name in (*shape.ids, "account", *(() if shape.type else ("type",))) if name not in row]
    if missing:
        raise InvalidInput(
            "FILE",
            f"row {number} has no {missing[0]!r}: give --id the columns that tell rows apart, and --type a type",
        )
    event: dict[str, Any] = {"specversion": "1.0", "id": _identity([str(row[name]) for name in shape.ids])}
    event["source"] = str(row.get("source", SOURCE))
    event |= {"type": shape.type or str(row["type"]), "subject": str(row["account"])}
    if "time" in row:
        event["time"] = row["time"]
    data: dict[str, Any] = {}
    for name, value in row.items():
        if name not in FIELDS:
            _put(number, data, name, value)
    try:
        return json.dumps(event | {"data": data}, ensure_ascii=False, default=_plain).encode()
    except TypeError as error:
        raise InvalidInput("FILE", f"row {number}: {error}") from error


def _identity(parts: Sequence[str]) -> str:
    """The id of one column is its value. Several are hashed, because no separator is safe."""
    return parts[0] if len(parts) == 1 else blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _put(number: int, data: dict[str, Any], name: str, value: Any) -> None:
    """Put a value under a column's name, where dots nest: `usage.tokens`."""
    *outer, last = name.split(".")
    for key in outer:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise InvalidInput("FILE", f"row {number}: the columns {key!r} and {name!r} cannot both be there")
    if last in data:
        raise InvalidInput("FILE", f"row {number}: the column {name!r} and columns below it cannot both be there")
    data[last] = value


def _plain(value: object) -> str:
    """What JSON has no form for: decimal numbers as exact text, and times in UTC."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        at = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return at.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return f"{value.isoformat()}T00:00:00Z"
    raise TypeError(f"a value of type {type(value).__name__} has no form in JSON")


class Backfill:
    """One file and its progress. `send` is called with up to `BATCH_EVENTS` events. `about`: whatever else makes a run
    another one, such as the gateway and the options: the progress of a run is not that of another one."""

    def __init__(self, path: Path, events: Iterator[bytes], send: Send, about: str = "") -> None:
        self._events = events
        self._send = send
        self._state = path.with_name(f"{path.name}.progress")
        self._rejected = path.with_name(f"{path.name}.rejected.ndjson")
        self._sha256 = sha256(f"{_digest(path)} {about}".encode()).hexdigest()
        self.valid: Counter[tuple[str, str]] = Counter()
        self.reasons: Counter[tuple[str, str]] = Counter()

    def progress(self) -> Progress:
        """Where an earlier run stopped, which sent the same bytes in the same way. Of any other one, nothing."""
        try:
            stored = Progress(**json.loads(self._state.read_text()))
        except (OSError, ValueError, TypeError):
            return Progress(self._sha256)
        return stored if stored.sha256 == self._sha256 else Progress(self._sha256)

    def dry_run(self, note: Callable[[Progress], None]) -> Outcome:
        """Have every event judged; nothing is written."""
        progress = Progress(self._sha256)
        for batch in _batches(self._events):
            progress, _ = self._sent(progress, batch)
            note(progress)
        return Outcome(progress, self.valid, self.reasons)

    def send(self, note: Callable[[Progress], None]) -> Outcome:
        """Send what has no answer yet. Rejected events are kept beside the file. Repeatable after any end."""
        progress = self.progress()
        if not progress.is_done:
            with self._rejected.open("ab") as file:
                # A run that ended between two writes has rejected events of a batch that is sent again.
                file.truncate(progress.rejected_bytes)
                for batch in _batches(islice(self._events, progress.rows, None)):
                    progress, lines = self._sent(progress, batch)
                    file.write(b"".join(lines))
                    file.flush()
                    os.fsync(file.fileno())
                    progress = progress._replace(rejected_bytes=file.tell())
                    self._keep(progress)
                    note(progress)
            progress = progress._replace(is_done=True)
            self._keep(progress)
            if not progress.rejected_bytes:
                self._rejected.unlink()
        return Outcome(progress, self.valid, self.reasons)

    def forget(self) -> None:
        """Begin at the first row again."""
        self._state.unlink(missing_ok=True)

    def _keep(self, progress: Progress) -> None:
        new = self._state.with_name(f"{self._state.name}.new")
        new.write_text(json.dumps(progress._asdict()))
        new.replace(self._state)

    def _sent(self, progress: Progress, batch: Sequence[bytes]) -> tuple[Progress, list[bytes]]:
        answer = self._send(batch)
        lines: list[bytes] = []
        for result in answer["events"]:
            raw = batch[result["index"]]
            if result["status"] == "rejected":
                self.reasons[result["reason"], result["remedy"]] += 1
                row = progress.rows + result["index"] + 1
                lines.append(json.dumps({"row": row, **result, "event": raw.decode(errors="replace")}).encode() + b"\n")
            else:
                self.valid[_kind(raw)] += 1
        counted = {name: getattr(progress, name) + answer.get(name, 0) for name in _COUNTS}
        return progress._replace(rows=progress.rows + len(batch), **counted), lines


def _kind(raw: bytes) -> tuple[str, str]:
    """The type and the month of a valid event."""
    event = json.loads(raw)
    return event["type"], str(event.get("time", "without a time"))[:7]


def _batches(events: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for event in events:
        if batch and (len(batch) == BATCH_EVENTS or size + len(event) > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += len(event)
    if batch:
        yield batch


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInput("FILE", f"cannot read {path}: {error.strerror}") from error
