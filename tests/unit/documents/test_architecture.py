"""The table in ARCHITECTURE.md gives the function behind each reason for which an event is not counted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from schemas.reasons import Reason
from tests.source_tree import source, tree

_SECTION: Final = re.search(r"^## Why an event is not counted.*?(?=^## )", source("ARCHITECTURE.md"), re.M | re.S)
assert _SECTION is not None
TABLE: Final = [line for line in _SECTION[0].splitlines() if line.startswith("| ")]


def _functions(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{node.name}.")


def test_every_reason_has_a_function_that_decides_it() -> None:
    """A newcomer who asks why an event was not counted finds the line through this table."""
    reasons = set(re.findall(r"`([a-z_]+)`", "".join(row.split("|")[2] for row in TABLE)))

    assert {reason.value for reason in Reason} <= reasons


def test_the_functions_of_the_table_exist() -> None:
    """An entry for a function that was moved misleads the reader."""
    places = re.findall(r"`([a-z_/]+\.py)::([\w.]+)`", "".join(TABLE))

    assert len(places) >= len(TABLE) - 1
    assert [f"{file}::{name}" for file, name in places if name not in set(_functions(tree(file).body))] == []
