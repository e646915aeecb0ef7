"""`tidemark billing list` and `redrive`, on a log in a file and the Stripe simulator over HTTP."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.billing.sender import StripeSender
from pipeline.cli import cli
from pipeline.clock import ScaledClock, SystemClock
from pipeline.open import open_base, open_side_tables
from pipeline.settings import load_settings
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.errors import InvalidInput
from schemas.log import REPORTS_TOPIC
from schemas.periods import Billing
from schemas.reports import Intent, MeterEvent, Payer, SendStatus
from sinks.stripe.client import StripeClientMeters
from stripe_simulator import SimulatorSettings
from tests.services.stripe import TEST_KEY, serve_simulator
from tests.worlds.clock import ManualClock
from tests.worlds.sender import ACCOUNT, NOW_MS, make_intent


class Command:
    """The command line of a deployment at the simulated instant of `clock`."""

    def __init__(self, folder: Path, stripe_url: str, clock: ManualClock, sql_url: str = "pgserver://none") -> None:
        self._clock = clock
        self.environment = {
            "TIDEMARK_LOG_URL": f"embedded://{folder / 'log.db'}",
            "TIDEMARK_SECRET": "a secret of sixteen characters",
            "TIDEMARK_PARTITIONS": "1",
            "TIDEMARK_STRIPE_API_KEY": TEST_KEY,
            "TIDEMARK_STRIPE_API_BASE": stripe_url,
            "TIDEMARK_STRIPE_ACCOUNT": ACCOUNT,
            "TIDEMARK_SQL_URL": sql_url,
            "TIDEMARK_DATA_DIR": str(folder),
        }

    async def run(self, *words: str) -> tuple[int, str]:
        """The exit code and what is printed."""
        now = ScaledClock(SystemClock().now_ms(), self._clock.now_ms(), 1).text()
        environment = {**self.environment, "TIDEMARK_CLOCK": now}
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["billing", *words], env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    def settings(self) -> dict[str, str]:
        return {name.removeprefix("TIDEMARK_").lower(): value for name, value in self.environment.items()}


async def payer(intent: Intent, instant_ms: int) -> Payer:
    return Payer(Billing.MAPPED, "cus_new", max(intent.period_end_ms, instant_ms))


async def test_report_of_a_customer_that_stripe_rejected_comes_back_once_the_customer_exists(
    tmp_path: Path, postgres_url: str
) -> None:
    """Stripe answers 200 before it looks for the customer, and keeps the identifier of the event that it rejects: sent
    again under it, the event was a duplicate, and the usage was never billed."""
    clock = ManualClock(NOW_MS)
    settings = SimulatorSettings(account=ACCOUNT, summary_lag_s=60)
    async with serve_simulator(clock, settings) as served:
        command = Command(tmp_path, served.url, clock, postgres_url)
        base = await open_base(load_settings(**command.settings()))
        meters = StripeClientMeters(TEST_KEY, served.url, nonce="test")
        await meters.create_meter("tokens", "Tokens")
        tables = await open_side_tables(base)
        sender = StripeSender(base.log, tables.intents, meters, payer, clock, random.Random(1))

        async def send() -> None:
            offset = await sender.start_offset(0) or 0
            for _ in range(6):
                records = await base.log.read(REPORTS_TOPIC, 0, offset)
                await (sender.step(0, records) if records else sender.idle(0))
                offset = records[-1].next_offset if records else offset

        intent = make_intent("tm_1")
        await base.log.append(REPORTS_TOPIC, 0, intent.model_dump_json().encode(), key=b"a")
        await send()
        clock.advance(5 * MINUTE_MS)
        _, listed = await command.run("list", "--json")
        early = await command.run("redrive", "tm_1", "--reason", "the customer exists now", "--yes")

        served.simulator.create_customer(False, {}, "cus_new")
        clock.advance(8 * HOUR_MS)
        same = await meters.send(MeterEvent("tm_1", "tokens", "cus_new", "0.05", NOW_MS // 1_000))
        redriven = await command.run("redrive", "tm_1", "--reason", "the customer exists now", "--by", "ada", "--yes")
        again = await command.run("redrive", "tm_1", "--reason", "the customer exists now", "--yes")
        await send()
        clock.advance(HOUR_MS)
        billed = await meters.summary(
            "tokens", "cus_new", intent.period_start_ms // 1_000, intent.period_end_ms // 1_000
        )
        emptied = await command.run("list")
        refused = await command.run("redrive", "tm_1", "--reason", "once more", "--yes")
        await meters.close()
        await tables.close()
        await base.log.close()

    row = json.loads(listed)
    assert (row["identifier"], row["quantity"], row["stripe_customer"]) == ("tm_1", "0.05", "cus_new")
    assert "meter_event_customer_not_found" in row["detail"]
    assert early[0] == 1
    assert "wait" in early[1]
    assert same.status is SendStatus.DUPLICATE
    assert redriven == (0, "tm_1: the sink sends it as tm_1-r1\n")
    assert again == (0, "tm_1: is being sent already, as tm_1-r1\n")
    assert billed.value == "0.05"
    assert emptied == (0, "")
    assert refused[0] == 1
    assert "accepted" in refused[1]


async def test_redrive_in_a_container_without_user_names_asks_who(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log must say who, and a traceback would not."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 10001")

    monkeypatch.setattr("pipeline.cli.operate.getuser", nobody)
    command = Command(tmp_path, "http://127.0.0.1:9", ManualClock(NOW_MS))

    with pytest.raises(InvalidInput, match="--by"):
        await command.run("redrive", "tm_1", "--reason", "test", "--yes")


async def test_redrive_asks_before_anything_is_billed(tmp_path: Path) -> None:
    """Without an answer nothing is read or sent."""
    command = Command(tmp_path, "http://127.0.0.1:9", ManualClock(NOW_MS))

    with pytest.raises(InvalidInput, match="--yes"):
        await command.run("redrive", "tm_1", "--reason", "test")


async def test_held_reports_are_listed_and_counted(tmp_path: Path, postgres_url: str) -> None:
    """An operator sees which reports wait, and why, without reading the topic."""
    command = Command(tmp_path, "http://127.0.0.1:9", ManualClock(NOW_MS), postgres_url)
    base = await open_base(load_settings(**command.settings()))
    tables = await open_side_tables(base)
    intents = [make_intent("tm_1"), make_intent("tm_2", bucket=1), make_intent("tm_3", "b"), make_intent("tm_4")]
    for intent in (*intents, make_intent("tm_5")):
        await base.log.append(REPORTS_TOPIC, 0, intent.model_dump_json().encode())
    await tables.intents.apply(0, None, 4, list(enumerate(intents)))
    held = await tables.intents.found(["tm_1", "tm_2", "tm_3"])
    await tables.intents.waits(0, [each._replace(hold="unmapped", detail="bind it") for each in held])
    await tables.close()
    await base.log.close()

    _, listed = await command.run("list", "--held", "--account", "a", "--json")
    _, counted = await command.run("status", "--json")
    _, shown = await command.run("status")

    rows = [json.loads(line) for line in listed.splitlines()]
    assert [(row["identifier"], row["detail"]) for row in rows] == [
        ("tm_2", "unmapped: bind it"), ("tm_1", "unmapped: bind it"),
    ]  # fmt: skip
    status = json.loads(counted)
    assert (status["pending"], status["unread_reports"]) == ({"": 1, "unmapped": 3}, 1)
    assert "reports without an outcome: 1 to be sent, 3 unmapped; not read yet: 1 records" in shown
