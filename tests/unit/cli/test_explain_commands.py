"""The command `explain` on its files."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.commands.explain import export
from pipeline.settings import Settings
from schemas.errors import InvalidInput


async def test_what_another_export_writes_is_left_alone(tmp_path: Path) -> None:
    """Two people export one invoice into one file at once."""
    part = tmp_path / "file.part"
    part.write_text("the first one's")

    with pytest.raises(InvalidInput, match="another export writes the file"):
        await export(Settings(secret=SecretStr("x" * 64)), "in_1", "acme", "", tmp_path / "file")

    assert part.read_text() == "the first one's"
