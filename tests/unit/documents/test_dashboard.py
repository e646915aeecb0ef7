"""Grafana's dashboard: Prometheus' own promtool judges each query, Grafana's own model each field, and every metric
has a panel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.metrics import METRICS, MetricSpec
from tests.documents import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "tidemark.json").read_text())
JUDGE = ROOT / ".venv" / "clients" / "dashboard-judge"
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS: list[str] = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
METRIC = re.compile(r"tidemark_[a-z_]+[a-z]")


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    """A dashboard with a wrong query shows nothing, and nobody notices before the night in which it is needed."""
    path = shutil.which("promtool")
    if path is None:
        pytest.fail("no promtool was found: it comes with Prometheus, on Debian with `apt-get install prometheus`")
    rules = [{"record": f"panel_{number}", "expr": expression} for number, expression in enumerate(EXPRESSIONS)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [path, "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_has_a_result_where_each_metric_is_reported(tmp_path: Path) -> None:
    """A query that Prometheus understands may still select nothing, such as by a value that no label has."""
    series = [{"series": "tidemark_reconcile_verdict{verdict='equal'}", "values": "1x30"}]
    series += [
        {"series": f"{name}{{{', '.join(labels)}}}", "values": "0+1x30"}
        for metric, spec in METRICS.items()
        for name, labels in _series_of(metric, spec)
    ]
    checks = [
        {"expr": f"count({expression}) > bool 0", "eval_time": "20m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for expression in EXPRESSIONS
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": checks}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _series_of(name: str, spec: MetricSpec) -> list[tuple[str, list[str]]]:
    """The series of a metric as Prometheus reads them, with one value of each label."""
    labels = [f'{label}="any"' for label in spec.labels]
    if spec.kind == "histogram":
        return [(f"{name}_bucket", [*labels, f'le="{le}"']) for le in ("1", "+Inf")]
    return [(name, labels)]


def judged(text: str) -> str:
    """What Grafana's own model of a dashboard (`tests/grafana/main.go`, which `make test` compiles) says of a text."""
    done = subprocess.run([JUDGE], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


def test_grafana_understands_every_field() -> None:
    """Grafana ignores a field that it does not know, and draws the panel otherwise than meant."""
    assert judged(json.dumps(DASHBOARD)) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param('"unit"', '"unti"', id="unknown field"),
        pytest.param('"legendFormat"', '"legend"', id="unknown field of a query"),
        pytest.param('"showLegend": true, ', "", id="missing field"),
        pytest.param('"min": 0', '"min": "0"', id="number as text"),
        pytest.param('"schemaVersion": 39', '"schemaVersion": "39"', id="version as text"),
    ],
)
def test_grafana_refuses_a_dashboard_with_an_error(right: str, wrong: str) -> None:
    text = json.dumps(DASHBOARD)
    assert right in text
    assert judged(text.replace(right, wrong)) != ""


def test_every_metric_has_a_panel_and_no_panel_asks_for_another_name() -> None:
    """Also the metrics of the reconciler, which comes with its own names."""
    asked = {name.removesuffix("_bucket") for expression in EXPRESSIONS for name in METRIC.findall(expression)}

    assert asked - {"tidemark_reconcile_verdict"} == set(METRICS)


def test_panels_have_one_place_and_one_number_each() -> None:
    """Grafana draws panels of one place above each other."""
    places = Counter((panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS)
    numbers = Counter(panel["id"] for panel in PANELS)

    assert max(places.values()) == max(numbers.values()) == 1
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)
    assert all(panel["description"] for panel in PANELS if panel["type"] != "row")
    assert PANELS[0]["title"] == "Is anything wrong?"
