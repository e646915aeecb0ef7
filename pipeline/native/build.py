"""Compiles the C core: `python -m pipeline.native.build`, which `make` runs before it runs anything else.

A library is named by the hash of its sources, so a stale library is never used, and builds that run at the same time
make the same file. Takes `cc`, or the optional package `ziglang`. Where neither is there, nothing is built.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import aggregators.native

SOURCES: Final = Path(aggregators.native.__file__).parent
FLAGS: Final = ("-std=c11", "-O3", "-shared", "-fPIC")
COMPILE_TIMEOUT_S: Final = 120


def sources_hash() -> str:
    """The hash of the core's sources, of the flags and of the platform, in hexadecimal digits."""
    digest = sha256(f"{FLAGS} {sysconfig.get_platform()}".encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:32]


def library_path() -> Path:
    """Where the library of the present sources is, or will be."""
    return SOURCES / "build" / f"core-{sources_hash()}.so"


def compiler() -> tuple[str, ...] | None:
    """The command that compiles C: `cc`, else the package `ziglang`, else None."""
    found = shutil.which("cc")
    if found:
        return (found,)
    return (sys.executable, "-m", "ziglang", "cc") if importlib.util.find_spec("ziglang") else None


def compile_to(target: Path, command: Sequence[str], flags: Sequence[str] | None = None) -> str:
    """Compile the core to `target`, with `FLAGS` unless others are given. Returns what went wrong, or the empty text.

    The file appears complete or not at all.
    """
    try:
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            hashed = f'-DTIDEMARK_SOURCES="{sources_hash()}"'
            arguments = [*command, *(flags or FLAGS), hashed, "-o", str(made), str(SOURCES / "core.c")]
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
            if done.returncode == 0:
                made.replace(target)
            return done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def build() -> str:
    """Build the library if it is not there, and remove libraries of older sources. Returns what happened, in words."""
    target, command = library_path(), compiler()
    if target.exists():
        return f"the C core is built: {target}"
    if command is None:
        return "no C compiler, so Python counts: with cc, or with the package ziglang in .venv, Tidemark counts faster"
    problem = compile_to(target, command)
    if problem:
        return f"the C core does not compile here, so Python counts: {problem[:2000]}"
    for older in target.parent.glob("core-*.so"):
        if older != target:
            with contextlib.suppress(OSError):
                older.unlink()
    return f"built the C core: {target}"


if __name__ == "__main__":
    print(build())
