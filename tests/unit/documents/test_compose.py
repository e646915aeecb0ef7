"""docker-compose.yml and deploy/ agree with the code. No container engine runs here; the tests check the values."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.cli import cli
from pipeline.logs.open import kafka_servers
from pipeline.metrics import METRICS
from pipeline.open import read_meter_set
from pipeline.settings import Settings, load_settings
from reconciler.report import Findings, gauge_values
from sinks.clickhouse.client import open_clickhouse

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docker-compose.yml").read_text()
# The variables that an operator sets. Every other variable must have a default.
GIVEN = {
    "TIDEMARK_SECRET": "0123456789abcdef0123456789abcdef",
    "TIDEMARK_STRIPE_API_KEY": "sk_test_example",
    "TIDEMARK_STRIPE_ACCOUNT": "acct_example",
    "VALKEY_PASSWORD": "valkeypassword",
    "CLICKHOUSE_PASSWORD": "clickhousepassword",
    "POSTGRES_PASSWORD": "postgrespassword",
}
_VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


def _filled(text: str) -> str:
    """The text after compose's substitution of `${NAME:?why}` and `${NAME:-default}`."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match[1], match[2], match[3]
        return GIVEN.get(name, rest if kind == "-" else "")

    return _VARIABLE.sub(value, text)


COMPOSE: dict[str, Any] = yaml.safe_load(_filled(TEXT))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("tidemark:")}
LONG_RUNNING = sorted(set(SERVICES) - {"meters", "tools"})
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
RULES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())


@pytest.fixture
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a service's process would load, from its environment alone."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TIDEMARK_{name.upper()}", raising=False)
    for name, value in OURS[request.param]["environment"].items():
        monkeypatch.setenv(name, value)
    return load_settings()


def _roles() -> set[str]:
    return {service["command"][0] for service in OURS.values()}


def test_the_production_shape_is_complete() -> None:
    """One host runs every service of the design."""
    assert _roles() >= {"gateway", "router", "worker", "archive", "sink", "mirror"}
    assert sum(service["command"] == ["worker"] for service in OURS.values()) == 2
    assert {"kafka", "valkey", "clickhouse", "postgres", "prometheus"} <= set(SERVICES)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_command_is_known_to_the_command_line(name: str) -> None:
    """The real parser parses the command with its options and arguments."""
    arguments = list(OURS[name]["command"])
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]

    command.make_context(command.name, arguments)


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_variable_is_a_setting_written_as_text(name: str) -> None:
    """A misspelt variable would be ignored; compose would reject a number."""
    environment = OURS[name]["environment"]
    known = {f"TIDEMARK_{field.upper()}" for field in Settings.model_fields}

    assert set(environment) <= known
    assert [variable for variable, value in environment.items() if not isinstance(value, str)] == []


@pytest.mark.parametrize("settings", sorted(OURS), indirect=True)
def test_every_environment_loads_and_reaches_its_neighbour_services(settings: Settings) -> None:
    """The settings and the clients accept the values."""
    hosts = {server.rpartition(":")[0] for server in kafka_servers(settings.log_url)}
    hosts |= {re.split(r"[@:/]+", settings.redis_url.partition("@")[2])[0]}
    hosts |= {re.split(r"[@:/]+", settings.clickhouse_url.partition("@")[2])[0]}
    hosts |= {re.split(r"[@:/]+", settings.sql_url.partition("@")[2])[0]}

    assert hosts == {"kafka", "valkey", "clickhouse", "postgres"}
    assert open_clickhouse(settings.clickhouse_url).database == SERVICES["clickhouse"]["environment"]["CLICKHOUSE_DB"]
    assert settings.secret_bytes() == GIVEN["TIDEMARK_SECRET"].encode()
    assert settings.metrics_port == 9464


@pytest.mark.parametrize("settings", ["gateway", "tools"], indirect=True)
def test_the_gateway_and_the_tools_share_the_file_of_keys(settings: Settings) -> None:
    """The gateway must know a key that the tools create: same path, same volume."""
    assert settings.api_keys is not None
    assert any(
        str(settings.api_keys).startswith(volume.partition(":")[2]) and volume.startswith("keys:")
        for volume in SERVICES["tools"]["volumes"]
    )


@pytest.mark.parametrize("name", ["meters", "sink", "mirror", "tools"])
def test_roles_that_make_the_log_or_report_know_the_stripe_account(name: str) -> None:
    """The first process writes mode and account into the log for ever."""
    environment = OURS[name]["environment"]

    assert environment["TIDEMARK_STRIPE_API_KEY"] == GIVEN["TIDEMARK_STRIPE_API_KEY"]
    assert environment["TIDEMARK_STRIPE_ACCOUNT"] == GIVEN["TIDEMARK_STRIPE_ACCOUNT"]
    assert [each for each in OURS if each not in ("meters", "tools") and "meters" not in _awaited(each)] == []


