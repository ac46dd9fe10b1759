"""What travels in the work queues: nudges, and the one strict way to read a message.

A nudge is a hint that somebody should look at (cluster, automation) again; truth is always read anew.
Messages come plain or base64, as `az storage message put`, the portal and SDKs send them; anything that is
not exactly the schema is refused with a MessageError, and ends in the poison queue.
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec

from shared.errors import MessageError

MAX_BYTES = 48 * 1024
"""Largest JSON document taken from a queue: what fits into a message as base64."""

ClusterName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
AutomationName = Annotated[str, msgspec.Meta(pattern=r"^[a-z]([a-z-]{0,30}[a-z])?$")]

MessageT = TypeVar("MessageT")


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A message as the host hands it over."""

    id: str
    body: bytes
    dequeue_count: int = 1
    inserted_at: datetime | None = None


class Nudge(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True
):
    """Look at this cluster again. `reason` is for the log.

    `after` stands in follow-ups we send ourselves: any pass with a greater number has answered it.
    """

    cluster: ClusterName
    automation: AutomationName
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def encode(self) -> str:
        """The message text."""
        return msgspec.json.encode(self).decode()


def decode(body: bytes, kind: type[MessageT]) -> MessageT:
    """The message in `body`, plain or base64; MessageError says in one line what is wrong with it."""
    text = body.strip().removeprefix(b"\xef\xbb\xbf")
    if not text.startswith(b"{"):
        text = _unpacked(text)
    if len(text) > MAX_BYTES:
        raise MessageError(
            f"the message has {len(text)} bytes, more than the {MAX_BYTES} allowed; shorten it"
        )
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise MessageError(f"the message does not fit its schema: {_plain(error)}; correct it") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError(f"the message is not valid JSON ({_plain(error)}); send a JSON object") from error


def _unpacked(text: bytes) -> bytes:
    try:
        inner = base64.b64decode(text, validate=True).strip().removeprefix(b"\xef\xbb\xbf")
    except (binascii.Error, ValueError):
        inner = b""
    if not inner.startswith(b"{"):
        raise MessageError(
            f"the message ({len(text)} bytes) is neither a JSON object nor one in base64; send a JSON object"
        )
    return inner


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
