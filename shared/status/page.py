"""The status page: one HTML document, readable without JavaScript, by keyboard and by a screen reader.

`render` is pure: the same document gives the same page. Charts are inline SVG with the same numbers in a
table below; nothing is loaded from anywhere. Called by the function behind `GET /api/status`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from shared.model.backup import VerdictState
from shared.model.duration import format_duration
from shared.model.wording import byte_size
from shared.runtime.automation import AUTOMATIONS
from shared.status.charts import HEIGHT, WIDTH, calendar, pool_charts
from shared.status.collect import LATELY

if TYPE_CHECKING:
    from jinja2 import Environment

    from shared.model.backup import BackupRecord
    from shared.runtime.journal import Entry
    from shared.runtime.operation import OperationRecord
    from shared.status.collect import ClusterStatus, PageDocument, Row

SHOWN_ENTRIES = 50
SHOWN_BACKUPS = 10
OPEN_UP_TO = 5
"""What is left alone stands open where it is no more than so many lines."""


def render(document: PageDocument, reload: int | None = None) -> str:
    """The page as text; it is UTF-8 HTML. `reload`: after how many seconds the browser asks again."""
    template = _environment().get_template("status.html.j2")
    return template.render(page=document, now=document.now, reload=reload)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("shared.status"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ago": ago, "moment": moment, "size": byte_size, "took": took, "last": last}
    environment.globals |= {
        "automations": tuple(AUTOMATIONS),
        "calendar": calendar,
        "pool_charts": lambda sizes, now: pool_charts(sizes, now - LATELY, now),
        "newest_proven": newest_proven,
        "of_automation": of_automation,
        "released": released,
        "row_of": row_of,
        "shown": SHOWN_ENTRIES,
        "shown_backups": SHOWN_BACKUPS,
        "open_up_to": OPEN_UP_TO,
        "box": (WIDTH, HEIGHT),
    }
    return environment


def ago(at: datetime | None, now: datetime) -> str:
    """`5m ago`, in its largest unit; `never` for None."""
    if at is None:
        return "never"
    passed = max(timedelta(0), now - at)
    for unit in (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)):
        if passed >= unit:
            return f"{format_duration(passed // unit * unit)} ago"
    return f"{format_duration(passed)} ago"


def moment(at: datetime) -> str:
    """A time as it stands in tables, UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def newest_proven(backups: Sequence[BackupRecord]) -> BackupRecord | None:
    """The newest backup that was verified."""
    proven = [backup for backup in backups if backup.verdict is VerdictState.VERIFIED]
    return proven[-1] if proven else None


def of_automation(entries: Iterable[Entry], automation: str) -> list[Entry]:
    """The journal's outcomes of one automation, newest first."""
    return [entry for entry in entries if entry.automation == automation and entry.kind == "Outcome"]


def released(entries: Iterable[Entry]) -> list[Entry]:
    """Disks that were seen free of the machine they were released from, newest first."""
    return [entry for entry in entries if entry.data.get("event") == "Released"]


def row_of(cluster: ClusterStatus, automation: str) -> Row | None:
    """None when the cluster does not use the automation."""
    return next((row for row in cluster.automations if row.automation == automation), None)


def took(operation: OperationRecord) -> str:
    """From asking to the last thing that is known, in whole seconds."""
    return format_duration(operation.updated_at - operation.accepted_at)


def last(resource_id: str) -> str:
    """The last name of a resource id, an instance of a scale set as SET/NUMBER; other texts as they are."""
    if not resource_id.startswith("/"):
        return resource_id
    parts = resource_id.split("/")
    return (
        f"{parts[-3]}/{parts[-1]}"
        if len(parts) > 10 and parts[-2].lower() == "virtualmachines"
        else parts[-1]
    )
