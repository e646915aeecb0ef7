"""`account bind` and `close-period`: wrong input is one line, and each says what it does before it does it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from aggregators.binding_timeline import timeline
from aggregators.entitlement_codec import encode
from aggregators.instants import format_instant_ms
from pipeline.cli import main
from pipeline.cli.operate import binding_of
from pipeline.commands import access
from pipeline.commands.accounts import binding_plan, check_unlinked, closing_plan
from pipeline.logs.bindings import AccountLog, Plan, Standing, append_plan, standing
from pipeline.logs.control_records import append_control
from schemas.control import BindingRecord
from schemas.entitlements import EntitlementVersion, Grant, Operation, Override, Resolved, Segment, SourceKind
from schemas.errors import InvalidInput, Transient
from schemas.meters import MeterSet
from schemas.periods import AccountState, Billing, Binding, Customer
from sinks.sql.fake import FakeSideTables
from tests.unit.cli.command_lines import run
from tests.worlds.deployment import SECRET, World
from tests.worlds.reconciler import METER_SET, START_MS

FREE = Binding(effective_from_ms=0, billing=Billing.FREE)
ACME = "acme"


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def mapped(customer: str = "cus_acme", **fields: Any) -> Binding:
    content = {"effective_from_ms": 0, "billing": Billing.MAPPED, "stripe_customer": customer, **fields}
    return Binding.model_validate(content)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("account|bind|acme|--customer|cus_1|--free", "--free: contradicts --customer cus_1"),
        ("account|bind|acme|--customer|foo", "--customer: 'foo' is no Stripe customer"),
        ("account|bind|acme|--customer|cus_", "--customer: 'cus_' is no Stripe customer"),
        ("account|bind|acme|--customer|CUS_1", "--customer: "),
        ("account|bind|acme|--interval-count|0", "--interval-count: 0 is not from 1 to 1200"),
        ("account|bind|acme|--interval-count|-1", "--interval-count: -1 is not"),
        ("account|bind|acme|--interval-count|1201", "--interval-count: 1201 is not"),
        ("account|bind|acme", "--customer: give --customer or --free, or a period (--anchor, --interval)"),
        ("account|bind|acme|--from|2026-11-17T00:00:00Z|--yes", "--customer: give --customer or --free"),
        ("account|bind||--free", "NAME: an account's name has 1 to 256 characters, this has 0"),
        (f"account|bind|{'a' * 257}|--free", "NAME: an account's name has 1 to 256 characters, this has 257"),
        ("account|bind|acme|--anchor|2026-11-17", "--anchor: '2026-11-17' is no RFC 3339 time"),
        ("account|bind|acme|--anchor|0000-11-17T00:00:00Z", "--anchor: "),
        ("account|bind|acme|--anchor|", "--anchor: '' is no RFC 3339 time"),
        ("account|bind|acme|--from|tomorrow", "--from: 'tomorrow' is no RFC 3339 time"),
        ("account|show|", "NAME: "),
        ("close-period||2026-11-17T00:00:00Z", "NAME: "),
        ("close-period|acme|2026-11-17", "INSTANT: '2026-11-17' is no RFC 3339 time"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found before any setting is read."""
    monkeypatch.setattr("sys.argv", ["tidemark", *arguments.split("|")])
    with pytest.raises(SystemExit) as exited:
        main()

    (line,) = capsys.readouterr().err.splitlines()
    assert exited.value.code == 2
    assert line.startswith(f"tidemark: {said}")


def test_an_anchor_keeps_its_seconds_and_an_instant_of_effect_is_cut_down() -> None:
    """Rounded up, the last bucket would be billed in Stripe's next period."""
    binding = binding_of(
        "2026-11-17T12:34:33Z", "month", 1, "2026-11-20T10:00:59.999Z", "cus_1", free=False
    )  # fmt: skip

    assert (binding.anchor_ms, binding.effective_from_ms) == (at("2026-11-17T12:34:33"), at("2026-11-20T10:00"))


def known(state: AccountState, now: str) -> Standing:
    return Standing(0, 7, at(now), state, MeterSet.model_validate(METER_SET))


