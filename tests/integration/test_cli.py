"""The `tidemark` command as a user types it: every command against one running `tidemark dev`."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from oracle.rules import partition_of
from pipeline.local.processes import LocalProcess, free_port, python
from pipeline.open import DEFAULT_CATALOG, open_base, open_clickhouse_store, open_live_view
from pipeline.settings import Settings, load_settings
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC
from tests.integration.deployment import COMMAND_S, clean_environment, running_dev, tidemark, until


class RunningDev(NamedTuple):
    """A running `tidemark dev` and what it wrote down for other commands."""

    folder: Path
    environment: dict[str, str]
    gateway_url: str

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command prints; fails where it ends otherwise than with `code`."""
        done = tidemark(self.folder, *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    def answer(self, *arguments: str) -> Any:
        """What a command prints, as JSON."""
        return json.loads(self.run(*arguments))

    def settings(self) -> Settings:
        """The settings of its roles."""
        named: dict[str, Any] = {
            name.removeprefix("TIDEMARK_").lower(): value for name, value in self.environment.items()
        }
        return load_settings(**named)

    def append(self, topic: str, partition: int, value: bytes) -> None:
        """Append a record as a producer of its own would."""

        async def append() -> None:
            base = await open_base(self.settings(), create=False)
            await base.log.append(topic, partition, value)
            await base.log.close()

        asyncio.run(append())

    def counted(self) -> dict[str, int]:
        """The counters, once everything that is in the log now is folded."""
        return asyncio.run(self._counted())

    def cut(self, account: str) -> dict[str, Any]:
        """What `account show` says, once no late binding of the account has anything counted again."""
        shown: dict[str, Any] = {}

        async def done() -> bool:
            shown.update(await asyncio.to_thread(self.answer, "account", "show", account))
            return shown["counting_again_from"] is None

        asyncio.run(until(done, f"{account} is cut by its binding"))
        return shown

    async def _counted(self) -> dict[str, int]:
        settings = self.settings()
        base, store = await open_base(settings, create=False), open_live_view(settings)
        ends = {each: (await base.log.bounds(EVENTS_TOPIC, each)).next for each in range(settings.partitions)}
        sums: dict[str, int] = {}

        async def folded() -> bool:
            sums.clear()
            for partition, end in ends.items():
                checkpoint = await store.state.load_checkpoint(partition)
                if checkpoint is None or checkpoint.next_offset < end:
                    return False
                for name, value in checkpoint.counters._asdict().items():
                    sums[name] = sums.get(name, 0) + value
            return True

        try:
            await until(folded, f"folded up to {ends}")
        finally:
            await store.close()
            await base.log.close()
        return sums

    def nobody_pays(self) -> None:
        """Mark the accounts whose reports wait as free: near a month's end, `doctor` calls such reports wrong."""
        held = [json.loads(line)["account"] for line in self.run("billing", "list", "--held", "--json").splitlines()]
        for account in sorted(set(held)):
            self.run("account", "bind", account, "--free")

        async def released() -> bool:
            return not await asyncio.to_thread(self.run, "billing", "list", "--held", "--json")

        asyncio.run(until(released, "no report waits for a payer"))

    def relayed(self) -> None:
        """Return once everything that is in the log now is in `usage_hourly`."""
        asyncio.run(self._relayed())

    async def _relayed(self) -> None:
        settings = self.settings()
        base, hourly = await open_base(settings, create=False), await open_clickhouse_store(settings)
        ends = {each: (await base.log.bounds(EVENTS_TOPIC, each)).next for each in range(settings.partitions)}

        async def relayed() -> bool:
            positions = await hourly.load_relayed()
            return all(each in positions and positions[each].next_offset >= end for each, end in ends.items())

        try:
            await until(relayed, f"relayed up to {ends}")
        finally:
            await hourly.close()
            await base.log.close()

    def receives(self, events: int) -> None:
        """Return once so many events have been folded in all, by whatever way they came."""
        deadline_s = time.monotonic() + COMMAND_S
        while self.counted()["received"] < events:
            assert time.monotonic() < deadline_s, f"{events} events were never received"
            time.sleep(0.05)

    def live(self, account: str) -> dict[str, str]:
        """The account's current usage by meter, by the `usage` command."""
        return {each["meter"]: each["value"] for each in self.answer("usage", "--account", account)["meters"]}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDev]:
    """One `tidemark dev` for the module, on free ports and in a folder of its own; tests use accounts of their own."""
    folder = tmp_path_factory.mktemp("cli")
    with running_dev(folder, "--no-example", "--port", str(free_port()), "--clickhouse-port", str(free_port())):
        document = json.loads((folder / ".tidemark" / "dev.json").read_text())
        yield RunningDev(folder, document["environment"], document["gateway_url"])
    assert not (folder / ".tidemark" / "dev.json").exists()


