"""docs/glossary.md has one sentence for each word, and nothing uses a word that was given up."""

from __future__ import annotations

import re
from typing import Final

from pipeline.cli import cli
from schemas.control import ControlKind
from tests.source_tree import PRODUCT, TEXTS, source

PAGE: Final = "docs/glossary.md"
ENTRIES: Final = re.findall(r"^- \*\*([^*]+)\*\*: (.+)$", source(PAGE), re.M)
SPOKEN: Final = (*PRODUCT, *sorted(name for name in TEXTS if name.endswith((".md", ".sql")) and name != PAGE))

ROLES: Final = "pipeline.cli.roles"
# Given-up word → current word.
GIVEN_UP: Final = {
    r"(?<![/\w])fences?\b|\bfence_|_fence\b|\bfencing\b": "checkpoint",
    r"\bparked\b|\bparking\b": "deferred",
    r"\bre-?cut(s|ting)?\b": "restatement",
    r"\bdrain(s|ed|er|ers|ing)?\b": "relay",
    r"\blane(s|d)?\b": "partition worker, send queue or lock",
    r"\btwins?\b": "fake",
    r"\blog[ _]time\b": "stream time",
    r"\bscratch\b": "staging",
    r"\bnurser(y|ies)\b": "supervisor",
    r"\bwitness(es)?\b": "replay counter",
}
# The same words with another meaning.
ELSEWHERE: Final = {
    ("CHANGELOG.md", ""): "names what was renamed",
}


def _spelled(term: str) -> str:
    """A pattern for the term in any case, as words or within a name in the code."""
    return r"\b" + r"[\s_-]*".join(map(re.escape, re.split(r"[\s-]", term.lower())))


def test_entries_are_sorted_and_unique() -> None:
    """A reader finds a word by its first letters."""
    terms = [term.lower() for term, _ in ENTRIES]

    assert terms == sorted(set(terms))
    assert len(ENTRIES) == source(PAGE).count("\n- ")


def test_an_entry_is_one_sentence() -> None:
    """Two sentences explain two things; the second sentence belongs in docs/invariants.md."""
    wrong = [term for term, text in ENTRIES if not text.endswith(".") or re.search(r"[.!?]\s", text)]

    assert wrong == []


def test_every_word_is_used() -> None:
    """A word that only the glossary uses confuses the reader."""
    text = "\n".join(source(name) for name in SPOKEN).lower()
    unused = [term for term, _ in ENTRIES if not re.search(_spelled(term), text)]

    assert unused == []


def test_lists_are_whole() -> None:
    """Who reads that there are five roles does not look for the others."""
    entries = dict(ENTRIES)
    roles = {
        name for name, command in cli.commands.items() if command.callback and command.callback.__module__ == ROLES
    }
    kinds = {kind.value.replace("_", " ") for kind in ControlKind}

    assert len(roles) > 5
    assert [each for each in roles if each not in entries["role"]] == []
    assert [each for each in kinds if each not in entries["control record"]] == []


def test_no_given_up_word_is_used() -> None:
    """Two words for one thing make a reader look for two things."""
    places = []
    for name in SPOKEN:
        text = source(name)
        for pattern, today in GIVEN_UP.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                word = match[0].lower()
                if not {(name, word), (name, "")} & set(ELSEWHERE):
                    line = text.count("\n", 0, match.start()) + 1
                    places.append(f"{name}:{line} {match[0]}: write {today}")

    assert places == []


def test_the_exceptions_are_still_needed() -> None:
    """An unused exception hides the next mistake."""
    assert [key for key in ELSEWHERE if key[1] not in source(key[0]).lower()] == []
