"""The project's files as text and as syntax trees, for the tests that read them."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
_TEXT: Final = {".cfg", ".in", ".ini", ".md", ".py", ".sh", ".sql", ".toml", ".txt", ".xml", ".yaml", ".yml", ""}


@functools.cache
def tracked() -> tuple[str, ...]:
    """Every file that git tracks or would track."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return tuple(name for name in done.stdout.splitlines() if (ROOT / name).is_file())
    # An unpacked source archive has no .git folder.
    hidden = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return tuple(str(path) for path in hidden if not path.parts[0].startswith("."))


@functools.cache
def source(name: str) -> str:
    """A file's text."""
    return (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def tree(name: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(source(name))


MODULES: Final = tuple(sorted(name for name in tracked() if name.endswith(".py")))
BY_DOTTED_NAME: Final = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in MODULES}
PRODUCT: Final = tuple(name for name in MODULES if not name.startswith("tests/"))
PURE: Final = tuple(name for name in MODULES if name.startswith(("schemas/", "aggregators/")))
TEXTS: Final = tuple(sorted(name for name in tracked() if Path(name).suffix in _TEXT and not name.endswith(".lock")))