def test_second_dev_in_the_folder_is_refused_and_the_first_goes_on(dev: RunningDev) -> None:
    """On free ports too: two Valkeys on one append-only file lose counts."""
    before = (dev.folder / ".tidemark" / "dev.json").read_text()

    said = dev.run("dev", "--port", "0", "--clickhouse-port", "0", code=2)

    assert said.startswith("tidemark: TIDEMARK_DATA_DIR: process ")
    assert said.count("\n") == 1
    assert (dev.folder / ".tidemark" / "dev.json").read_text() == before
    assert dev.live("nobody-yet")["api_requests"] == "0"


def emit(dev: RunningDev, account: str, event_type: str, *more: str, data: str = "{}") -> Any:
    """Emit one event."""
    return dev.answer("emit", event_type, "--account", account, "--data", data, *more)


def event_json(account: str, event_id: str) -> bytes:
    """An `api.request` of now."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event = {
        "specversion": "1.0", "id": event_id, "source": "test", "type": "api.request", "subject": account,
        "time": now, "data": {"method": "GET", "region": "eu"},
    }  # fmt: skip
    return json.dumps(event).encode()


def test_event_emitted_twice_under_one_id_is_counted_once(dev: RunningDev) -> None:
    """A job that runs twice, or a user who presses return twice."""
    before = dev.counted()

    answers = [emit(dev, "twice", "api.request", "--id", "job-1") for _ in range(2)]

    assert [answer["accepted"] for answer in answers] == [1, 1]
    after = dev.counted()
    assert after["counted"] - before["counted"] == 1
    assert after["duplicate"] - before["duplicate"] == 1
    assert dev.live("twice")["api_requests"] == "1"


def test_emit_says_what_is_wrong_with_an_event(dev: RunningDev) -> None:
    """The gateway's answer about the one event reaches the user."""
    assert "--data: is not JSON" in dev.run("emit", "api.request", "--account", "a", "--data", "{", code=2)
    rejected = tidemark(dev.folder, "emit", "storage.sampled", "--account", "wrong", "--data", '{"gigabytes":-1}')
    answer = json.loads(rejected.stdout)
    assert (rejected.returncode, answer["rejected"]) == (2, 1)
    assert answer["events"][0]["reason"] == "negative_quantity"


def test_a_file_is_judged_and_then_sent_and_counts_once_with_what_was_emitted(dev: RunningDev) -> None:
    """Row 2 was emitted before under its id; a second run has nothing to do."""
    emit(dev, "filed", "api.request", "--id", "r-2")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    rows = [f"r-{number},filed,{now},GET" for number in range(1, 6)]
    (dev.folder / "usage.csv").write_text("\n".join(["request,account,time,method", *rows, "r-6,filed,soon,GET", ""]))
    command = ("backfill", "usage.csv", "--type", "api.request", "--id", "request")
    before = dev.counted()

    judged = tidemark(dev.folder, *command)
    assert "6 rows: 4 would be accepted, 1 arrived before, 1 would be rejected" in judged.stdout
    assert dev.counted() == before

    sent = tidemark(dev.folder, *command, "--send")
    assert "6 rows: 4 accepted, 1 arrived before, 1 rejected" in sent.stdout
    assert (judged.returncode, sent.returncode) == (1, 1)
    dev.receives(before["received"] + 5)
    assert dev.live("filed")["api_requests"] == "5"
    assert "usage.csv were sent; with --again" in dev.run(*command, "--send", code=2)


