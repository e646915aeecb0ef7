"""What a person reads who says no, gives too little, or runs a command where no deployment is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import cli
from pipeline.commands import accounts
from pipeline.logs.bindings import Plan
from pipeline.settings import Settings
from schemas.control import CloseRecord
from tests.documents import leaves
from tests.unit.cli.command_lines import ROLES, run

CLOSING = ["close-period", "acme", "2026-11-10T00:00:00Z"]


@pytest.fixture
def appended(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that a command has carried out; the plan of a closing is made without stores."""
    plans: list[Plan] = []

    async def plan(_settings: Settings, account: str, instant_ms: int) -> Plan:
        record = CloseRecord(account=account, revision=1, instant_ms=instant_ms)
        return Plan(0, 0, record, (f"{account}: closes",), is_final=True)

    async def append(_settings: Settings, planned: Plan) -> str:
        plans.append(planned)
        return "closed"

    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    monkeypatch.setattr(accounts, "plan_closing", plan)
    monkeypatch.setattr(accounts, "append_planned", append)
    return plans


@pytest.mark.parametrize("answer", ["n\n", "\n"])
def test_no_does_nothing_and_says_so(appended: list[Plan], answer: str) -> None:
    """Exit code 130, as docs/errors.md says."""
    result = run(CLOSING, stdin=answer)

    assert (result.code, result.err, appended) == (130, "tidemark: nothing was done\n", [])


def test_question_that_nobody_can_answer_does_nothing_and_says_so(appended: list[Plan]) -> None:
    """Exit code 2: the call lacks an option."""
    result = run(CLOSING)

    message = "tidemark: --yes: nobody answered the question, so nothing was done: add --yes to do it\n"
    assert (result.code, result.err, appended) == (2, message, [])


@pytest.mark.parametrize(("arguments", "answer"), [(["--yes"], ""), ([], "y\n")])
def test_yes_does_it(appended: list[Plan], arguments: list[str], answer: str) -> None:
    result = run([*CLOSING, *arguments], stdin=answer)

    assert (result.code, result.err, len(appended)) == (0, "", 1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["emit"], "tidemark: Missing argument 'EVENT_TYPE'; add -h for the help"),
        (["top", "--meter", "m", "--limit", "-3"], "tidemark: Invalid value for '--limit': -3 is not in the range 1<="),
        (
            ["key", "create"],
            "tidemark: Missing option '--role'. Choose from: ingest, read, check, billing, operator, finance, admin",
        ),
        (["rebuild"], "tidemark: Missing argument 'COMMAND': give one of archive, redis, usage_hourly"),
        (["nonsense"], "tidemark: No such command 'nonsense'; add -h for the help"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], line: str) -> None:
    result = run(arguments)

    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(line)


def test_command_without_anything_prints_the_help() -> None:
    result = run([])

    assert (result.code, result.err) == (0, "")
    assert "tidemark dev" in result.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "2026-12-01T00:00:00Z", "--to", "2026-11-01T00:00:00Z"], "--to: 2026-11-01T00:00:00Z is not after"),
        (["--from", "2026-12-01T00:00:00Z", "--to", "2026-12-01T00:00:00Z"], "--to: 2026-12-01T00:00:00Z is not after"),
        (["--from", ""], "--from: '' is no RFC 3339 time with an offset"),
        (["--from", "2026-02-30T00:00:00Z"], "--from: '2026-02-30T00:00:00Z' names a day, a time of day or an offset"),
        (["--to", "2026-02-28T24:00:00Z"], "--to: '2026-02-28T24:00:00Z' names a day, a time of day or an offset"),
    ],
)
def test_range_that_cannot_contain_a_period_is_refused(arguments: list[str], said: str) -> None:
    """A verdict on nothing would look like a proof."""
    result = run(["reconcile", *arguments])

    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"tidemark: {said}")


