"""The library that runs is made of the present sources, by whichever compiler is there, or there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.commands.doctor import diagnose
from pipeline.native import build as building
from pipeline.native.build import SOURCES, build, compile_to, compiler, library_path, sources_hash
from pipeline.native.load import load
from pipeline.settings import Settings


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources without a library, which all functions use."""
    for path in SOURCES.glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(building, "SOURCES", tmp_path)
    # Optimising takes seconds.
    monkeypatch.setattr(building, "FLAGS", ("-std=c11", "-O0", "-shared", "-fPIC"))
    return tmp_path


def test_a_library_of_other_sources_is_not_used(sources: Path) -> None:
    """An update of the code may forget to build; then Python counts."""
    assert load(enabled=True).library is None
    assert "built the C core" in build()
    assert load(enabled=True).library is not None
    before = library_path()

    (sources / "core.c").write_text((sources / "core.c").read_text() + "\n")

    assert "is not built" in load(enabled=True).why
    before.rename(library_path())
    assert "other sources" in load(enabled=True).why


def test_a_library_of_older_sources_is_removed(sources: Path) -> None:
    """One library stays, however often the sources change."""
    build()
    (sources / "json.h").write_text((sources / "json.h").read_text() + "\n")
    build()

    assert list((sources / "build").iterdir()) == [library_path()]


def test_builds_at_the_same_time_make_one_library(sources: Path) -> None:
    """Two test runners and a service may start at once; a half-written library is never seen."""
    command = compiler()
    assert command is not None
    with ThreadPoolExecutor() as threads:
        problems = list(threads.map(lambda _: compile_to(library_path(), command), range(3)))

    assert problems == ["", "", ""]
    assert list((sources / "build").iterdir()) == [library_path()]
    assert load(enabled=True).library is not None


def test_without_a_compiler_nothing_is_built(sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make` goes on, and Python counts."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    assert build().startswith("no C compiler")
    assert not (sources / "build").exists()
    assert load(enabled=True).why.startswith("the C core is not built")


def test_without_cc_the_package_ziglang_compiles(
    sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package is optional: it has 400 MB."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "ziglang" else None)

    assert compiler() == (sys.executable, "-m", "ziglang", "cc")


def test_a_compiler_that_fails_stops_nobody(sources: Path) -> None:
    """Python counts, and the build says why."""
    (sources / "core.c").write_text("this is no C")

    assert build().startswith("the C core does not compile here, so Python counts")
    assert load(enabled=True).library is None


def test_a_broken_library_is_not_used(sources: Path) -> None:
    """A file that was cut off, or one of another system."""
    library_path().parent.mkdir()
    library_path().write_bytes(b"\x7fELF")

    assert "cannot be loaded" in load(enabled=True).why


def test_the_setting_turns_the_core_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TIDEMARK_NATIVE=0`."""
    monkeypatch.delenv("TIDEMARK_NATIVE", raising=False)
    assert load(enabled=Settings(native=True).native).library is not None
    assert load(enabled=False).why == "TIDEMARK_NATIVE is off"
    assert Settings().native


@pytest.mark.parametrize(("native", "status"), [(True, "ok"), (False, "note")])
async def test_doctor_says_which_one_runs(native: bool, status: str, tmp_path: Path) -> None:
    """Also where nothing else answers."""
    settings = Settings(
        native=native, log_url=f"embedded://{tmp_path}/log.db", redis_url="redis://127.0.0.1:1",
        clickhouse_url="http://127.0.0.1:1", sql_url="postgresql://u:p@127.0.0.1:1/d", store_timeout_s=1,
    )  # fmt: skip

    (finding,) = [finding for finding in await diagnose(settings) if finding.what == "native"]

    assert finding.status == status


def test_sources_are_hashed_with_their_names(sources: Path) -> None:
    """Moving a line from one file to another makes another library."""
    before = sources_hash()
    (sources / "bytes.h").rename(sources / "octets.h")

    assert sources_hash() != before


def test_make_builds_the_library() -> None:
    """The command that `make` runs."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.native.build"], capture_output=True, text=True, check=True
    )  # fmt: skip

    assert str(library_path()) in done.stdout
