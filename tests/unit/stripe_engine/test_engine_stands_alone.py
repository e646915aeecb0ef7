"""The engine imports only itself and the standard library, and has no float."""

from __future__ import annotations

import ast
import sys
from typing import Final

import pytest

from tests.source_tree import MODULES, tree

ENGINE: Final = [name for name in MODULES if name.startswith("stripe_simulator/engine/")]
IMPURE: Final = {"asyncio", "io", "logging", "os", "pathlib", "random", "secrets", "socket", "threading", "time"}


@pytest.mark.parametrize("name", ENGINE)
def test_the_engine_imports_only_the_standard_library_and_itself(name: str) -> None:
    """An engine that shares code with the product repeats the product's mistakes."""
    imported = set[str]()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")

    outside = {module.partition(".")[0] for module in imported if not module.startswith("stripe_simulator.engine.")}
    assert outside - (sys.stdlib_module_names - IMPURE) == set()


@pytest.mark.parametrize("name", ENGINE)
def test_the_engine_has_no_floats(name: str) -> None:
    """0.1 + 0.2 is not 0.3, and the engine's amounts are compared to the cent."""
    floats = [
        node.lineno
        for node in ast.walk(tree(name))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Name) and node.id == "float")
    ]

    assert floats == []


def test_the_engine_was_found() -> None:
    """An empty list of modules would pass every test above."""
    assert len(ENGINE) > 5