def _awaited(name: str) -> dict[str, str]:
    return {other: how["condition"] for other, how in SERVICES[name].get("depends_on", {}).items()}


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_every_service_has_a_health_check(name: str) -> None:
    """Compose waits for the check, and `docker ps` shows the result."""
    check = SERVICES[name]["healthcheck"]

    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)
    if name in OURS:
        port = "8080" if name == "gateway" else OURS[name]["environment"]["TIDEMARK_METRICS_PORT"]
        assert f":{port}/readyz" in check["test"][-1]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_wait_only_for_services_that_can_become_healthy(name: str) -> None:
    """A condition on a service without a health check would never become true."""
    for other, condition in _awaited(name).items():
        if condition == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        else:
            assert condition == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "on-failure"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_and_ports_are_on_loopback(name: str) -> None:
    """The images stay the ones that were tested, and no port is open to the outside."""
    image = SERVICES[name]["image"]

    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?", image), image
    assert [port for port in SERVICES[name].get("ports", []) if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)] == []


def test_no_secret_has_a_default() -> None:
    """Everybody would know a default secret."""
    variables = [match.groups() for match in _VARIABLE.finditer(TEXT)]
    secret = {name: (kind, why) for name, kind, why in variables if re.search(r"SECRET|PASSWORD|_KEY$", name)}

    assert set(secret) == {
        "TIDEMARK_SECRET", "TIDEMARK_STRIPE_API_KEY", "VALKEY_PASSWORD", "CLICKHOUSE_PASSWORD", "POSTGRES_PASSWORD",
    }  # fmt: skip
    assert [name for name, (kind, why) in secret.items() if kind != "?" or not why] == []
    assert {name for name, kind, _ in variables if kind == "?"} == set(GIVEN)
    assert [name for name, kind, _ in variables if kind is None] == []


def test_the_stores_have_the_settings_that_the_counts_need() -> None:
    """The settings that `tidemark doctor` checks, and an fsync before ClickHouse confirms."""
    valkey = SERVICES["valkey"]["command"]
    options = dict(zip(valkey[1::2], valkey[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert int(options["--set-max-intset-entries"]) == 65_536
    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert "<fsync_after_insert>1</fsync_after_insert>" in (ROOT / "deploy/clickhouse/durability.xml").read_text()


def test_every_mounted_file_exists_and_every_volume_is_declared() -> None:
    """Compose would create an empty folder for a missing path."""
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_the_mounted_meter_set_is_valid() -> None:
    """If `tidemark meters apply` failed, nothing else would start."""
    mounts = [mount.split(":") for mount in SERVICES["meters"]["volumes"]]
    sources = [source for source, target, _ in mounts if target == SERVICES["meters"]["command"][-1]]

    assert len(sources) == 1
    assert read_meter_set(ROOT / sources[0]).meters


def _targets() -> Iterator[tuple[str, str, int]]:
    for job in PROMETHEUS["scrape_configs"]:
        for group in job["static_configs"]:
            for target in group["targets"]:
                host, _, port = target.rpartition(":")
                yield job["job_name"], host, int(port)


def test_prometheus_scrapes_every_role_where_it_listens() -> None:
    """The failure of a role that Prometheus does not scrape would stay unnoticed."""
    scraped = {host: port for job, host, port in _targets() if job == "tidemark"}
    expected = {
        name: int(service["environment"]["TIDEMARK_GATEWAY_PORT" if name == "gateway" else "TIDEMARK_METRICS_PORT"])
        for name, service in OURS.items()
        if name in LONG_RUNNING
    }

    assert expected == scraped
    assert {host for job, host, _ in _targets() if job == "reconcile"} == {"pushgateway"}


def test_prometheus_reads_the_mounted_rules() -> None:
    """The rules' folder is mounted as a whole."""
    assert PROMETHEUS["rule_files"] == ["/etc/prometheus/rules.yml"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in SERVICES["prometheus"]["volumes"]


def test_every_alert_uses_metrics_that_exist() -> None:
    """An alert on a metric that nobody reports never fires."""
    known = set(METRICS) | {key.name for key in gauge_values(Findings().report(0, None, None))}
    for rule in (rule for group in RULES["groups"] for rule in group["rules"]):
        used = set(re.findall(r"tidemark_\w+", rule["expr"]))
        assert used <= known, rule["alert"]
        assert used or "up{" in rule["expr"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_image_contains_every_package_and_starts_the_command_without_root() -> None:
    """A package that is not copied would fail only at its import."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {package.partition(".")[0] for package in packages}

    assert folders == {folder for folder in folders if f"COPY {folder} {folder}\n" in dockerfile}
    assert folders == {folder for folder in folders if f"!{folder}\n" in ignored}
    assert re.search(r"^FROM python:3\.\d+\.\d+-", dockerfile, re.M)
    assert "--require-hashes" in dockerfile
    assert 'ENTRYPOINT ["tidemark"]' in dockerfile
    assert re.search(r"^USER tidemark$", dockerfile, re.M)
