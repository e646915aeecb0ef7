"""House rules that a program can check. Each message says what to do instead."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.source_tree import BY_DOTTED_NAME, MODULES, PRODUCT, PURE, TEXTS, source, tree

FUNCTION_LINES_MAX: Final = 70
MODULE_LINES_MAX: Final = 500
# A test suite may be longer: a reader looks for one test by its name.
TEST_MODULE_LINES_MAX: Final = 800
# Settings, clock, metrics, the construction of all clients, and the package itself.
PIPELINE_MODULES_MAX: Final = 5

# Time and randomness are arguments. These modules supply them, or run outside the deployment.
MACHINE_TIME: Final = {
    "pipeline/clock.py": "the one module that reads the machine's clock",
    "stripe_simulator/clock.py": "the simulator is a process of its own and imports nothing of ours",
    "emitter/emitter.py": "the SDK stands alone; `now_ns` can be handed in",
    "emitter/encoding.py": "the SDK stands alone; `now_ns` can be handed in",
    "emitter/answers.py": "the SDK stands alone: the date of a Retry-After header",
}
RANDOMNESS: Final = {
    "emitter/answers.py": "jitter of retries in the SDK, which stands alone",
    "emitter/encoding.py": "the random part of UUIDv7",
}
# These names create a generator that is then an argument.
SOURCES_OF_RANDOMNESS: Final = {"Random", "SystemRandom"}

_UNFINISHED: Final = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b")
# ruff's S108 checks temporary folders.
_MACHINE: Final = re.compile(r"""["'`\s(=](/work|/root|/home/\w+)/""")
_WRITERS: Final = re.compile(
    r"\b("
    + "|".join(("clau" + "de", "anthro" + "pic", "chat" + "gpt", "open" + "ai", "co" + "pilot", "ai assis" + "tant"))
    + r")\b",
    re.IGNORECASE,
)