def test_usage_by_meter_answers_from_clickhouse(dev: RunningDev) -> None:
    """Once the relay has passed the events; until then the answer says how far it is complete."""
    for number in range(3):
        emit(dev, "by-meter", "api.request", "--id", f"m{number}", data='{"method":"GET","region":"eu"}')
    question = (
        "usage", "--meter", "api_requests", "--account", "by-meter", "--group-by", "region",
        "--from", "2026-01-01T00:00:00Z", "--to", "2030-01-01T00:00:00Z",
    )  # fmt: skip

    dev.relayed()

    rows = dev.answer(*question)["rows"]
    assert [(row["groups"], row["value"]) for row in rows] == [({"region": "eu"}, "3")]
    assert "such as" in dev.run("usage", "--meter", "tokens", "--from", "now", "--to", "later", code=2)


def test_meter_set_changes_only_by_a_higher_version_and_never_redefines_a_meter(dev: RunningDev) -> None:
    """A meter's definition is what its past was counted by."""
    shipped = yaml.safe_load(DEFAULT_CATALOG.read_text())
    meter = {"slug": "exports", "event_type": "export.done", "aggregation": "count"}
    files = {
        "same_version": {**shipped, "meters": [*shipped["meters"], meter]},
        "redefined": {**shipped, "version": 2, "meters": [{**shipped["meters"][0], "dimensions": {}}]},
        "broken": {**shipped, "meters": [{"slug": "Bad Slug"}]},
        "next": {**shipped, "version": 2, "meters": [*shipped["meters"], meter]},
    }
    for name, document in files.items():
        (dev.folder / f"{name}.yaml").write_text(yaml.safe_dump(document))

    assert json.loads(dev.run("meters", "schema"))["title"] == "MeterSet"
    assert "9 meters, valid" in dev.run("meters", "check", "next.yaml")
    assert "meters.0.slug" in dev.run("meters", "check", "broken.yaml", code=2)
    assert "must be above 1" in dev.run("meters", "apply", "same_version.yaml", code=2)
    assert "api_requests" in dev.run("meters", "apply", "redefined.yaml", code=2)
    assert "version 2 with 9 meters" in dev.run("meters", "apply", "next.yaml")
    assert "api_requests: Stripe has the meter" in dev.run("meters", "apply", "--create-at-stripe", "next.yaml")
    dev.counted()
    assert dev.answer("meters", "show")["version"] == 2
    assert "must be above 2" in dev.run("meters", "apply", "same_version.yaml", code=2)
    emit(dev, "exporter", "export.done")
    dev.counted()
    assert dev.live("exporter")["exports"] == "1"


def test_account_is_bound_shown_and_its_period_closed(dev: RunningDev) -> None:
    """After the close, what its meter quarantines is not counted, and can be seen."""
    dev.run("account", "bind", "closing", "--customer", "cus_1", "--anchor", "2026-01-15T00:00:00Z")
    emit(dev, "closing", "seats.changed", data='{"seats":5}')
    dev.counted()
    shown = dev.cut("closing")
    dev.counted()
    assert shown["customers"][0]["stripe_customer"] == "cus_1"
    assert shown["bindings"][0]["anchor"] == "2026-01-15T00:00:00Z"
    assert dev.live("closing")["seats"] == "5"

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert "add --yes" in dev.run("close-period", "closing", now, code=2)
    closed = dev.run("close-period", "closing", now, "--yes")
    assert f"closes the period {shown['current_period']['start']} to" in closed
    assert "usage: seats 5" in closed
    assert "its period is closed by record" in closed
    emit(dev, "closing", "seats.changed", "--id", "too-late", data='{"seats":9}')
    dev.counted()

    assert dev.live("closing")["seats"] == "5"
    assert dev.answer("account", "show", "closing")["closed_periods"] == [shown["current_period"]["start"]]
    listed = dev.run("quarantine", "list", "--reason", "period_closed")
    assert "too-late" in listed
    assert "bill it by hand" in listed
    assert "no RFC 3339 time" in dev.run("close-period", "closing", "yesterday", code=2)