def test_binding_says_which_period_it_ends_and_who_pays_before_and_after() -> None:
    """The trial's end: the customer pays from the cut on, not from the instant that was asked for."""
    trial = AccountState(customers=(Customer(0, Billing.FREE, ""),), has_payer=True, revision=4, bindings=(FREE,))
    binding = mapped(effective_from_ms=at("2026-11-10T10:40"), anchor_ms=at("2026-11-10T10:40:33"))

    plan = binding_plan(known(trial, "2026-11-10T10:40:12"), ACME, binding)

    assert plan.record == BindingRecord(account=ACME, revision=5, binding=binding)
    assert plan.is_final
    assert plan.lines == (
        "acme: binding 5",
        (
            "  anchor: 2026-11-10T10:40:33Z; periods are counted from 2026-11-10T10:40:00Z; "
            "this replaces 1970-01-01T00:00:00Z"
        ),
        "  takes effect: 2026-11-10T10:46:00Z",
        "  ends the period: 2026-11-01T00:00:00Z to 2026-12-01T00:00:00Z at 2026-11-10T10:46:00Z",
        "  period from then on: 2026-11-10T10:46:00Z to 2026-12-10T10:40:00Z",
        "  pays until then: nobody (free)",
        "  pays from then on: cus_acme",
        "  not for usage since 2026-11-10T10:40:00Z, which stays with nobody (free)",
    )


def test_first_customer_is_named_for_all_usage_without_a_question() -> None:
    """Nothing was billed to anybody before."""
    plan = binding_plan(known(AccountState(), "2026-11-10T10:40:12"), ACME, mapped())

    assert not plan.is_final
    assert "  also for: usage so far that nobody was named for" in plan.lines
    assert not any(line.startswith("  ends") for line in plan.lines)


@pytest.mark.parametrize(
    ("from_", "lines"),
    [
        pytest.param(
            0,
            (
                (
                    "  takes effect: 2026-11-01T00:00:00Z; usage since 2026-11-01T00:00:00Z, if there is any, is "
                    "counted again in the new periods"
                ),
                "  period from then on: 2026-11-01T00:00:00Z to 2026-11-17T12:34:00Z",
                "  current period: 2026-11-17T12:34:00Z to 2026-12-17T12:34:00Z",
                "  pays: cus_acme",
                "  also for: usage so far that nobody was named for",
            ),
            id="from the first open period",
        ),
        pytest.param(
            at("2026-11-15"),
            (
                (
                    "  takes effect: 2026-11-15T00:00:00Z; usage since 2026-11-01T00:00:00Z, if there is any, is "
                    "counted again in the new periods"
                ),
                "  ends the period: 2026-11-01T00:00:00Z to 2026-12-01T00:00:00Z at 2026-11-15T00:00:00Z",
                "  period from then on: 2026-11-15T00:00:00Z to 2026-11-17T12:34:00Z",
                "  current period: 2026-11-17T12:34:00Z to 2026-12-17T12:34:00Z",
                "  pays until then: nobody (its reports are held)",
                "  pays from then on: cus_acme",
            ),
            id="from an instant",
        ),
    ],
)
def test_late_anchor_says_what_is_counted_again_and_who_pays_before_and_after(
    from_: int, lines: tuple[str, ...]
) -> None:
    """The main case: the customer's subscription is known after the first usage."""
    binding = mapped(effective_from_ms=from_, anchor_ms=at("2026-11-17T12:34:33"))

    plan = binding_plan(known(AccountState(), "2026-11-30T10:40:12"), ACME, binding)

    assert plan.lines[1:] == (
        (
            "  anchor: 2026-11-17T12:34:33Z; periods are counted from 2026-11-17T12:34:00Z; "
            "this replaces 1970-01-01T00:00:00Z"
        ),
        *lines,
    )


def test_customer_of_usage_that_had_none_pays_for_all_of_it() -> None:
    """Nothing of that usage stays with another payer. The periods stay, so nothing is counted again."""
    binding = mapped(effective_from_ms=at("2025-12-05T12:34"))

    plan = binding_plan(known(AccountState(), "2026-12-01T00:00:10"), ACME, binding)

    assert plan.lines[-2:] == (
        "  pays: cus_acme",
        "  also for: usage since 2025-12-05T12:34:00Z that nobody was named for",
    )


def test_free_account_that_nobody_was_named_for_is_free_from_the_start() -> None:
    plan = binding_plan(known(AccountState(), "2026-11-10T10:40:12"), ACME, FREE)

    assert plan.lines[-2:] == (
        "  pays: nobody (free)",
        "  also for: usage so far that nobody was named for",
    )


