"""What `keeper doctor` finds: a level, a subject, a line with the remedy; and what several checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import msgspec

from shared.errors import AutomationError

SKEW_WARNING = timedelta(seconds=5)
"""Certificates, leases and plans stand much more; logs that are compared do not."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`level` is ok, warning or problem; `message` says what was found and, unless ok, what to do."""

    level: str
    subject: str
    message: str


def ok(subject: str, message: str) -> Finding:
    return Finding(level="ok", subject=subject, message=message)


def warning(subject: str, message: str) -> Finding:
    return Finding(level="warning", subject=subject, message=message)


def problem(subject: str, message: str) -> Finding:
    return Finding(level="problem", subject=subject, message=message)


def guarded(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except AutomationError as error:
        yield problem(subject, f"{error}{sign_in_hint(error)}")


_SIGN_IN = {
    "AADSTS700016": "no application of the tenant has this client id; correct AZURE_CLIENT_ID",
    "AADSTS7000215": "the client secret is wrong; set AZURE_CLIENT_SECRET to its value, not to its id",
    "AADSTS7000222": "the client secret has expired; make a new one and set AZURE_CLIENT_SECRET",
    "AADSTS90002": "there is no such tenant; correct AZURE_TENANT_ID",
    "AADSTS900023": "the tenant id is malformed; correct AZURE_TENANT_ID",
    "AADSTS700027": "the client certificate is not the one registered; correct AZURE_CLIENT_CERTIFICATE_PATH",
}
"""Codes of Entra ID (learn.microsoft.com, "Microsoft Entra authentication and authorization error codes")."""


def sign_in_hint(error: AutomationError) -> str:
    """What Entra ID said, when signing in is what failed."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    for code, meaning in _SIGN_IN.items():
        if any(f"{code}:" in text or f"{code} " in text for text in texts):
            return f"; {meaning} ({code})"
    return ""


def clock_finding(subject: str, whose: str, ahead: timedelta) -> Finding:
    if abs(ahead) < SKEW_WARNING:
        return ok(subject, f"{whose} clock and ours agree")
    direction = "ahead of" if ahead > timedelta(0) else "behind"
    return warning(
        subject, f"{whose} clock is {abs(ahead).total_seconds():.0f} s {direction} ours; check NTP on both"
    )
