"""The documentation agrees with the code: what the pages mention exists, and what exists is documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from pipeline.cli import cli
from pipeline.metrics import METRICS
from pipeline.settings import Settings
from schemas.reasons import Reason
from simulation.faults import OF_THE_TRAFFIC, Fault
from stripe_simulator.__main__ import main as simulator_command
from tests.documents import DOCS, OTHER_VARIABLES, PAGES, REDRIVE, ROOT, error_classes, leaves
from tests.simulation.mutants import MUTANTS

PACKAGES = (
    "aggregators",
    "demo",
    "emitter",
    "oracle",
    "pipeline",
    "reconciler",
    "schemas",
    "sinks",
    "stripe_simulator",
)
DOCUMENTS = sorted([
    *ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md"),
])  # fmt: skip
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
REFUSALS = DOCS / "runbook" / "refuses-to-start.md"
# These messages occur only on a developer's machine; `tidemark dev` prints them with the end of the log.
DEVELOPERS_ONLY = (
    "pipeline/local/supervisor.py",
    "pipeline/local/kafka.py",
    "pipeline/local/valkey.py",
    "sinks/redis/fake.py",
)
# A command at the start of a line, as a person types it, or in the text.
_COMMAND = r"(?:^ *|`|\$ |tools )(?:\.venv/bin/)?tidemark ((?:[a-z-]+ ?)[^`\n]*)"
# The packages that have command lines of their own.
_COMMAND_LINES = ("benchmarks", "demo", "simulation", "stripe_simulator", "tests/migration", "tests/torture")
_CODE_BLOCK = re.compile(r"^```.*?^```", re.S | re.M)


@pytest.mark.parametrize("name", PAGES)
def test_pages_made_from_the_code_are_up_to_date(name: str) -> None:
    """A generated page that is older than the code is wrong."""
    assert PAGES[name]() == (DOCS / name).read_text(), "run: python -m tests.documents"


def test_every_setting_is_documented() -> None:
    """The page lists every variable that a role may read."""
    page = (DOCS / "settings.md").read_text()

    assert [name for name in Settings.model_fields if f"`TIDEMARK_{name.upper()}`" not in page] == []
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_variable_that_the_code_reads_is_documented() -> None:
    """Commands read some variables directly, outside Settings."""
    known = {f"TIDEMARK_{name.upper()}" for name in Settings.model_fields} | set(OTHER_VARIABLES)
    variables = {
        variable
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for variable in re.findall(r"\bTIDEMARK_[A-Z_]*[A-Z]\b", path.read_text())
    }

    assert variables <= known


def test_every_metric_is_documented() -> None:
    """An operator must find an explanation for the metric behind an alert."""
    page = (DOCS / "metrics.md").read_text()

    assert [name for name in METRICS if f"`{name}`" not in page] == []


# The errors that need an operator.
PERSONS = ("OperatorNeeded", "HeldUp")


def test_every_error_and_reason_is_documented_with_its_remedy() -> None:
    """The lists are closed: a new entry needs its line, and says whether redriving helps."""
    page = (DOCS / "errors.md").read_text()

    assert [each.__name__ for each in error_classes() if each.__name__ not in page] == []
    assert [reason.value for reason in Reason if f"`{reason.value}`" not in page] == []
    assert set(REDRIVE) == set(Reason)


def _refusals() -> Iterator[tuple[str, str]]:
    """(place, longest constant part of the message) of each statement that raises one of `PERSONS`."""
    for package in ("pipeline", "sinks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            where = str(path.relative_to(ROOT))
            if where in DEVELOPERS_ONLY:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in PERSONS:
                    part = max(_constants(node), key=len, default="").lstrip(".,:;) ")
                    if len(part) > 15:
                        yield f"{where}:{node.lineno}", part[:40].strip()


def _constants(call: ast.Call) -> list[str]:
    return [
        node.value.strip()
        for argument in call.args
        for node in ast.walk(argument)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_every_refusal_has_its_place_in_the_runbook() -> None:
    """An operator on call searches for the message of the error."""
    page = " ".join(REFUSALS.read_text().split())
    missing = [f"{where}: {part!r}" for where, part in _refusals() if part not in page]

    assert missing == [], f"add them to {REFUSALS.relative_to(ROOT)}"


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_has_a_target(name: str) -> None:
    """Links to files and headings; links to the web are not checked."""
    path = ROOT / name
    text = _CODE_BLOCK.sub("", path.read_text())
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (heading and heading not in _anchors(linked)):
            broken.append(target)

    assert broken == []


def _anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts generate them."""
    headings = re.findall(r"^#+ (.+)$", _CODE_BLOCK.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_path_in_the_documents_exists(name: str) -> None:
    """A reader follows the page into the code."""
    text = (ROOT / name).read_text()
    paths = set(re.findall(r"`([\w.\-/]+/[\w.\-/]*)`", text)) | set(
        re.findall(r"\b((?:\w+/)+\w+\.(?:py|sql|md|ya?ml))\b", text)
    )
    # The sink of the example in CONTRIBUTING.md.
    ours = {each for each in paths if each.partition("/")[0] in _tops() and "warehouse" not in each}

    assert [each for each in sorted(ours) if not (ROOT / each).exists()] == []


def _tops() -> set[str]:
    return {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_in_the_documents_exists(name: str) -> None:
    """`tidemark …` in the text is a command of the command line with these options."""
    wrong = []
    for line in re.findall(_COMMAND, (ROOT / name).read_text(), re.M):
        words = line.split()
        command: click.Command | None = cli
        while isinstance(command, click.Group) and words:
            default = command.commands.get(getattr(command, "default", ""))
            command = command.commands.get(words.pop(0).rstrip(".,:;)"), default)
        if command is None:
            wrong.append(line)
            continue
        given = {word.partition("=")[0].rstrip(".,:;)") for word in words if word.startswith("--")}
        wrong += [f"{line}: {word}" for word in sorted(given - _options(command))]

    assert wrong == []


# The changelog names options that are gone.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_every_option_that_the_documents_name_alone_exists(name: str) -> None:
    """A reader adds `--no-example` to the command of the sentence before."""
    known = {option for _, command in leaves(cli) for option in _options(command)} | _options_of_others()
    named = set(re.findall(r"`(--[a-z][a-z-]*)", (ROOT / name).read_text()))

    assert sorted(named - known) == []


@cache
def _options_of_others() -> frozenset[str]:
    """The options that the other command lines name in their code."""
    files = [path for package in _COMMAND_LINES for path in (ROOT / package).rglob("*.py")]
    return frozenset(each for path in files for each in re.findall(r'"(--[a-z][a-z-]*)', path.read_text()))


def _options(command: click.Command) -> set[str]:
    """The options of a command, also those that say no, and those that it hands on."""
    command = simulator_command if command is cli.commands["stripe-simulator"] else command
    return {each for one in command.params for each in (*one.opts, *one.secondary_opts)} | {"--help"}


def test_every_page_is_in_the_index() -> None:
    """A page outside the index is never found."""
    index = (DOCS / "README.md").read_text()
    pages = [str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md")) if path.name != "README.md"]

    assert [page for page in pages if f"({page})" not in index] == []


@pytest.mark.parametrize("path", sorted((DOCS / "adr").glob("*.md")), ids=lambda path: path.stem)
def test_a_decision_is_one_page_and_links_its_check(path: Path) -> None:
    """A decision without a check is only a wish."""
    text = path.read_text()

    assert re.findall(r"^## (.+)$", text, re.M) == ["Decision", "Why", "What it costs", "What enforces it"]
    assert len(text.splitlines()) <= 60
    assert re.search(r"`(tests/|pyproject)", text.partition("## What enforces it")[2])


def test_the_tests_in_the_documents_exist() -> None:
    """`tests/…::test_…` in a page is a real test."""
    missing = []
    for name in NAMES:
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / name).read_text()):
            if not (ROOT / file).exists() or f"def {test}(" not in (ROOT / file).read_text():
                missing.append(f"{name}: {file}::{test}")

    assert missing == []


def test_every_test_that_a_guarantee_cites_exists() -> None:
    """No sentence of the guarantees lacks a test."""
    text = (ROOT / "docs/guarantees.md").read_text()
    promised = [line for line in text.splitlines() if line.startswith(("| **", "- **"))]
    assert len(promised) > 15
    for line in promised:
        tests = re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", line)
        assert tests, line
        for path, name in tests:
            assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_the_table_of_mutants_lists_exactly_the_existing_ones() -> None:
    """A mutant without its number of runs was never shown to be caught."""
    text = (ROOT / "tests/simulation/README.md").read_text().partition("| Defect | Runs to catch |")[2]
    rows = re.findall(r"^\| (.+) \| (\d+) \| [^|]+ \|$", text.partition("\n\n")[0], re.M)

    assert [name for name, _ in rows] == [mutant.name for mutant in MUTANTS]


def test_every_fault_of_the_simulation_has_a_test_on_the_real_service() -> None:
    """A fake whose faults do not exist in reality would prove nothing."""
    lines = (ROOT / "tests/simulation/README.md").read_text().splitlines()
    shown = {cells[1].strip(): cells[3] for cells in (line.split("|") for line in lines) if len(cells) == 5}
    for fault in set(Fault) - OF_THE_TRAFFIC:
        ((path, name),) = re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", shown[fault.value])
        assert f"def {name}(" in (ROOT / path).read_text(), name
