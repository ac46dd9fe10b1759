"""The fleet as Prometheus text, read back by Prometheus' own parser."""

from __future__ import annotations

import re

import msgspec
import yaml
from prometheus_client.parser import text_string_to_metric_families
from status_builders import NOW, fleet

from sandbox.tools import CHECKOUT
from shared.status.metrics import render


def samples() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(render(fleet()).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(name: str, **labels: str) -> float:
    return samples()[f"kubekeeper_{name}", frozenset(labels.items())]


def test_ages_and_pauses_are_told_for_each_automation() -> None:
    assert value("last_pass_age_seconds", cluster="prod", automation="autoscaling") == 120
    assert value("last_tick_age_seconds", cluster="prod", automation="autoscaling") == 30
    assert value("paused", cluster="prod", automation="disk-release") == 1
    assert value("paused", cluster="new", automation="etcd-backup") == 0


def test_what_never_ran_has_no_age_to_mistake_for_a_young_one() -> None:
    ages = [labels for name, labels in samples() if name == "kubekeeper_last_pass_age_seconds"]
    assert not any(("cluster", "new") in labels for labels in ages)


def test_the_last_plan_backups_operations_and_failures_are_counted() -> None:
    pair = {"cluster": "prod", "automation": "autoscaling"}
    assert value("last_plan_actions", **pair, kind="ScaleUp", status="Succeeded") == 1
    assert value("last_plan_left_alone", **pair, reason="Because") == 1
    assert value("backup_verified_age_seconds", cluster="prod") == 3600
    assert value("backups", cluster="prod", verdict="bad") == 1
    assert value("backups", cluster="prod", verdict="none") == 1
    assert value("operations", cluster="prod", operation="scale", state="Running") == 1
    assert value("poison_messages", queue="operations") == 1


def test_silence_quarantine_and_throttling_are_told() -> None:
    pair = {"cluster": "prod", "automation": "autoscaling"}
    assert value("silent", **pair) == 0
    assert value("quarantined", cluster="prod") == 1
    assert value("throttled", **pair) == 0
    document = fleet()
    slow = msgspec.structs.replace(
        document.clusters[0].journal[0],
        at=NOW,
        automation="autoscaling",
        message="cannot read the pool: TooManyRequests (429)",
    )
    cluster = msgspec.structs.replace(document.clusters[0], journal=(slow,))
    text = render(msgspec.structs.replace(document, clusters=(cluster,))).decode()
    assert 'kubekeeper_throttled{automation="autoscaling",cluster="prod"} 1.0' in text


def test_every_alert_rule_asks_for_metrics_and_labels_that_there_are() -> None:
    rules = yaml.safe_load((CHECKOUT / "infra/prometheus/kubekeeper.rules.yaml").read_text())
    known = {(name, label) for name, labels in samples() for label, _ in labels}
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        (name,) = re.findall(r"\b(kubekeeper_\w+|up)\b", rule["expr"])
        told = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
        asked = re.findall(r'(\w+)=~?"', rule["expr"])
        assert name == "up" or {(name, label) for label in (*told, *asked)} <= known, rule["alert"]
    text = (CHECKOUT / "docs/status-page.md").read_text()
    assert re.findall(r"`(Kubekeeper[A-Z]\w+)`", text) and set(names) == set(
        re.findall(r"`(Kubekeeper[A-Z]\w+)`", text)
    )


def test_the_page_in_the_documentation_has_every_metric() -> None:
    text = (CHECKOUT / "docs/status-page.md").read_text()
    documented = set(re.findall(r"^\| `(kubekeeper_\w+)`", text, re.MULTILINE))
    assert documented == {family.name for family in text_string_to_metric_families(render(fleet()).decode())}
