"""Plain GET requests of services that have no client of their own: Prometheus, Azure's public price list.

Nothing is repeated here, and redirects are not followed: a token goes where it was meant to, or nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from shared.errors import ApiError, ForbiddenError, SettingsError, ThrottledError, UnavailableError

SECONDS = 10.0
"""Longest wait: a run is seconds long."""


def get(url: str, fields: Mapping[str, str] | None, *, service: str, token: str = "") -> bytes:
    """The body of a 200 answer. SettingsError when `url` is none; else the errors of `shared.errors`."""
    import urllib3

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"'{url[:120]}' is no http(s) address of {service}")
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        answer = urllib3.request(
            "GET",
            url,
            fields=dict(fields) if fields else None,
            headers=headers,
            timeout=SECONDS,
            retries=False,
            redirect=False,
        )
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(
            f"no answer from {service} at {parts.hostname} ({type(error).__name__})"
        ) from error
    if answer.status == 200:
        return answer.data
    line = f"{service} at {parts.hostname} answered {answer.status}"
    if answer.status == 429:
        raise ThrottledError(line)
    if answer.status >= 500:
        raise UnavailableError(line, status=answer.status)
    raise (ForbiddenError if answer.status in (401, 403) else ApiError)(line, status=answer.status)