def _functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _calls(name: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every call whose function is a name or an attribute path."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            called = _dotted(node.func)
            if called:
                yield node.lineno, called


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_stay_short(name: str) -> None:
    """Split by what changes together, not by size alone."""
    lines = source(name).count("\n")
    long = [
        f"{name}:{each.lineno} {each.name} has {length} lines: take a step out of it and name it"
        for each in _functions(name)
        if (length := (each.end_lineno or each.lineno) - each.lineno + 1) > FUNCTION_LINES_MAX
    ]

    lines_max = TEST_MODULE_LINES_MAX if name.startswith("tests/") else MODULE_LINES_MAX
    assert lines <= lines_max, f"{name} has {lines} lines: move one subject into a module of its own"
    assert long == []


def _imported(name: str) -> set[str]:
    """The project's modules that a module imports: at its top, within functions, and for types alone."""
    imported = set[str]()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            # A name that is no module is defined in the package's __init__.
            imported.update(target if target in BY_DOTTED_NAME else node.module for target in inner)
    return {BY_DOTTED_NAME[target] for target in imported if target in BY_DOTTED_NAME} - {name}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Two modules that need each other are one module, or a third one contains what both need."""
    sorter = graphlib.TopologicalSorter({name: _imported(name) for name in MODULES})

    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        pytest.fail(f"{circle}: move what is needed on both sides into a module that imports neither")


def test_the_top_of_the_pipeline_stays_small() -> None:
    """A module belongs in the folder of its subject; the top level is for what all folders share."""
    top = [name for name in MODULES if name.startswith("pipeline/") and name.count("/") == 1]

    assert len(top) <= PIPELINE_MODULES_MAX, f"{top}: move one into pipeline/http, logs, rollup, …"


@pytest.mark.parametrize("name", PRODUCT)
def test_time_is_an_argument(name: str) -> None:
    """A process that reads the machine's clock cannot be simulated, replayed or tested at a month's end."""
    read = re.compile(r"(^|\.)(time\.time|time\.time_ns|(datetime|date)\.(now|utcnow|today))$|^(time_ns|utcnow)$")
    problems = [
        f"{name}:{line} {called}(): take a schemas.clock.Clock as an argument"
        for line, called in _calls(name)
        if read.search(called)
    ]

    assert not problems or name in MACHINE_TIME, problems


@pytest.mark.parametrize("name", PRODUCT)
def test_randomness_is_an_argument(name: str) -> None:
    """A run with a generator as an argument can be repeated from its seed."""
    problems = [
        f"{name}:{line} {called}(): take a random.Random as an argument"
        for line, called in _calls(name)
        if called.startswith("random.") and called.removeprefix("random.") not in SOURCES_OF_RANDOMNESS
    ]

    assert not problems or name in RANDOMNESS, problems


def test_the_exceptions_are_still_needed() -> None:
    """A list of exceptions shrinks only if a test checks it."""
    assert [name for name in {**MACHINE_TIME, **RANDOMNESS} if name not in MODULES] == []


@pytest.mark.parametrize("name", PURE)
def test_quantities_are_never_floats(name: str) -> None:
    """0.1 + 0.2 is not 0.3, and quantities are billed."""
    problems = [
        f"{name}:{line} float(): keep an int of minor units, or a Decimal at the edge"
        for line, called in _calls(name)
        if called == "float"
    ]

    assert problems == []


@pytest.mark.parametrize("name", PRODUCT)
def test_public_names_are_documented(name: str) -> None:
    """Every public module, class and function has a docstring; an override of a protocol's method may go without."""
    problems = [] if ast.get_docstring(tree(name)) or not source(name).strip() else [f"{name}: the module"]
    problems += [
        f"{name}:{node.lineno} {node.name}: say what it does, what it raises and whether it blocks"
        for node in tree(name).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]

    assert problems == []


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_is_left_unfinished_or_tied_to_one_machine(name: str) -> None:
    """Open work belongs in an issue, a path is an argument, and the project describes only itself."""
    problems = []
    for number, line in enumerate(source(name).splitlines(), start=1):
        if _UNFINISHED.search(line):
            problems.append(f"{name}:{number} is unfinished: do it, or say in the docs what is missing")
        if _MACHINE.search(line) and name != "deploy/Dockerfile":
            problems.append(
                f"{name}:{number} names a path of one machine: use tmp_path, a setting or the repository's root"
            )
        if _WRITERS.search(line):
            problems.append(f"{name}:{number} says who or what wrote it: say what it does")

    assert problems == []


def test_no_module_is_called_utils() -> None:
    """A name that fits everything says nothing."""
    problems = [
        name for name in MODULES if {"utils", "helpers", "common", "misc"} & set(Path(name).with_suffix("").parts)
    ]

    assert problems == [], "name the module by the one thing its functions share"


def test_every_package_is_installed_and_opens_with_its_purpose() -> None:
    """A package that pyproject.toml lacks is missing from an installed Tidemark, though not from a clone."""
    listed = set(tomllib.loads(source("pyproject.toml"))["tool"]["setuptools"]["packages"])
    outside = ("tests", "benchmarks")
    packages = {str(Path(name).parent).replace("/", ".") for name in MODULES if name.endswith("__init__.py")}
    ours = {package for package in packages if package.partition(".")[0] not in outside}

    assert ours == listed
    opened = {package: ast.get_docstring(tree(package.replace(".", "/") + "/__init__.py")) or "" for package in ours}
    assert [package for package, text in opened.items() if len(text) < 120] == [], (
        "purpose, who may import it, invariant"
    )


def test_type_ignores_have_a_code_and_a_reason() -> None:
    """Without them nobody can tell whether the ignore is still needed."""
    problems = [
        f"{name}:{number}"
        for name in MODULES
        for number, line in enumerate(source(name).splitlines(), start=1)
        if "# type:" + " ignore" in line
        and not re.search(r"# type: ignore\[[\w,-]+\]  # \S", line)
        and "re.search" not in line
    ]

    assert problems == [], "write: type: ignore[code]  # reason"


def test_no_module_imports_a_test_module() -> None:
    """Whoever renames or splits a test module does not expect other modules to need it."""
    imports = re.compile(r"\s*(from|import)\s+tests\b.*\btest_")
    problems = [
        f"{name}:{number}"
        for name in MODULES
        for number, line in enumerate(source(name).splitlines(), start=1)
        if imports.match(line)
    ]

    assert problems == [], "move what both need into tests/worlds, or into a module beside the tests"


def test_no_test_is_skipped() -> None:
    """A skipped test proves nothing but looks like a test that ran."""
    marks = re.compile(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)\b")
    problems = [
        f"{name}:{number}"
        for name in MODULES
        if name.startswith("tests/") and name != "tests/test_tidy.py"
        for number, line in enumerate(source(name).splitlines(), start=1)
        if marks.search(line)
    ]

    assert problems == [], "start what the test needs in a fixture"
