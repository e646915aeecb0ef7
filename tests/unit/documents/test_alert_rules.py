"""The alerts fire and are silent as the files `*_test.yml` beside them say: Prometheus' own promtool judges them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "docs" / "runbook"
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "rules.yml").read_text())
FILES = sorted(path.name for path in FOLDER.glob("*_test.yml"))
TESTS = [test for name in FILES for test in yaml.safe_load((FOLDER / name).read_text())["tests"]]
ALERTS = [rule["alert"] for group in RULES["groups"] for rule in group["rules"]]
PARTS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (RUNBOOK / "alerts.md").read_text(), re.M | re.DOTALL))
ADVICE = "no promtool was found: it comes with Prometheus, on Debian with `apt-get install prometheus`"


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool in a folder. A machine without promtool fails and says how to get it."""
    path = shutil.which("promtool")
    if path is None:
        pytest.fail(ADVICE)
    return subprocess.run([path, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_prometheus_understands_the_rules() -> None:
    done = promtool(FOLDER, "check", "rules", "rules.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_and_is_silent_as_its_tests_say() -> None:
    done = promtool(FOLDER, "test", "rules", *FILES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    """The silent one has data: a rule on nothing is always silent."""
    fires: Counter[str] = Counter()
    silent: Counter[str] = Counter()
    for test in TESTS:
        assert test["input_series"], test["name"]
        for check in test["alert_rule_test"]:
            (fires if check["exp_alerts"] else silent)[check["alertname"]] += 1
    assert (sorted(fires), sorted(silent)) == (sorted(ALERTS), sorted(ALERTS))


def test_the_page_of_alerts_has_each_alert_and_no_other() -> None:
    """In the order of the rules, so that a reader finds the neighbours."""
    assert list(PARTS) == ALERTS


@pytest.mark.parametrize("rule", [rule for group in RULES["groups"] for rule in group["rules"]], ids=ALERTS)
def test_an_alert_links_its_part_of_the_page_which_answers_what_a_person_on_call_asks(rule: dict[str, Any]) -> None:
    """What does it mean, is money wrong, what do I type first, when does it end, and where are the remedies?"""
    text = PARTS[rule["alert"]]
    remedies = re.search(r"^\*\*More:\*\* \[.+\]\(([\w-]+\.md)", text, re.M)

    assert rule["annotations"]["runbook"] == f"docs/runbook/alerts.md#{rule['alert'].lower()}"
    assert re.findall(r"^\*\*(\w+):\*\*", text, re.M) == ["Means", "Money", "First", "Ends", "More"]
    assert len(re.findall(r"^    \S", text, re.M)) == 3
    assert remedies is not None
    assert f"`{rule['alert']}`" in (RUNBOOK / remedies[1]).read_text(), f"{remedies[1]} does not name the alert"
