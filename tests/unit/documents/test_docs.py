"""The documentation is held to the code: what it names exists, and what exists is named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.cli import cli
from pipeline.metrics import METRICS
from pipeline.settings import Settings
from schemas.reasons import Reason
from simulation.faults import OF_THE_TRAFFIC, Fault
from tests.documents import DOCS, OTHER_VARIABLES, PAGES, REDRIVE, ROOT, error_classes
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
# Messages that only a developer's own machine can show; `tidemark dev` prints them with the end of the log.
DEVELOPERS_ONLY = (
    "pipeline/local/supervisor.py",
    "pipeline/local/kafka.py",
    "pipeline/local/valkey.py",
    "sinks/redis/fake.py",
)
_CODE_BLOCK = re.compile(r"^```.*?^```", re.S | re.M)


@pytest.mark.parametrize("name", PAGES)
def test_pages_made_from_the_code_are_up_to_date(name: str) -> None:
    """A page that is older than the code is wrong."""
    assert PAGES[name]() == (DOCS / name).read_text(), "run: python -m tests.documents"


def test_every_setting_is_documented() -> None:
    """An operator who reads the page has seen every variable a role may read."""
    page = (DOCS / "settings.md").read_text()

    assert [name for name in Settings.model_fields if f"`TIDEMARK_{name.upper()}`" not in page] == []
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_variable_that_the_code_names_is_documented() -> None:
    """Some are read by commands directly, past the settings."""
    known = {f"TIDEMARK_{name.upper()}" for name in Settings.model_fields} | set(OTHER_VARIABLES)
    named = {
        variable
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for variable in re.findall(r"\bTIDEMARK_[A-Z_]*[A-Z]\b", path.read_text())
    }

    assert named <= known


def test_every_metric_is_documented() -> None:
    """What an alert shows must be explained somewhere."""
    page = (DOCS / "metrics.md").read_text()

    assert [name for name in METRICS if f"`{name}`" not in page] == []


# The errors that ask for a person.
PERSONS = ("OperatorNeeded", "HeldUp")


def test_every_error_and_reason_is_documented_with_its_remedy() -> None:
    """Closed lists: a new entry needs its line, and an answer to whether redriving helps."""
    page = (DOCS / "errors.md").read_text()

    assert [each.__name__ for each in error_classes() if each.__name__ not in page] == []
    assert [reason.value for reason in Reason if f"`{reason.value}`" not in page] == []
    assert set(REDRIVE) == set(Reason)


def _refusals() -> Iterator[tuple[str, str]]:
    """(where, the longest constant part of the message) of each place that raises one of `PERSONS`."""
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
    """Whoever is called at night searches for the message they see."""
    page = " ".join(REFUSALS.read_text().split())
    missing = [f"{where}: {part!r}" for where, part in _refusals() if part not in page]

    assert missing == [], f"add them to {REFUSALS.relative_to(ROOT)}"


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    """Links to files and to headings; addresses on the net are not asked."""
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
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", _CODE_BLOCK.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_path_that_is_named_exists(name: str) -> None:
    """A page that names files is followed into the code."""
    text = (ROOT / name).read_text()
    named = set(re.findall(r"`([\w.\-/]+/[\w.\-/]*)`", text)) | set(
        re.findall(r"\b((?:\w+/)+\w+\.(?:py|sql|md|ya?ml))\b", text)
    )
    # The sink that CONTRIBUTING.md shows how to add.
    ours = {each for each in named if each.partition("/")[0] in _tops() and "warehouse" not in each}

    assert [each for each in sorted(ours) if not (ROOT / each).exists()] == []


def _tops() -> set[str]:
    return {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_that_is_named_is_one(name: str) -> None:
    """`tidemark …` in the text is a command of the command line, and each option is its own."""
    wrong = []
    for line in re.findall(r"(?:^|`|\$ |tools )tidemark ((?:[a-z-]+ ?)[^`\n]*)", (ROOT / name).read_text(), re.M):
        words = line.split()
        command: click.Command | None = cli
        while isinstance(command, click.Group) and words:
            command = command.commands.get(words.pop(0).rstrip(".,:;)"))
        if command is None:
            wrong.append(line)
            continue
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        wrong += [f"{line}: {word}" for word in words if word.startswith("--") and word.partition("=")[0] not in known]

    assert wrong == []


def test_every_page_is_in_the_index() -> None:
    """A page that nobody finds is not documentation."""
    index = (DOCS / "README.md").read_text()
    pages = [str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md")) if path.name != "README.md"]

    assert [page for page in pages if f"({page})" not in index] == []


@pytest.mark.parametrize("path", sorted((DOCS / "adr").glob("*.md")), ids=lambda path: path.stem)
def test_a_decision_is_one_page_and_names_its_check(path: Path) -> None:
    """A decision without a check is a wish."""
    text = path.read_text()

    assert re.findall(r"^## (.+)$", text, re.M) == ["Decision", "Why", "What it costs", "What enforces it"]
    assert len(text.splitlines()) <= 60
    assert re.search(r"`(tests/|pyproject)", text.partition("## What enforces it")[2])


def test_the_tests_that_are_named_exist() -> None:
    """`tests/…::test_…` in a page is a test that runs."""
    missing = []
    for name in NAMES:
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / name).read_text()):
            if not (ROOT / file).exists() or f"def {test}(" not in (ROOT / file).read_text():
                missing.append(f"{name}: {file}::{test}")

    assert missing == []


def test_every_test_that_a_guarantee_names_exists() -> None:
    """No sentence there without a test."""
    text = (ROOT / "docs/guarantees.md").read_text()
    promised = [line for line in text.splitlines() if line.startswith(("| **", "- **"))]
    assert len(promised) > 15
    for line in promised:
        named = re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", line)
        assert named, line
        for path, name in named:
            assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_the_table_of_mutants_names_those_that_there_are() -> None:
    """A defect without its number of runs was never shown to be caught."""
    text = (ROOT / "tests/simulation/README.md").read_text().partition("| Defect | Runs to catch |")[2]
    rows = re.findall(r"^\| (.+) \| (\d+) \| [^|]+ \|$", text.partition("\n\n")[0], re.M)

    assert [name for name, _ in rows] == [mutant.name for mutant in MUTANTS]


def test_every_fault_of_the_simulation_is_shown_once_on_the_real_service() -> None:
    """A fake that fails in ways of its own would prove nothing."""
    lines = (ROOT / "tests/simulation/README.md").read_text().splitlines()
    shown = {cells[1].strip(): cells[3] for cells in (line.split("|") for line in lines) if len(cells) == 5}
    for fault in set(Fault) - OF_THE_TRAFFIC:
        ((path, name),) = re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", shown[fault.value])
        assert f"def {name}(" in (ROOT / path).read_text(), name