def test_forgotten_anchor_is_named() -> None:
    """A binding sets all of them, so a customer without an anchor takes the subscription's anchor away."""
    old = mapped("cus_one", anchor_ms=at("2026-11-17T12:34:33"), interval="year")
    customers = (Customer(0, Billing.MAPPED, "cus_one"),)
    state = AccountState(bindings=(old,), customers=customers, has_payer=True, revision=1)

    plan = binding_plan(known(state, "2026-11-30T10:40:12"), ACME, mapped("cus_one"))

    assert plan.lines[1:] == (
        "  anchor: 1970-01-01T00:00:00Z; this replaces 2026-11-17T12:34:00Z: give --anchor to keep the old one",
        "  interval: 1 month; this replaces 1 year",
        "  takes effect: 2026-11-30T10:46:00Z",
        "  ends the period: 2026-11-17T12:34:00Z to 2027-11-17T12:34:00Z at 2026-11-30T10:46:00Z",
        "  period from then on: 2026-11-30T10:46:00Z to 2026-12-01T00:00:00Z",
        "  pays: cus_one",
    )


def test_effect_that_is_said_is_the_effect_of_the_record() -> None:
    """Also if the binding changes no period and no payer, so that nothing in the state shows the instant."""
    state = AccountState(customers=(Customer(0, Billing.FREE, ""),), has_payer=True, revision=1, bindings=(FREE,))

    plan = binding_plan(known(state, "2026-11-10T10:40:12"), ACME, FREE)

    assert plan.lines[1:] == (
        "  takes effect: 2026-11-10T10:46:00Z",
        "  period from then on: 2026-11-01T00:00:00Z to 2026-12-01T00:00:00Z",
        "  pays: nobody (free)",
    )


def test_closing_shows_the_period_and_its_usage() -> None:
    """A running period is closed only after a question; its later usage goes to the next one."""
    state = AccountState(customers=(Customer(0, Billing.MAPPED, "cus_acme"),), has_payer=True, revision=1)

    plan = closing_plan(
        known(state, "2026-11-10T10:40"), ACME, at("2026-11-02"), {"requests": "12", "gigabytes": "1500"}
    )

    assert plan.is_final
    assert plan.record.revision == 2
    assert plan.lines == (
        "acme: closes the period 2026-11-01T00:00:00Z to 2026-12-01T00:00:00Z, which is still running",
        "  pays: cus_acme",
        "  usage: gigabytes 1.5",
        "  usage: requests 12",
        "  later usage: counted in 2026-12-01T00:00:00Z to 2027-01-01T00:00:00Z",
    )


FOLLOWED = AccountState(
    bindings=(FREE,), payer_cuts_ms=(at("2026-11-20"),), has_payer=True, revision=2,
    customers=(Customer(0, Billing.FREE, ""), Customer(at("2026-11-20"), Billing.MAPPED, "cus_two")),
)  # fmt: skip
LATE = "  later usage"


@pytest.mark.parametrize(
    ("state", "now", "lines"),
    [
        pytest.param(
            FOLLOWED,
            "2026-11-20T00:10",
            (f"{LATE}: quarantined, because another payer follows: cus_two",),
            id="another payer has followed",
        ),
        pytest.param(
            FOLLOWED,
            "2026-11-19T23:58",
            (f"{LATE}: quarantined, because another payer follows: cus_two",),
            id="another payer will follow",
        ),
        pytest.param(
            FOLLOWED.model_copy(update={"closed_start_ms": (at("2026-11-20"),)}),
            "2026-11-20T00:10",
            (f"{LATE}: quarantined, because another payer follows: cus_two",),
            id="the next period is closed too",
        ),
        pytest.param(
            FOLLOWED.model_copy(
                update={"customers": (Customer(at("2026-11-20"), Billing.MAPPED, "cus_two"),), "has_payer": False}
            ),
            "2026-11-20T00:10",
            (f"{LATE}: counted in 2026-11-20T00:00:00Z to 2026-12-01T00:00:00Z",),
            id="nobody paid before",
        ),
        pytest.param(
            FOLLOWED.model_copy(
                update={
                    "payer_cuts_ms": (at("2026-12-20"),),
                    "customers": (Customer(0, Billing.FREE, ""), Customer(at("2026-12-20"), Billing.MAPPED, "cus_two")),
                }
            ),
            "2026-11-20T00:10",
            (
                f"{LATE}: counted in 2026-12-01T00:00:00Z to 2026-12-20T00:00:00Z",
                f"{LATE} that arrives after 2026-12-20T00:00:00Z: quarantined, because cus_two pays then",
            ),
            id="another payer follows later",
        ),
        pytest.param(
            FOLLOWED.model_copy(
                update={
                    "payer_cuts_ms": (at("2026-12-01"),),
                    "customers": (
                        Customer(at("2026-11-15"), Billing.FREE, ""),
                        Customer(at("2026-12-01"), Billing.MAPPED, "cus_two"),
                    ),
                }
            ),
            "2026-11-20T00:10",
            (
                (
                    f"{LATE} of 2026-11-01T00:00:00Z to 2026-11-15T00:00:00Z: counted in 2026-12-01T00:00:00Z to "
                    "2027-01-01T00:00:00Z"
                ),
                (
                    f"{LATE} of 2026-11-15T00:00:00Z to 2026-12-01T00:00:00Z: quarantined, because another payer "
                    "follows: cus_two"
                ),
            ),
            id="nobody paid for the first half",
        ),
    ],
)
def test_closing_says_what_happens_to_later_usage(state: AccountState, now: str, lines: tuple[str, ...]) -> None:
    """As the fold will decide: it carries no usage to a period that another payer pays for."""
    plan = closing_plan(known(state, now), ACME, at("2026-11-16"), {})

    assert plan.lines[-len(lines) :] == lines
    assert sum(line.startswith(LATE) for line in plan.lines) == len(lines)


