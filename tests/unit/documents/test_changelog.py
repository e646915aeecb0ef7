"""CHANGELOG.md keeps the form of Keep a Changelog: one line for each change, newest version first."""

from __future__ import annotations

import re
import tomllib
from typing import Final

from tests.source_tree import source

LINES: Final = source("CHANGELOG.md").splitlines()
KINDS: Final = ("Added", "Changed", "Removed", "Fixed")
_VERSION: Final = re.compile(r"## \[(Unreleased|\d+\.\d+\.\d+)\](?: - \d{4}-\d\d-\d\d)?")


def test_the_newest_version_is_the_projects_or_unreleased() -> None:
    """A release that the changelog lacks surprises whoever installs it."""
    versions = [match[1] for line in LINES if (match := _VERSION.fullmatch(line))]

    assert versions[0] in ("Unreleased", tomllib.loads(source("pyproject.toml"))["project"]["version"])
    assert len(versions) == len(set(versions))


def test_every_entry_is_one_line_under_a_kind() -> None:
    """An operator who upgrades reads only the lines that matter."""
    kind = ""
    for line in LINES[LINES.index(next(filter(_VERSION.fullmatch, LINES))) :]:
        if line.startswith("### "):
            kind = line.removeprefix("### ")
            assert kind in KINDS, line
        elif line.startswith("## "):
            assert _VERSION.fullmatch(line), line
            kind = ""
        elif line:
            assert kind, f"under no kind: {line}"
            assert re.fullmatch(r"- \S.*\.", line), f"one line, ending with a full stop: {line}"