def test_account_flush_reports_usage_so_far_and_waits_until_it_is_settled(dev: RunningDev) -> None:
    """A free account is settled without Stripe."""
    dev.run("account", "bind", "flushed", "--free")
    emit(dev, "flushed", "llm.completion", data='{"tokens":7,"model":"small"}')

    flushed = dev.answer("account", "flush", "flushed", "--json")
    assert (flushed["published"], flushed["settled"]) == (True, True)
    (report,) = flushed["reports"]
    assert (report["meter"], report["quantity"], report["status"]) == ("tokens", "7", "free")
    assert report["timestamp"] < flushed["instant"]
    assert dev.answer("account", "show", "flushed")["last_flush"] == flushed["instant"]
    assert "nothing was counted since the last report" in dev.run("account", "flush", "flushed")


def test_quarantined_event_is_listed_and_counted_after_its_redrive(dev: RunningDev) -> None:
    """A foreign producer with another partitioner wrote to the wrong topic; nothing is lost."""
    home = partition_of("lost", 4)
    received = dev.counted()["received"]
    dev.append(EVENTS_TOPIC, (home + 1) % 4, event_json("lost", "lost-1"))
    dev.append(INBOX_TOPIC, 0, b'{"not": "an event')
    dev.receives(received + 2)

    entries = [json.loads(line) for line in dev.run("quarantine", "list", "--json").splitlines()]
    reasons = {entry["reason"] for entry in entries}
    assert {"wrong_partition", "bad_json"} <= reasons
    (entry,) = (entry for entry in entries if entry["reason"] == "wrong_partition")
    assert json.loads(entry["value"])["id"] == "lost-1"
    assert dev.live("lost")["api_requests"] == "0"

    assert "1 events sent" in dev.run("quarantine", "redrive", "--reason", "wrong_partition", "--yes")
    dev.receives(received + 3)
    assert dev.live("lost")["api_requests"] == "1"

    dev.run("quarantine", "redrive", "--reason", "wrong_partition", "--yes")
    dev.receives(received + 4)
    assert dev.live("lost")["api_requests"] == "1", "redriven twice, counted once"
    assert "nothing to redrive" in dev.run("quarantine", "redrive", "--reason", "too_large", "--yes")


def test_key_works_within_its_role_until_it_is_revoked(dev: RunningDev) -> None:
    """The commands write to the database that the running gateway reads: at once for a new key, else every second."""
    key = dev.run("key", "create", "--role", "read", "--account", "twice").strip()

    def status(path: str) -> int:
        return httpx.get(dev.gateway_url + path, headers={"authorization": f"Bearer {key}"}, timeout=10).status_code

    assert status("/v1/accounts/twice/usage") in (200, 503)
    assert status("/v1/accounts/other/usage") == 403
    (line,) = (line for line in dev.run("key", "list").splitlines() if line.startswith(key.split("_")[1]))
    assert "  read  twice  valid  " in line
    rotated = dev.run("key", "rotate", key.split("_")[1]).split()[0]
    dev.run("key", "revoke", key.split("_")[1])

    async def refused() -> bool:
        return status("/v1/accounts/twice/usage") == 401

    asyncio.run(until(refused, "the revoked key is refused", 5))
    key = rotated
    assert status("/v1/accounts/twice/usage") in (200, 503)


