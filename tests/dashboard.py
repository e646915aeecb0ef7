"""Grafana's dashboard, made from the table of metrics: `python -m tests.documents` writes it, and a test compares it.

The first row answers "is anything wrong?". Below, each metric of the product has a panel with its help text, so that a
new metric is on the dashboard as soon as it is in the table.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any, Final

from pipeline.metrics import METRICS, MetricSpec

WIDTH: Final = 24
PANEL_WIDTH: Final = 8
PANEL_HEIGHT: Final = 7
# A counter appears with its first event, so a panel of failures is empty where nothing failed.
NOTHING: Final = "None: nothing of the kind has happened, or no role reports"
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
# By the word behind `tidemark_`. What is not here has a row of its own.
ROWS: Final = {
    "gateway": "Gateway", "webhook": "Gateway",
    **dict.fromkeys(
        ("native", "partition", "skipped", "relayed", "relay", "outbox", "dedup", "restatements", "snapshots",
         "snapshot"),
        "Counting",
    ),
    **dict.fromkeys(("intents", "sink"), "Reports to Stripe"),
    **dict.fromkeys(("billing", "unfinalized"), "Invoices"),
    "mirror": "Mirror of Stripe",
    **dict.fromkeys(("changes", "trials", "duplicate", "seats"), "Subscriptions"),
    **dict.fromkeys(("notice", "notices"), "Notices"),
}  # fmt: skip
# What an operator looks at first: title, question, expression, unit, and the value from which on it is red.
OVERVIEW: Final = (
    (
        "Alerts that fire", "docs/runbook/alerts.md says what each means.",
        'count(ALERTS{alertstate="firing"}) or vector(0)', "short", 1,
    ),
    (
        "Events by the gateway's answer", "Events a second.",
        "sum by (status) (rate(tidemark_gateway_events_total[5m]))", "eps", None,
    ),
    (
        "Events that are not counted yet", "Records of the log behind the workers.",
        "sum(tidemark_partition_lag_records)", "short", None,
    ),
    (
        "Stream time behind", "Up to when the slowest partition has counted.",
        "time() - min(tidemark_partition_stream_time_seconds)", "s", 60,
    ),
    ("Reports that wait for a person", "By cause.", "sum by (hold) (tidemark_sink_held_intents)", "short", 1),
    (
        "Last reconciliation", "The verdict that is 1.", "max by (verdict) (tidemark_reconcile_verdict)", "short",
        None,
    ),
    (
        "Failed payments that were paid after all", "The share of the cases of dunning, by number and by money.",
        "max by (of) (tidemark_dunning_recovered_ratio)", "percentunit", None,
    ),
    ("Webhooks are silent", "1: the canary was not heard.", "max(tidemark_mirror_canary_silent)", "short", 1),
)  # fmt: skip


def dashboard() -> str:
    """The dashboard as Grafana imports it (grafana.com/docs/grafana/latest/dashboards/build-dashboards/
    view-dashboard-json-model)."""
    panels: list[dict[str, Any]] = []
    y = _row(panels, 0, "Is anything wrong?", [_overview(*each) for each in OVERVIEW])
    named = sorted(METRICS.items(), key=lambda item: (_row_of(item[0]), list(METRICS).index(item[0])))
    for title, metrics in groupby(named, key=lambda item: _row_of(item[0])):
        y = _row(panels, y, title, [_panel(name, spec) for name, spec in metrics])
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    document = {
        "uid": "tidemark",
        "title": "Tidemark",
        "tags": ["tidemark"],
        "schemaVersion": 39,
        "timezone": "utc",
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "annotations": {"list": []},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}]
        },
        "panels": panels,
    }
    return json.dumps(document, indent=1) + "\n"


def _row_of(name: str) -> str:
    word = name.removeprefix("tidemark_").partition("_")[0]
    return ROWS.get(word, word.capitalize())


def _row(panels: list[dict[str, Any]], y: int, title: str, of_row: list[dict[str, Any]]) -> int:
    """Add a row and its panels from a height on. Returns the height below."""
    at = {"h": 1, "w": WIDTH, "x": 0, "y": y}
    panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": at, "panels": []})
    y += 1
    for number, panel in enumerate(of_row):
        line, column = divmod(number, WIDTH // PANEL_WIDTH)
        at = {"h": PANEL_HEIGHT, "w": PANEL_WIDTH, "x": column * PANEL_WIDTH, "y": y + line * PANEL_HEIGHT}
        panels.append(panel | {"gridPos": at})
    return y + -(-len(of_row) // (WIDTH // PANEL_WIDTH)) * PANEL_HEIGHT


def _overview(title: str, question: str, expression: str, unit: str, red_from: float | None) -> dict[str, Any]:
    return _graph(title, question, [(expression, "")], unit, red_from)


def _panel(name: str, spec: MetricSpec) -> dict[str, Any]:
    by = ", ".join(spec.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in spec.labels)
    title = name.removeprefix("tidemark_").removesuffix("_total").replace("_", " ")
    if spec.kind == "counter":
        return _graph(f"{title} a second", spec.sentence, [(f"sum by ({by}) (rate({name}[5m]))", legend)], "short")
    if spec.kind == "histogram":
        rate = f"sum by ({', '.join(('le', *spec.labels))}) (rate({name}_bucket[5m]))"
        quantiles = [(f"histogram_quantile({of}, {rate})", f"{legend} {of}".strip()) for of in (0.5, 0.99)]
        return _graph(title, spec.sentence, quantiles, "s" if name.endswith("_seconds") else "short")
    if "Unix time" in spec.sentence:
        return _graph(f"{title}: ago", spec.sentence, [(f"time() - max by ({by}) ({name})", legend)], "s")
    unit = "s" if name.endswith("_seconds") else "bytes" if name.endswith("_bytes") else "short"
    return _graph(title, spec.sentence, [(f"max by ({by}) ({name})", legend)], unit)


def _graph(
    title: str, description: str, expressions: list[tuple[str, str]], unit: str, red_from: float | None = None
) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": unit, "min": 0, "noValue": NOTHING}
    if red_from is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": red_from}]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}, "color": {"mode": "thresholds"}}
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(65 + number),
                "expr": expression,
                "legendFormat": legend or "__auto",
                "datasource": DATASOURCE,
            }
            for number, (expression, legend) in enumerate(expressions)
        ],
    }
