"""Reads YAML that a person wrote, and keeps the line of each value, so that an error can name it.

Only what a configuration file needs is read: one document of maps, lists and scalars. Keys are texts, and none comes
twice. Numbers are whole; a decimal number stays text, because money is never a float. Anchors, aliases and tags are
refused: a few lines of aliases can stand for gigabytes, and tags name types of a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import yaml

BYTES_MAX: Final = 1 << 20
DEPTH_MAX: Final = 24
DIGITS_MAX: Final = 18

Path = tuple[str | int, ...]

_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
# Those of YAML 1.2, in which `no` and `on` are texts.
_WORDS: Final = {"": None, "~": None, "null": None, "true": True, "false": False}
_Parser: Final = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class Unreadable(Exception):
    """The text is not YAML that is read here; `line` counts from 1, and `path` is where in the document."""

    def __init__(self, line: int, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.path = path


class Document(NamedTuple):
    """A document and the line of each of its values by path; that of a map's value is the line of its key."""

    value: Any
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """The line of a path, or of the innermost value around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_yaml(content: bytes) -> Document:
    """Read one document. Raises `Unreadable`."""
    if len(content) > BYTES_MAX:
        raise Unreadable(1, f"the file has more than {BYTES_MAX} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, "not UTF-8") from error
    lines: dict[Path, int] = {}
    try:
        events = yaml.parse(text, _Parser)
        value = _document(events, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise Unreadable(1, f"not YAML: {' '.join(str(error).split())}") from error
    return Document(value, lines)


def _document(events: Iterator[yaml.Event], lines: dict[Path, int]) -> Any:
    value: Any = None
    documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise Unreadable(_line(event), "a second document: write one document")
            value = _value(next(events), events, lines, ())
    return value


def _value(event: yaml.Event, events: Iterator[yaml.Event], lines: dict[Path, int], path: Path) -> Any:
    line = _line(event)
    lines.setdefault(path, line)
    if len(path) > DEPTH_MAX:
        raise Unreadable(line, f"more than {DEPTH_MAX} levels of maps and lists", path[:4])
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise Unreadable(line, "anchors and aliases are not read: write the value out", path)
    if tag := getattr(event, "tag", None):
        raise Unreadable(line, f"the tag {tag} is not read: remove it", path)
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event, path)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_value(item, events, lines, (*path, len(items))))
        return items
    return _map(events, lines, path)


def _map(events: Iterator[yaml.Event], lines: dict[Path, int], path: Path) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent) or key.anchor or key.tag:
            raise Unreadable(_line(key), "a key must be a plain text", path)
        name = key.value
        if name in entries:
            raise Unreadable(_line(key), f"the key comes twice, first in line {lines[(*path, name)]}", (*path, name))
        lines[(*path, name)] = _line(key)
        entries[name] = _value(next(events), events, lines, (*path, name))
    return entries


def _scalar(event: yaml.ScalarEvent, path: Path) -> Any:
    text: str = event.value
    is_plain: bool = event.implicit[0]
    if not is_plain:
        return text
    if _INTEGER.fullmatch(text):
        if len(text.lstrip("+-")) > DIGITS_MAX:
            raise Unreadable(_line(event), f"a number has more than {DIGITS_MAX} digits", path)
        return int(text)
    return _WORDS.get(text, text)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