def test_an_account_is_linked_over_http_as_by_the_command(dev: RunningDev) -> None:
    """The gateway opens PostgreSQL and Stripe with its first link, and waits for the mirror."""
    stripe = {"Authorization": f"Bearer {dev.environment['TIDEMARK_STRIPE_API_KEY']}"}
    made = httpx.post(f"{dev.environment['TIDEMARK_STRIPE_API_BASE']}/v1/customers", headers=stripe, timeout=30).json()
    key = {"Authorization": f"Bearer {dev.run('key', 'create', '--role', 'admin').split()[0]}"}
    url, body = f"{dev.gateway_url}/v1/accounts/signed%2Fup", {"stripe_customer": made["id"]}
    answers = [httpx.put(url, headers=key, json=body, timeout=90) for _ in range(2)]
    answers.append(httpx.get(url, headers=key, timeout=30))
    link = {"stripe_customer": made["id"], "from": "1970-01-01T00:00:00Z", "to": None}
    wanted = {"account": "signed/up", "stripe_customer": made["id"], "links": [link]}
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, wanted)] * 3
    dev.run("account", "link", "signed/up", "--customer", made["id"])
    causes = [json.loads(line)["cause"] for line in dev.run("billing", "audit", "signed/up", "--json").splitlines()]
    assert causes.count("account link") == 1
    unknown = httpx.put(url, headers=key, json={"stripe_customer": "cus_unknown"}, timeout=90)
    assert (unknown.status_code, unknown.json()["error"]["field"]) == (400, "stripe_customer")


def test_reconcile_and_doctor_find_nothing_wrong(dev: RunningDev) -> None:
    """Both exit 0 on a healthy deployment, for scripts."""
    emit(dev, "healthy", "api.request")
    dev.counted()

    report = dev.answer("reconcile", "--json", "--html", "report.html")
    assert report["verdict"] in ("equal", "incomplete")
    assert report["differences"] == 0
    assert "Verdict" in dev.run("reconcile", "--no-record")
    assert "<h1>" in (dev.folder / "report.html").read_text()
    dev.nobody_pays()
    findings = dev.answer("doctor", "--json")
    assert {"meter_set", "log", "rollup", "clickhouse", "stripe"} <= {finding["what"] for finding in findings}
    assert all(finding["status"] != "wrong" for finding in findings), findings
    assert all(finding["remedy"] for finding in findings if finding["status"] == "note")


def test_a_repair_says_that_there_is_nothing_to_do_and_asks_who_repairs(dev: RunningDev) -> None:
    """The plan comes first, and needs nobody's name."""
    assert "--actor" in dev.run("reconcile", "--repair", "--yes", "--reason", "x", code=2)
    assert "nothing to repair\n" == dev.run("reconcile", "--repair")


def test_the_auditor_runs_once_keeps_its_run_and_shows_it(dev: RunningDev) -> None:
    """A real process beside the roles. A second one sees that the night's run was made."""
    runs: set[str] = set()
    for log in ("auditor.log", "auditor-again.log"):
        port = free_port()
        variables = {**dev.environment, "TIDEMARK_METRICS_PORT": str(port)}
        process = LocalProcess(
            "auditor", python("pipeline.cli", "auditor"), dev.folder / log,
            environment=clean_environment(**variables), cwd=dev.folder,
        )  # fmt: skip
        process.start()
        try:
            ran = asyncio.run(audited(f"http://127.0.0.1:{port}"))
            gauges = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
            process.signal(signal.SIGTERM)
            assert process.wait(30) == 0, process.output()
        finally:
            process.kill()
        assert ran["role"] == "auditor"
        assert ran["verdict"] in ("equal", "incomplete")
        assert f'tidemark_reconcile_verdict{{verdict="{ran["verdict"]}"}} 1.0' in gauges
        runs.add(ran["run"])
    assert len(runs) == 1


async def audited(url: str) -> dict[str, Any]:
    """The auditor's last run, once it has ended and the process shows its gauges."""
    found: dict[str, Any] = {}

    async def ended() -> bool:
        async with httpx.AsyncClient(timeout=10) as client:
            try:
                ready = await client.get(f"{url}/readyz")
                shown = await client.get(f"{url}/metrics")
            except httpx.TransportError:
                return False
        found.update(ready.json().get("last_run") or {})
        return found.get("verdict", "running") != "running" and "tidemark_reconcile_verdict" in shown.text

    await until(ended, "the auditor's run")
    return found