def test_closing_names_the_meters_that_quarantine_late_usage() -> None:
    meters = [{**meter, "late": "quarantine"} if meter["slug"] == "seats" else meter for meter in METER_SET["meters"]]
    standing_now = known(AccountState(), "2026-11-10T10:40")._replace(
        meter_set=MeterSet.model_validate({**METER_SET, "meters": meters})
    )

    plan = closing_plan(standing_now, ACME, at("2026-11-02"), {})

    assert plan.lines[-1] == "  later usage with the meter seats: quarantined, by the meter's late policy"


async def test_late_usage_goes_where_the_closing_said() -> None:
    """The record is folded, and usage of the closed period arrives: the plan and the fold use the same rule."""
    world, base = await opened()
    await append_plan(base, await planned(world, base, FREE))
    await world.fold_all()
    await append_plan(base, await planned(world, base, mapped("cus_two")))
    await world.fold_all()
    before = await standing(base, world.store, ACME)
    plan = closing_plan(before, ACME, START_MS, {})
    assert plan.lines[-1] == "  later usage: quarantined, because another payer follows: cus_two"
    await append_plan(base, plan)
    event = {
        "specversion": "1.0", "id": "late", "source": "s", "type": "seats", "subject": ACME, "data": {"seats": 3},
        "time": format_instant_ms(START_MS),
    }  # fmt: skip
    await world.log.append("usage.events", 0, json.dumps(event).encode())
    await world.fold_all()

    (rejected,) = await world.log.read("usage.rejected", 0, 0, 10)
    assert dict(rejected.headers)["tidemark-detail"].endswith(b"another payer pays for the open period")


@pytest.mark.parametrize(
    ("instant", "said"),
    [
        pytest.param("2030-01-15T00:00:00", "2030-01-01T00:00:00Z to 2030-02-01T00:00:00Z has not begun", id="2030"),
        pytest.param("2026-12-01T00:00:00", "has not begun", id="the next period"),
        pytest.param("2026-10-31T23:59:59", "is closed already", id="closed by grace"),
        pytest.param("2026-11-20T00:00:00", "is closed already", id="closed by a record"),
    ],
)
def test_closing_a_period_that_has_not_begun_or_is_closed_is_refused(instant: str, said: str) -> None:
    state = AccountState(closed_start_ms=(at("2026-11-01"),))
    with pytest.raises(InvalidInput, match=said):
        closing_plan(known(state, "2026-11-10T10:40"), ACME, at(instant), {})


async def opened() -> tuple[World, AccountLog]:
    world = World(START_MS, partitions=1)
    await world.start(METER_SET)
    return world, AccountLog(world.log, 1, SECRET, world.clock)


async def planned(world: World, base: AccountLog, binding: Binding) -> Plan:
    return binding_plan(await standing(base, world.store, ACME), ACME, binding)


async def test_revision_counts_records_that_are_not_folded_yet() -> None:
    """Two commands within a second: the live view knows neither of them, and the second must not be ignored."""
    world, base = await opened()
    for revision, binding in enumerate((FREE, mapped(), mapped("cus_new")), 1):
        plan = await planned(world, base, binding)
        assert plan.record.revision == revision
        assert await append_plan(base, plan) == f"acme: bound by record {1 + revision} of partition 0"
    assert (await standing(base, world.store, ACME)).state.revision == 3

    await world.fold_all()
    assert (await world.store.accounts.account(0, ACME)) == (await standing(base, world.store, ACME)).state
    assert (await planned(world, base, FREE)).record.revision == 4


