"""What `GET /api/status` and `/api/metrics` answer, and one line when they cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shared.errors import AutomationError
from shared.log import redact
from shared.status.collect import collect_page
from shared.status.metrics import CONTENT_TYPE
from shared.status.metrics import render as render_metrics
from shared.status.page import render

if TYPE_CHECKING:
    from shared.bootstrap import Clients

HTML, JSON = "text/html", "application/json"


QUICKEST_RELOAD = 5
"""Seconds: each reload reads the whole state of the fleet."""


def answer(
    clients: Clients, wanted: str, accepts: str, refresh: str = ""
) -> tuple[int, str, bytes, int | None]:
    """(HTTP status, media type, body, seconds after which the browser is to ask again).

    503 with the reason when configuration or storage cannot be read.
    """
    kind = JSON if wanted == "json" or (not wanted and JSON in accepts and HTML not in accepts) else HTML
    reload = max(QUICKEST_RELOAD, int(refresh)) if refresh.isdecimal() and kind == HTML else None
    try:
        document = collect_page(clients)
    except AutomationError as error:
        line = redact(str(error))
        return 503, kind, msgspec.json.encode({"error": line}) if kind == JSON else _sorry(line), reload
    body = msgspec.json.encode(document) if kind == JSON else render(document, reload).encode()
    return 200, kind, body, reload


def exposition(clients: Clients) -> tuple[int, str, bytes]:
    """(HTTP status, media type, body) of the metrics; 503 with the reason when they cannot be read."""
    try:
        return 200, CONTENT_TYPE, render_metrics(collect_page(clients))
    except AutomationError as error:
        return 503, "text/plain; charset=utf-8", f"{redact(str(error))}\n".encode()


def _sorry(line: str) -> bytes:
    from html import escape

    head = "<!doctype html><html lang=en><title>Kubekeeper: no status</title>"
    text = f"{head}<main><h1>No status</h1><p>{escape(line)}</p></main>"
    return text.encode()
