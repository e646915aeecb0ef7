"""Broken catalog files: `python -m tests.fuzz files`. Each is read, or refused with a line, a field and a remedy."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from aggregators.catalog import read_catalog
from pipeline.open import DEFAULT_CATALOG, read_meter_set
from schemas.errors import InvalidInput
from tests.fuzz.doors import KEPT, Wrong

_VALUES: Final = (
    "", "null", "~", "[]", "{}", "[[[]]]", "-1", "0", "1" * 400, "1e9", "1.5", '"99.999"', ".inf", "yes", "'", '"', "|",
    "&a x", "*a", "!!python/object:os.system x", "!x", "? a", "- a", "{a: {b: c}}", "\u2028", "\x00", "\ud83d\ude00",
    "unlimited", "2027-02-30", "$.a..b", "x" * 300, "%", "@x", "`x`", "a: b: c", "[" * 200, "{a: " * 100, "\t", "#",
)  # fmt: skip
_LINES: Final = (
    "---",
    "...",
    "%YAML 9.9",
    "\tx: 1",
    "plans:",
    "meters:",
    "  - x",
    "version: 2",
    "? [a]",
    ": b",
    "\ufeff",
)
_WORDS_OF_PYTHON: Final = re.compile(r"Traceback|<class|NoneType|object at 0x|Error\(")


def broken_file(chance: random.Random, content: str) -> bytes:
    """The file after one to three accidents."""
    lines = content.splitlines()
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        line, dice = lines[at], chance.randrange(8)
        if dice == 0:
            del lines[at]
        elif dice == 1:
            lines.insert(at, chance.choice((*_LINES, lines[other])))
        elif dice == 2:
            lines[at] = chance.choice(("", " ", "  ", "    ")) + line.lstrip(" ")
        elif dice == 3:
            lines[at] = lines[other]
        elif dice == 4:
            lines[at] = line[: chance.randrange(len(line) + 1)]
        else:
            # The value of a key on the line, or one of a map on one line.
            places = [found.span(1) for found in re.finditer(r": ?([^:,{}\[\]]*)", line)] or [(len(line), len(line))]
            start, end = chance.choice(places)
            lines[at] = line[:start] + " " + chance.choice(_VALUES) + line[end:]
        lines = lines or [""]
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    if chance.random() < 0.05:
        at = chance.randrange(len(text) + 1)
        text = text[:at] + bytes([chance.randrange(256)]) + text[at:]
    return text


def fuzz_files(seed: int, count: int) -> str:
    """Read so many broken files. Raises `Wrong`."""
    content, outcomes = DEFAULT_CATALOG.read_text(), Counter[str]()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.yaml"
        for number in range(seed, seed + count):
            broken = broken_file(random.Random(number), content)
            path.write_bytes(broken)
            try:
                outcomes[_read(broken, path)] += 1
            except Exception as error:
                KEPT.mkdir(parents=True, exist_ok=True)
                kept = KEPT / f"catalog-{number}.yaml"
                kept.write_bytes(broken)
                replay = f"replay: python -m tests.fuzz files --seed {number} --inputs 1 ({kept})"
                raise Wrong(f"{type(error).__name__}: {error}\n{replay}") from error
    return ", ".join(f"{name} {found}" for name, found in sorted(outcomes.items()))


def _read(broken: bytes, path: Path) -> str:
    """What becomes of a file as a catalog and as a meter set."""
    catalog, problems = read_catalog(broken, {})
    if catalog is None and not problems:
        raise Wrong("refused without a reason")
    for problem in problems:
        is_told = problem.field and problem.message and 1 <= problem.line <= broken.count(b"\n") + 2
        if not is_told or _WORDS_OF_PYTHON.search(problem.message):
            raise Wrong(f"no words for people: {problem}")
    try:
        read_meter_set(path)
    except InvalidInput as error:
        if not re.match(r"catalog\.yaml line \d+: \S", error.field) or _WORDS_OF_PYTHON.search(error.message):
            raise Wrong(f"no words for people: {error}") from error
        return "refused" if catalog is None else "refused as a meter set only"
    return "read" if catalog is not None else "refused as a catalog only"
