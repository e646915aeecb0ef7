"""The pages of the roles: short, and each command on them is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pipeline.cli import cli

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs").glob("for-*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_of_a_role_starts_with_a_command_and_its_commands_exist(page: Path) -> None:
    """A person types what the page says."""
    text = page.read_text()
    lines = text.splitlines()
    typed = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in typed.splitlines() if "bin/tidemark" in line]

    assert len(lines) <= 90
    assert next(number for number, line in enumerate(lines) if line.startswith("```sh")) < 15
    assert commands
    for _, *arguments in commands:
        command: click.Command = cli
        while isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        command.make_context(command.name, arguments)


def test_every_role_has_a_page() -> None:
    """Developers, analysts, operators and finance."""
    assert [page.stem for page in PAGES] == ["for-analysts", "for-developers", "for-finance", "for-operators"]
