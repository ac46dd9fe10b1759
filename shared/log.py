"""Log lines without secrets: one event name plus keys, and a net for what slips through.

`log_event` writes `Name key=value ...`. `redact` removes what must never be printed: connection strings,
account and shared keys, SAS signatures, passwords, bearer tokens, PEM private keys. `install_redaction`
makes every record of the process pass through it, those of the SDKs included. Called by the bootstrap and
the CLI.
"""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any

HIDDEN = "[redacted]"

_PATTERNS = (
    (re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL), HIDDEN),
    # AccountKey=..., SharedAccessKey=..., SharedAccessSignature=... of connection strings
    (re.compile(r"(?i)\b((?:Account|SharedAccess)(?:Key|Signature)\s*=\s*)[^;\s\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)([?&;]sig=)[^&\s\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(Bearer|SharedKey|SharedKeyLite|Basic)\s+[A-Za-z0-9._~+/:=-]{8,}"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"(?i)\b(aeg-sas-key|aeg-sas-token|x-functions-key|ocp-apim-[a-z-]*key)(\W{1,4})[^\s,;\"'}]+"
        ),
        rf"\1\2{HIDDEN}",
    ),
    # names ending in password, secret, token and so on (a quoted value may hold spaces)
    (
        re.compile(
            r"(?i)([\"']?\b[\w-]*(?:password|passwd|secret|token|(?:api|access|private)_?key)[\"']?\s*[=:]\s*)"
            r"(?:\"[^\"]*\"|'[^']*'|[^\s,;&\"'}\])]+)"
        ),
        rf"\1{HIDDEN}",
    ),
    # what stands between a user and the host of an address
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@"), rf"\1{HIDDEN}@"),
)


def redact(text: str) -> str:
    """The text with every secret it is seen to hold replaced by `[redacted]`."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def log_event(log: logging.Logger, name: str, *, level: int = logging.INFO, **keys: Any) -> None:
    """One line `Name key=value ...`; empty values are left out, those with spaces quoted."""
    if not log.isEnabledFor(level):
        return
    words = [name, *(f"{key}={_word(value)}" for key, value in keys.items() if value not in (None, ""))]
    log.log(level, "%s", " ".join(words), stacklevel=2)


def install_redaction() -> None:
    """Redact every log record of this process from now on; installing twice is fine."""
    current = logging.getLogRecordFactory()
    if getattr(current, "redacts", False):
        return

    def redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = current(*args, **kwargs)
        record.msg, record.args = redact(_message(record)), ()
        if record.exc_info and record.exc_info[1]:
            # Formatters print exc_text when it is there instead of formatting the exception again.
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacted)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (
        TypeError,
        ValueError,
    ):  # the caller's arguments do not fit its format; logging must not fail for it
        return f"{record.msg} {record.args!r}"


def _word(value: Any) -> str:
    text = " ".join(str(value).split())
    return f'"{text}"' if " " in text else text
