"""The C core reads bytes that strangers send: its build with sanitizers must find no error in any of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.native.build import compile_to, compiler

FUZZED_S = 3


@pytest.mark.parametrize("tables", [(), ("-DACCOUNTS_MAX=3", "-DCELLS_MAX=6")], ids=["tables", "tables that are full"])
def test_sanitizers_find_nothing_while_odd_records_are_read(tmp_path: Path, tables: tuple[str, ...]) -> None:
    """AddressSanitizer where the compiler has its library, and the check for undefined behaviour everywhere.

    Full tables cost speed and change no value.
    """
    command = compiler()
    assert command is not None
    asan = subprocess.run(
        [*command, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    ).stdout.strip()
    library, environment = tmp_path / "core.so", {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    flags = [
        "-std=c11",
        "-O1",
        "-g",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fno-sanitize-recover=all",
        *tables,
    ]
    if Path(asan).is_absolute():
        flags.append("-fsanitize=address,undefined")
        environment["LD_PRELOAD"] = asan
    else:
        flags += ["-fsanitize=undefined", "-fsanitize-trap=undefined"]
    assert compile_to(library, command, flags) == ""

    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", "core"),
            *("--seconds", str(FUZZED_S), "--seed", "1000", "--library", str(library)),
        ],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-4000:]
    assert "the same" in done.stdout


@pytest.mark.parametrize("warnings", [("-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror")])
def test_the_core_compiles_without_a_warning(tmp_path: Path, warnings: tuple[str, ...]) -> None:
    """Most warnings are of numbers that lose a part."""
    command = compiler()
    assert command is not None

    assert compile_to(tmp_path / "core.so", command, ("-std=c11", "-O3", "-shared", "-fPIC", *warnings)) == ""
