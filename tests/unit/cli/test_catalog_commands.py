"""`catalog apply` with a catalog file instead of a plan, and the history of the catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregators.catalog import read_catalog
from aggregators.catalog_plan import World, plan_catalog
from pipeline.commands import catalog as commands
from pipeline.commands.catalog import Checked, Users, save_plan, users_text
from pipeline.open import read_bytes
from pipeline.settings import Settings
from schemas.catalog_changes import AtStripe, CatalogPlan, Standing
from schemas.side_tables import AuditRow
from tests.unit.catalog.files import SMALL, catalog_of, changed
from tests.unit.cli.command_lines import run

APPLY = ["catalog", "apply"]
WHY = ["--reason", "because"]
PLAN = plan_catalog(catalog_of(SMALL), World(Standing(), AtStripe(), {}))


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[CatalogPlan]:
    """The plans that the command has carried out; a file is planned against nothing."""
    plans: list[CatalogPlan] = []

    async def plan_file(_settings: Settings, path: Path) -> Checked:
        catalog, problems = read_catalog(read_bytes(path), {})
        return Checked(plan_catalog(catalog, World(Standing(), AtStripe(), {})) if catalog else None, problems)

    async def apply_file(_settings: Settings, plan: CatalogPlan, *_: object) -> bool:
        plans.append(plan)
        return True

    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    monkeypatch.setattr(commands, "plan_file", plan_file)
    monkeypatch.setattr(commands, "apply_file", apply_file)
    return plans


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "catalog.yaml"
    path.write_text(text)
    return str(path)


def test_a_catalog_file_is_planned_shown_and_asked_about(applied: list[CatalogPlan], tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    nobody, no, yes = (run([*APPLY, path, *WHY], stdin=stdin) for stdin in ("", "n\n", "y\n"))

    assert (2, 130, 0) == (nobody.code, no.code, yes.code)
    assert "add --yes to do it" in nobody.err
    assert all("+ price tm.team.v1.seat.month.usd" in each.out for each in (nobody, no, yes))
    assert "catalog version 1 is active" in yes.out
    assert [PLAN.sha256] == [plan.sha256 for plan in applied]


def test_what_is_not_asked_about_is_printed_once(applied: list[CatalogPlan], tmp_path: Path) -> None:
    """Each step is printed when it is done, and what it gives and warns of is said nowhere else."""
    result = run([*APPLY, written(tmp_path, SMALL), *WHY, "--yes"])

    assert (0, 1) == (result.code, len(applied))
    assert "+ price" not in result.out
    assert "team@1 gives:\n  seats: as many as are paid\n" in result.out
    assert "warning: catalog.yaml:33: addons.boost.price: customers of team who pay in jpy by the month" in result.out


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        pytest.param((1, 0), "1 subscription", id="had"),
        pytest.param((0, 1), "1 scheduled", id="scheduled"),
        pytest.param((12, 3), "12 subscriptions, 3 scheduled", id="both"),
    ],
)
def test_who_has_a_version_and_who_gets_it_are_counted_apart(rows: tuple[int, int], words: str) -> None:
    assert words == users_text(Users(*rows))


def test_a_saved_plan_asks_nobody(applied: list[CatalogPlan], tmp_path: Path) -> None:
    """It was looked at when it was made."""
    save_plan(PLAN, tmp_path / "plan")
    result = run([*APPLY, str(tmp_path / "plan"), *WHY])

    assert (0, [PLAN.sha256]) == (result.code, [plan.sha256 for plan in applied])
    assert "+ price" not in result.out


def test_a_catalog_file_that_is_wrong_is_not_applied(applied: list[CatalogPlan], tmp_path: Path) -> None:
    result = run([*APPLY, written(tmp_path, changed("type: seat", "type: chair")), *WHY, "--yes"])

    assert (2, []) == (result.code, applied)
    assert "catalog.yaml:9: features.seats.type:" in result.out
    assert "1 problem; nothing is planned" in result.err


def test_a_plan_that_was_changed_on_the_way_is_refused(applied: list[CatalogPlan], tmp_path: Path) -> None:
    path = tmp_path / "plan"
    save_plan(PLAN, path)
    path.write_bytes(path.read_bytes().replace(b"9000", b"9999"))
    result = run([*APPLY, str(path), *WHY])

    assert (2, []) == (result.code, applied)
    assert "plan again" in result.err


def test_the_history_names_what_each_row_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move of a subscription without an account is in the same audit."""

    async def history(_settings: Settings) -> list[AuditRow]:
        row = AuditRow("", 1, 0, "ann", "catalog apply", "catalog", "3", None, None, "why")
        return [row, row._replace(entity="plan_move", entity_id="sub_1.1")]

    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    monkeypatch.setattr(commands, "history", history)

    assert run(["catalog", "show", "--history"]).out.splitlines() == [
        "version 3  1970-01-01T00:00:00Z  ann: why", "plan_move sub_1.1  1970-01-01T00:00:00Z  ann: why",
    ]  # fmt: skip