async def test_of_two_operators_at_once_the_second_is_told_that_nothing_changed() -> None:
    """Both have read the same state. The order in the log decides."""
    world, base = await opened()
    await append_plan(base, await planned(world, base, FREE))
    first, second = await planned(world, base, mapped("cus_first")), await planned(world, base, mapped("cus_second"))

    await append_plan(base, first)
    with pytest.raises(Transient, match="by record 3 of partition 0, and this one changed nothing"):
        await append_plan(base, second)

    await world.fold_all()
    state = await world.store.accounts.account(0, ACME)
    assert state.customers[-1].stripe_customer == "cus_first"
    assert (state.revision, state.repeated) == (2, 1)


async def test_an_emptied_live_view_and_a_trimmed_log_do_not_restart_the_revisions() -> None:
    """The record would have a revision that was used before, and would change nothing."""
    world, base = await opened()
    await append_control(world.log, SECRET, 0, BindingRecord(account=ACME, revision=1, binding=FREE))
    world.log._partitions["usage.events", 0].records.pop(0)

    with pytest.raises(Transient, match="rebuild redis"):
        await standing(base, world.store, ACME)


@pytest.mark.parametrize(
    ("links", "is_refused"),
    [
        pytest.param([], False, id="no link"),
        pytest.param([(0, "cus_one")], True, id="linked"),
        pytest.param([(START_MS + 60_000, "cus_one")], True, id="linked from later on"),
    ],
)
async def test_an_account_that_stripe_binds_is_refused(links: list[tuple[int, str]], *, is_refused: bool) -> None:
    """A person's binding would be undone by the next change at Stripe, without a word."""
    tables = FakeSideTables(timeline)
    await tables.migrate("test:acct_1", "log")
    for starts_ms, customer in links:
        await tables.link(ACME, customer, starts_ms, "tester", "", START_MS)
    if not is_refused:
        await check_unlinked(tables, ACME, START_MS)
        return
    with pytest.raises(InvalidInput, match=r"acme is linked to cus_one, .* With --force the binding holds until"):
        await check_unlinked(tables, ACME, START_MS)
    await tables.unlink(ACME, "tester", "", START_MS)
    await check_unlinked(tables, ACME, START_MS)


GIVEN = Segment(
    0,
    {
        "api_calls": Resolved(
            Decimal(55_000),
            (
                Grant("api_calls", SourceKind.PLAN, "team@1", Operation.SET, Decimal(50_000), 0),
                Grant("api_calls", SourceKind.OVERRIDE, "override 1f", Operation.ADD, Decimal(5_000), 0, 86_400_000,
                      cause="ann", reason="ticket 1"),
            ),
        ),
        "included:calls": Resolved(Decimal(1), ()),
    },
)  # fmt: skip


def test_what_an_account_was_allowed_names_who_made_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def entitlements(_settings: Any, account: str, at_ms: int) -> tuple[EntitlementVersion | None, int]:
        version = EntitlementVersion(account, 3, 0, "", encode([GIVEN]), "evt_1")
        return (version if account == "acme" else None), at_ms

    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    monkeypatch.setattr(access, "entitlements", entitlements)
    words = ["account", "entitlements", "acme", "--at", "1970-01-01T00:00:01Z"]

    assert (0, 2) == tuple(run([*words[:2], name, *words[3:]]).code for name in ("acme", "other"))
    assert run(words).out.splitlines() == [
        "1970-01-01T00:00:01Z, by version 3 of 1970-01-01T00:00:00Z: evt_1",
        "api_calls: 55000",
        "  plan team@1: set 50000",
        "  override 1f: add 5000 until 1970-01-02T00:00:00Z, by ann on 1970-01-01T00:00:00Z: ticket 1",
    ]
    assert "ann" == json.loads(run([*words, "--json"]).out)["features"]["api_calls"]["gives"][1]["by"]


def test_what_a_person_granted_has_its_id_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def overrides(_settings: Any, account: str) -> list[Override]:
        return [Override(account, 1, GIVEN.features["api_calls"].gives[1], "ann", 1_000)]

    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    monkeypatch.setattr(access, "overrides", overrides)

    assert run(["account", "overrides", "acme"]).out == (
        "1: override 1f, api_calls add 5000 until 1970-01-02T00:00:00Z, by ann on 1970-01-01T00:00:01Z: ticket 1\n"
    )
    assert "override 1f" == json.loads(run(["account", "overrides", "acme", "--json"]).out)[0]["id"]
