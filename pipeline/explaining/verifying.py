"""Checks a signed file without any store: that nobody changed it, and that its numbers add up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, BinaryIO, Final

import msgspec

from aggregators.signed_lines import LineVerifier, file_key
from schemas.errors import InvalidInput

LINE_BYTES_MAX: Final = 4 * 1024 * 1024
PROBLEMS_MAX: Final = 100


@dataclass
class Verified:
    """What a file says, and what is wrong with it: at most `PROBLEMS_MAX` sentences, each with line and byte."""

    account: str = ""
    invoice: str = ""
    lines: int = 0
    events: int = 0
    hours: int = 0
    problems: list[str] = field(default_factory=list)
    is_ended: bool = False


@dataclass
class _Sums:
    """What the lines so far add up to."""

    adds: bool = False
    hour: Decimal = Decimal(0)
    hour_events: int = 0
    total: Decimal = Decimal(0)
    lines: int = 0


def verified(lines: Iterable[bytes], secret: bytes, key: bytes | None = None) -> Verified:
    """Check a file. `lines` are its lines with their ends. `key`: the file's own key instead of the secret.

    Raises `InvalidInput` if the first line is not that of such a file.
    """
    found, sums = Verified(), _Sums()
    verifier, offset = None, 0
    for number, line in enumerate(lines, start=1):
        place = f"line {number} (byte {offset})"
        offset += len(line)
        document = _document(line)
        if verifier is None:
            verifier = LineVerifier(key or file_key(secret, _salt(document)))
            found.account, found.invoice = str(document.get("account", "")), str(document.get("invoice", ""))
        if not verifier.holds(line):
            _note(found, f"{place}: changed, or the line before it is missing")
        elif found.is_ended:
            _note(found, f"{place}: stands behind the end")
        for problem in _judged(document, found, sums):
            _note(found, f"{place}: {problem}")
        found.lines = number
    if not found.is_ended:
        _note(found, f"the end is missing: the file was cut after line {found.lines} (byte {offset})")
    return found


def key_text(secret: bytes, first: bytes) -> str:
    """The own key of the file with this first line, as hexadecimal text. Raises `InvalidInput`."""
    return file_key(secret, _salt(_document(first))).hex()


def limited(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, each with its end. A line that is too long comes in parts, and is no line of such a file."""
    while line := file.readline(LINE_BYTES_MAX):
        yield line


def _note(found: Verified, problem: str) -> None:
    if len(found.problems) < PROBLEMS_MAX:
        found.problems.append(problem)


def _document(line: bytes) -> Mapping[str, Any]:
    try:
        document = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _salt(document: Mapping[str, Any]) -> str:
    if document.get("kind") != "explanation" or not isinstance(document.get("salt"), str):
        raise InvalidInput("FILE", "does not begin as a file of `tidemark explain --out` does")
    return str(document["salt"])


def _judged(document: Mapping[str, Any], found: Verified, sums: _Sums) -> Iterator[str]:
    """What is wrong with the numbers of a line."""
    try:
        yield from _problems(document, found, sums)
    except (InvalidOperation, KeyError, TypeError, ValueError):
        yield "has not the form of such a line"


def _problems(document: Mapping[str, Any], found: Verified, sums: _Sums) -> Iterator[str]:
    kind = document.get("kind")
    for check in document.get("checks", ()):
        if Decimal(check["expected"]) != Decimal(check["found"]):
            yield f"{check['what']}: {check['expected']} is not {check['found']}"
    if kind == "line":
        sums.lines += 1
        parts, is_metered = document["priced"], document["line_kind"] == "usage"
        marked = [part["amount_minor"] for part in parts if part["is_line"]]
        if is_metered and marked and marked != [document["amount_minor"]]:
            yield f"the part of the price is {marked[0]}, the line {document['amount_minor']}"
    elif kind == "usage":
        sums.adds, sums.total = bool(document["adds"]), Decimal(0)
    elif kind == "event":
        found.events, sums.hour_events = found.events + 1, sums.hour_events + 1
        sums.hour += Decimal(document["value"]) if sums.adds else 0
    elif kind == "hour":
        yield from _hour(document, found, sums)
    elif kind == "total":
        if sums.adds and Decimal(document["quantity"]) != sums.total:
            yield f"the hours add up to {sums.total}, the total is {document['quantity']}"
    elif kind == "end":
        found.is_ended = True
        counted = {"lines": sums.lines, "hours": found.hours, "events": found.events}
        for name, count in counted.items():
            if document[name] != count:
                yield f"the file has {count} {name}, and says {document[name]}"


def _hour(document: Mapping[str, Any], found: Verified, sums: _Sums) -> Iterator[str]:
    found.hours += 1
    quantity = Decimal(document["quantity"])
    sums.total += quantity if sums.adds else 0
    if sums.hour_events != document["events"]:
        yield f"the hour {document['hour']} has {sums.hour_events} events, and says {document['events']}"
    if sums.adds and sums.hour != quantity:
        yield f"the events of the hour {document['hour']} add up to {sums.hour}, the hour has {quantity}"
    sums.hour, sums.hour_events = Decimal(0), 0
