"""docs/invariants.md defines what code, tests and documents cite by number."""

from __future__ import annotations

import re
from typing import Final

from tests.source_tree import MODULES, PRODUCT, TEXTS, source

PAGE: Final = "docs/invariants.md"
_CITATION: Final = re.compile(r"\b[IS][1-9]\d?\b")
DEFINED: Final = re.findall(r"^### ([IS]\d+) ", source(PAGE), re.M)


def _cited(names: tuple[str, ...]) -> set[str]:
    return {number for name in names for number in _CITATION.findall(source(name))}


def test_every_number_that_is_cited_is_defined() -> None:
    """A reader follows each citation to one sentence."""
    names = {*MODULES, *(name for name in TEXTS if name.endswith((".md", ".sql")))}
    unknown = [
        f"{name}: {number}"
        for name in sorted(names)
        for number in sorted(set(_CITATION.findall(source(name))) - set(DEFINED))
    ]

    assert unknown == [], f"define them in {PAGE}"


def test_rules_are_numbered_without_gaps() -> None:
    """Numbers are never used for something else, so a new rule takes the next one."""
    kinds = [number[0] for number in DEFINED]

    assert [f"{kind}{number}" for kind in "IS" for number in range(1, kinds.count(kind) + 1)] == DEFINED


def test_every_rule_is_cited_where_it_is_kept_and_where_it_is_shown() -> None:
    """A rule that no module keeps is a wish; one that no test and no guarantee cites is a claim."""
    kept = _cited(tuple(name for name in PRODUCT if not name.startswith(("benchmarks/", "demo/", "oracle/"))))
    shown = _cited((*(name for name in MODULES if name.startswith("tests/")), "docs/guarantees.md"))

    assert [number for number in DEFINED if number not in kept] == []
    assert [number for number in DEFINED if number not in shown] == []


def test_no_module_cites_a_section_of_another_document() -> None:
    """A section sign points to a page that a reader may not have."""
    sign = "\N{SECTION SIGN}"

    assert [name for name in MODULES if sign in source(name)] == []
