"""Every command of the click tree, and the values that a person or a script may give to an option by mistake."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from pipeline.cli import main

NOT_TEXT: Final = ("", "\0", "line\nfeed", "zwölf ☃ 𝟙", "\udcff", "a" * 100_000, "a%2Fb", "../..", "' OR 1=1 --", "{}")
NUMBERS: Final = ("-1", "0", "9" * 30, "", "NaN", "1.5", "1e3", "0x10", " ", "\0")
INSTANTS: Final = (
    "yesterday", "2026-11-01", "2026-11-01T00:00:00", "2026-13-01T00:00:00Z", "9999-12-31T23:59:59Z",
    "0000-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-11-01T00:00:00+99:00", "1" * 50,
)  # fmt: skip
ADDRESSES: Final = (
    "http://", "http://:1", "http://127.0.0.1:99999", "http://[::1", "ftp://x", "127.0.0.1:9", "x\ny", "http://\udcff",
)  # fmt: skip
# They run until they are stopped.
ROLES: Final = ("worker", "archive", "router", "sink", "gateway")


class Result(NamedTuple):
    """How a command ended. `error` is an exception that a person would see as a traceback."""

    code: int
    out: str
    err: str
    error: BaseException | None


def run(arguments: Sequence[str], stdin: str = "") -> Result:
    """Run the command line in this process, as the script does."""
    out, err = _text(), _text()
    code, failure = 0, None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _arguments(arguments, stdin):
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception as error:  # noqa: BLE001  # whatever would be a traceback
            failure = error
    return Result(code, _read(out), _read(err), failure)


def _text() -> io.TextIOWrapper:
    # As a terminal: UTF-8, and a lone surrogate cannot be written.
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def _read(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer: Any = stream.buffer
    return str(buffer.getvalue().decode())


@contextlib.contextmanager
def _arguments(arguments: Sequence[str], stdin: str) -> Iterator[None]:
    import sys

    before = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["tidemark", *arguments], io.StringIO(stdin)
    try:
        yield
    finally:
        sys.argv, sys.stdin = before


def valid(parameter: click.Parameter, file: Path) -> list[str]:
    """An acceptable value of a required parameter, with its name."""
    kind = parameter.type
    value = "acme"
    if isinstance(kind, click.Choice):
        value = str(kind.choices[0])
    elif isinstance(kind, click.types.IntParamType):
        value = "1"
    elif isinstance(kind, click.Path):
        value = str(file)
    elif "instant" in (parameter.name or ""):
        value = "2026-11-01T00:00:00Z"
    return [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]


def hostile(parameter: click.Parameter, folder: Path) -> Iterator[str]:
    """Values that are not meant for a parameter."""
    name = parameter.name or ""
    if isinstance(parameter.type, click.types.IntParamType):
        yield from NUMBERS
    elif isinstance(parameter.type, click.Path):
        yield from (str(folder / "missing"), str(folder), str(folder / "garbage"), str(folder / "unreadable"), "", "\0")
    else:
        yield from NOT_TEXT
        if name in ("from_", "to", "anchor", "instant", "event_time"):
            yield from INSTANTS
        if name == "pushgateway":
            yield from ADDRESSES
        if name == "data":
            yield from ("[]", "null", "NaN", "[" * 100_000, '{"a": 1e999}', '"\\ud800"', "9" * 5_000)


def problems(result: Result) -> list[str]:
    """What a person would complain about."""
    found = []
    if result.error is not None:
        found.append(f"a traceback: {type(result.error).__name__}: {result.error!s:.200}")
    if result.code not in (0, 1, 2, 3, 130):
        found.append(f"the exit code {result.code}")
    lines = result.err.strip().splitlines()
    if len(lines) > (1 if result.code == 2 else 8) or len(result.err) > 1_500:
        found.append(f"{len(lines)} lines, {len(result.err)} characters: {result.err[:200]}")
    if result.code and not (result.err.strip() or result.out.strip()):
        found.append("silence")
    if "Traceback" in result.err or re.search(r"NoneType|<class|object at 0x", result.err):
        found.append(f"words of Python: {result.err[:200]}")
    # `tidemark: FIELD: message`, or click's `Invalid value for 'NAME'` and `No such option: NAME`.
    is_named = re.search(r"^tidemark: [^\s:][^:]{0,60}: |'\[?(--)?[\w-]+[\]:.]*'|(option|arguments?):? \S+", result.err)
    if result.code == 2 and not is_named:
        found.append(f"no option or field is named: {result.err[:200]}")
    return found
