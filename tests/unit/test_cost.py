"""docs/cost.md: what a cluster costs, computed from counted executions and requests and from named prices.

Run as a program (`PYTHONPATH=.:tests python tests/unit/test_cost.py`) this writes the tables. The counts are
those that `python -m bench.cost` has seen last, docs/reference/cost.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bicep import Deployment, Scope

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/cost.md"
COUNTED = ROOT / "docs/reference/cost.json"
BEGIN, END = "<!-- cost: made by tests/unit/test_cost.py -->\n", "<!-- end of cost -->\n"
HOURS = 730  # of a month, as Azure bills it
INSTANCE_GB = 2
ORIGIN = (
    "The price of execution time is of May 2025; the others are assumed and were not looked up "
    "(East US, dollars): put yours in."
)
# Title, how many of what is counted are one of what is priced, its name, dollars: as in East US, for
# a storage account with copies in three zones.
PRICES = {
    "seconds": ("seconds of execution, on demand", 1 / INSTANCE_GB, "GB-second", 0.000026),
    "executions": ("executions", 1_000_000, "million", 0.40),
    "queue": ("queue operations", 10_000, "10,000", 0.004),
    "table": ("table operations", 10_000, "10,000", 0.00036),
    "blob-write": ("blob writes", 10_000, "10,000", 0.0625),
    "blob-list": ("blob listings", 10_000, "10,000", 0.0625),
    "blob-other": ("blob reads and leases", 10_000, "10,000", 0.004),
}
FREE = {"seconds": 100_000 / INSTANCE_GB, "executions": 250_000}
ALERT_RULE = {"PT5M": 1.50, "PT15M": 0.50}
ALWAYS_READY_GB_SECOND, BACKUP_GB, ENDPOINT_HOUR = 0.000004, 0.023, 0.01
BUSY = {"scale-up": 200, "ingress-change": 300}
"""What happens on a busy cluster in a day, beside an hourly backup."""
EACH = {
    "minute": "a minute in which nothing happens",
    "backup": "a backup, with its proof",
    "scale-up": "a pool that grows, until the pods that waited run",
    "ingress-change": "an Ingress that comes, until the gateway serves it",
}


def month(counted: dict[str, Any], per_day: dict[str, int]) -> Counter[str]:
    """How many of each priced thing in a month: every minute's, hourly backups, and so many events a day."""
    total: Counter[str] = Counter()
    times = {"minute": HOURS * 60.0, "backup": HOURS} | {one: n * HOURS / 24 for one, n in per_day.items()}
    for source, so_often in times.items():
        each: Counter[str] = Counter()
        for name, count in counted["per"][source].items():
            each[_kind(name)] += count
        each["seconds"] = max(each["seconds"], each["executions"])  # none is charged for less than one
        for kind, count in each.items():
            total[kind] += count * so_often
    return total


def _kind(name: str) -> str:
    """`storage.queue` is priced as `queue`, `executions.status` as `executions`."""
    group, _, rest = name.partition(".")
    return rest if group == "storage" else group


def _plain(price: float) -> str:
    return f"{price:.6f}".rstrip("0")


def dollars(kind: str, count: float) -> float:
    _, many, _, price = PRICES[kind]
    return count / many * price


def alert_rules() -> list[float]:
    """The monthly price of each alert rule of the templates."""
    main = Deployment(ROOT / "infra/main.bicep", {"environmentName": "prod", "location": "x"}, Scope("s"))
    rules = [one.body for one in main.resources if one.type == "Microsoft.Insights/scheduledQueryRules"]
    return [ALERT_RULE[one["properties"]["evaluationFrequency"]] for one in rules]


def tables() -> Iterator[str]:
    counted = json.loads(COUNTED.read_text())
    both = month(counted, {}), month(counted, BUSY)
    rules = alert_rules()
    yield f"Counted on {counted['measured']}. {ORIGIN}"
    yield ""
    yield "| in a month | price | idle cluster | | busy cluster | |"
    yield "|---|---|---|---|---|---|"
    for kind, (title, _, unit, price) in PRICES.items():
        cells = " | ".join(f"{total[kind]:,.0f} | ${dollars(kind, total[kind]):.2f}" for total in both)
        yield f"| {title} | ${_plain(price)} per {unit} | {cells} |"
    alerts = f"{len(rules)} | ${sum(rules):.2f}"
    yield f"| alert rules | $1.50 or $0.50 | {alerts} | {alerts} |"
    sums = [sum(dollars(kind, total[kind]) for kind in PRICES) + sum(rules) for total in both]
    yield f"| **together** | | | **${sums[0]:.2f}** | | **${sums[1]:.2f}** |"
    free = [sum(dollars(kind, min(total[kind], grant)) for kind, grant in FREE.items()) for total in both]
    yield f"| of that, in the monthly free grants | | | ${free[0]:.2f} | | ${free[1]:.2f} |"
    yield ""
    yield "*Idle*: timers each minute (backups: every five), a backup each hour, nothing happens."
    grows, comes = BUSY["scale-up"], BUSY["ingress-change"]
    yield f"*Busy*: also {grows} times a day a pool grows, and {comes} times an Ingress comes."
    yield ""
    yield "| where used | in a month |"
    yield "|---|---|"
    warm = 3 * INSTANCE_GB * HOURS * 3600 * ALWAYS_READY_GB_SECOND
    baseline = f"three functions of {INSTANCE_GB} GB, ${_plain(ALWAYS_READY_GB_SECOND)} per GB-second"
    yield f"| `alwaysReady: 1`, {baseline} | ${warm:.2f} |"
    yield f"| 100 GB of backups in the hot tier, ${BACKUP_GB} per GB | ${100 * BACKUP_GB:.2f} |"
    yield f"| four private endpoints, ${ENDPOINT_HOUR} an hour | ${4 * HOURS * ENDPOINT_HOUR:.2f} |"
    yield ""
    yield "| what each takes | executions | storage requests | calls to Azure | calls to Kubernetes |"
    yield "|---|---|---|---|---|"
    for source, title in EACH.items():
        each: Counter[str] = Counter()
        for name, count in counted["per"][source].items():
            each[name if name.startswith("calls.") else name.partition(".")[0]] += count
        cells = (each[one] for one in ("executions", "storage", "calls.azure", "calls.kubernetes"))
        yield f"| {title} | {' | '.join(f'{n:.0f}' if n >= 10 else f'{n:.1f}' for n in cells)} |"
    yield ""


def with_tables(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + "\n".join(tables()) + "\n" + END + rest.partition(END)[2]


def test_the_page_says_what_the_counts_and_prices_give() -> None:
    text = PAGE.read_text()
    assert text == with_tables(text), "run: PYTHONPATH=.:tests python tests/unit/test_cost.py"


def test_every_request_to_storage_has_a_price() -> None:
    counted = json.loads(COUNTED.read_text())
    names = {name for each in counted["per"].values() for name in each if name.startswith("storage.")}
    assert {_kind(name) for name in names} <= PRICES.keys() | {"blob-delete"}  # only deleting is free


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