EXAMPLES = {
    ("account", "bind"): ["acme", "--free"], ("account", "show"): ["acme"],
    ("account", "link"): ["acme", "--customer", "cus_1"], ("billing", "audit"): ["acme"],
    ("account", "link-all"): ["/dev/null"], ("backfill",): [__file__, "--format", "ndjson"],
    ("billing", "backup"): ["/dev/null/backup"], ("billing", "restore"): ["/dev/null/backup"],
    ("account", "override"): ["acme", "api_calls", "--add", "5", "--reason", "a gift"],
    ("account", "entitlements"): ["acme", "--at", "2026-11-03T14:03:00Z"],
    ("account", "overrides"): ["acme"], ("account", "revoke"): ["acme", "1", "--reason", "a mistake"],
    ("change", "preview"): ["acme", "pro"], ("change", "accept"): ["acme", "qt_1"], ("change", "undo"): ["acme"],
    ("credits", "balance"): ["acme"], ("credits", "ledger"): ["acme"],
    ("credits", "grant"): ["acme", "scans", "5", "--key", "k", "--reason", "a gift"],
    ("credits", "void"): ["acme", "cg_1", "--reason", "a mistake"],
    ("correct", "void"): ["acme", "event-1", "--reason", "a test run"],
    ("correct", "amend"): ["acme", "event-1", '{"tokens": 1}', "--reason", "a wrong unit"],
    ("correct", "list"): ["acme"],
    ("seats", "list"): ["acme"], ("seats", "add"): ["acme", "members", "user_1"],
    ("seats", "activate"): ["acme", "seat_1"], ("seats", "release"): ["acme", "seat_1"],
    ("change", "checkout"): ["acme", "pro", "--return-url", "https://app.example"],
    ("change", "portal"): ["acme", "--return-url", "https://app.example"],
    ("billing", "settle"): ["sub_1", "--reason", "refunded"],
    ("check",): ["acme", "api_calls"], ("notices", "retry"): ["--all-dead"],
    ("dunning", "write-off"): ["dun_1", "--reason", "goodwill"],
    ("migration", "plan"): [
        "usage", "--from", "flat@1", "--shadow", "shadow@1", "--to", "metered@1", "--reason", "because"
    ],
    ("migration", "shadow"): ["usage", "--reason", "because"], ("migration", "compare"): ["usage"],
    ("migration", "approve"): ["usage", "--wave", "1", "--notified", "2027-01-28T00:00:00Z", "--reason", "because"],
    ("migration", "promote"): ["usage", "--wave", "1", "--reason", "because"],
    ("migration", "revert"): ["usage", "--all", "--reason", "because"],
    ("migration", "resume"): ["usage", "--reason", "because"],
    ("hold", "use"): ["hold_1"], ("hold", "release"): ["hold_1"],
    ("explain", "show"): ["in_1"], ("explain", "verify"): ["README.md"], ("explain", "key"): ["README.md"],
    ("account", "acknowledge"): ["acme", "tm_1", "--reason", "a test"],
    ("account", "page"): ["acme"], ("account", "timeline"): ["acme"],
    ("account", "unlink"): ["acme", "--reason", "wrong"], ("account", "flush"): ["acme"],
    ("close-period",): CLOSING[1:],
    ("catalog", "plan"): ["schemas/catalog.default.yaml"],
    ("catalog", "apply"): ["schemas/catalog.default.yaml", "--reason", "because"],
    ("catalog", "migrate"): ["team@1", "2", "--at", "renewal"],
    ("meters", "apply"): ["schemas/catalog.default.yaml"], ("emit",): ["call", "--account", "acme"],
    ("usage",): ["--account", "acme"], ("top",): ["--meter", "tokens"], ("key", "create"): ["--role", "read"],
    ("key", "revoke"): ["id"], ("key", "rotate"): ["id"], ("billing", "redrive"): ["tm_1", "--reason", "corrected"],
    ("periods",): ["--account", "a", "--meter", "m", "--from", "2026-11-01T00:00:00Z", "--to", "2026-12-01T00:00:00Z"],
}  # fmt: skip
WITHOUT_DEPLOYMENT = {
    ("dev",), ("stripe-simulator",), ("meters", "check"), ("meters", "schema"),
    ("catalog", "schema"), ("catalog", "example"), *((role,) for role in ROLES)
}  # fmt: skip


@pytest.mark.parametrize("words", [words for words, _ in leaves(cli) if words not in WITHOUT_DEPLOYMENT])
def test_command_where_no_deployment_is_says_so(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most usual mistake: another folder, or `dev` has ended. A secret made by hand would not help."""
    monkeypatch.setenv("TIDEMARK_DATA_DIR", str(tmp_path))

    result = run([*words, *EXAMPLES.get(words, [])])

    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "is not set and no `tidemark dev` runs here; start it, or " in result.err
    assert list(tmp_path.iterdir()) == []
