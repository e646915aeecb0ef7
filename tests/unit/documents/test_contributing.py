"""The list "Example: add an aggregation" of CONTRIBUTING.md is true: its files exist, and no file is missing."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from schemas.aggregations import Aggregation

ROOT: Final = Path(__file__).parents[3]
PRODUCT: Final = ("schemas", "aggregators", "sinks", "reconciler", "pipeline", "emitter")
_EXAMPLE: Final = (ROOT / "CONTRIBUTING.md").read_text().split("## Example: add an aggregation")[1].split("\n## ")[0]
NAMED: Final = frozenset(re.findall(r"`([\w./]+\.(?:py|sql|md))`", _EXAMPLE))
# SQL decides by a member as text: `kind = 'max'`.
_SQL: Final = re.compile(rf"'(?:{'|'.join(Aggregation)})'")


def _decides_by_a_member(path: Path) -> bool:
    text = path.read_text()
    if path.suffix == ".sql":
        return bool(_SQL.search(text))
    return any(_is_member(node) for node in ast.walk(ast.parse(text)))


def _is_member(node: ast.AST) -> bool:
    """Whether the node is `Aggregation.MAX`, or a member's text in a comparison, a match or a look-up."""
    if isinstance(node, ast.Attribute):
        return node.attr in Aggregation.__members__ and ast.unparse(node.value).split(".")[-1] == "Aggregation"
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        # Only Stripe's meters have a `default_aggregation`.
        asks = "aggregation" in ast.unparse(node).replace("default_aggregation", "")
        return asks and any(_is_text(side) for side in sides)
    if isinstance(node, ast.MatchValue):
        return _is_text(node.value)
    return isinstance(node, ast.Dict) and sum(key is not None and _is_text(key) for key in node.keys) > 1


def _is_text(node: ast.AST) -> bool:
    constants = (part for part in ast.walk(node) if isinstance(part, ast.Constant))
    return any(part.value in set(Aggregation) for part in constants if isinstance(part.value, str))


@pytest.mark.parametrize("path", sorted(NAMED))
def test_file_in_the_list_exists(path: str) -> None:
    assert (ROOT / path).is_file()


def test_product_decides_by_a_member_of_aggregation_only_in_files_of_the_list() -> None:
    """A contributor who adds an aggregation finds every place, and code that reads the class needs no change."""
    files = [path for name in PRODUCT for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".sql")]
    deciding = {str(path.relative_to(ROOT)) for path in files if _decides_by_a_member(path)}

    assert deciding == {
        "schemas/aggregations.py",
        "sinks/clickhouse/event_values.py",
        "sinks/clickhouse/recount.py",
        "sinks/clickhouse/fake_recount.py",
        "sinks/clickhouse/sql/0002_views.sql",
    }
    assert deciding <= NAMED


@pytest.mark.parametrize(
    "text",
    [
        "x = Aggregation.MAX",
        "y = meters.Aggregation.MIN in kinds",
        "z = meter.aggregation == 'max'",
        "z = meter.aggregation in ('count', 'sum')",
        "match kind:\n    case 'latest':\n        pass",
        "z = {'max': max, 'min': min}[kind]",
    ],
)
def test_the_scan_sees_a_decision(text: str, tmp_path: Path) -> None:
    """A scan that finds nothing would always pass."""
    file = tmp_path / "decides.py"
    file.write_text(text)

    assert _decides_by_a_member(file)
