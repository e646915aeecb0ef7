"""docs/invariants.md defines the rules that code, tests and documents cite by number."""

from __future__ import annotations

import re
from typing import Final

from tests.source_tree import MODULES, PRODUCT, TEXTS, source

PAGE: Final = "docs/invariants.md"
_CITATION: Final = re.compile(r"\b[IS][1-9]\d?\b")
DEFINED: Final = re.findall(r"^### ([IS]\d+) ", source(PAGE), re.M)


def _cited(names: tuple[str, ...]) -> set[str]:
    return {number for name in names for number in _CITATION.findall(source(name))}


def test_every_cited_number_is_defined() -> None:
    """A reader must find one sentence for each citation."""
    names = {*MODULES, *(name for name in TEXTS if name.endswith((".md", ".sql")))}
    unknown = [
        f"{name}: {number}"
        for name in sorted(names)
        for number in sorted(set(_CITATION.findall(source(name))) - set(DEFINED))
    ]

    assert unknown == [], f"define them in {PAGE}"


def test_rules_are_numbered_without_gaps() -> None:
    """A number is never reused, so a new rule takes the next one."""
    kinds = [number[0] for number in DEFINED]

    assert [f"{kind}{number}" for kind in "IS" for number in range(1, kinds.count(kind) + 1)] == DEFINED


def test_every_rule_is_cited_by_the_product_and_by_a_test_or_guarantee() -> None:
    """A rule that no module keeps is a wish; a rule that no test or guarantee cites is a claim."""
    kept = _cited(tuple(name for name in PRODUCT if not name.startswith(("benchmarks/", "demo/", "oracle/"))))
    shown = _cited((*(name for name in MODULES if name.startswith("tests/")), "docs/guarantees.md"))

    assert [number for number in DEFINED if number not in kept] == []
    assert [number for number in DEFINED if number not in shown] == []


def test_no_module_cites_a_section_of_another_document() -> None:
    """The reader may not have the page that a section sign refers to."""
    sign = "\N{SECTION SIGN}"

    assert [name for name in MODULES if sign in source(name)] == []
