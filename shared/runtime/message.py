"""What travels in the work queues: nudges, and the one strict way to read a message.

A nudge is a hint that somebody should look at (cluster, automation) again; truth is always read anew.
Messages come plain or base64, as `az storage message put`, the portal and SDKs send them, or as the data of
an event, as Event Grid delivers to a storage queue (CloudEvents 1.0 or its own schema). Anything that is not
exactly the schema is refused with a MessageError, and ends in the poison queue.
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, Any, TypeVar

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
    `traceparent` (W3C) ties what it causes to what caused it.
    """

    cluster: ClusterName
    automation: AutomationName
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    traceparent: Annotated[str, msgspec.Meta(pattern=r"^(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?$")] = ""

    def encode(self) -> str:
        """The message text."""
        return msgspec.json.encode(self).decode()


class _Envelope(msgspec.Struct):
    """An event around a message: what tells it from a message, and what is taken from it."""

    id: Any = None
    specversion: Any = None
    event_type: Any = msgspec.field(default=None, name="eventType")
    data: msgspec.Raw = msgspec.Raw()
    data_base64: str = ""

    @property
    def is_event(self) -> bool:
        return self.specversion is not None or self.event_type is not None


def decode(body: bytes, kind: type[MessageT]) -> MessageT:
    """The message in `body`, plain, base64 or an event's data; MessageError says in one line what is wrong
    with it.
    """
    text = _text(body)
    try:
        return msgspec.json.decode(_data(text, _envelope(text)), type=kind)
    except msgspec.ValidationError as error:
        raise MessageError(f"the message does not fit its schema: {_plain(error)}; correct it") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError(f"the message is not valid JSON ({_plain(error)}); send a JSON object") from error


def event_id(body: bytes) -> str:
    """The id of the event that carries a message, the same each time it is delivered; else empty."""
    try:
        envelope = _envelope(_text(body))
    except (MessageError, msgspec.MsgspecError):
        return ""
    return envelope.id if envelope.is_event and isinstance(envelope.id, str) else ""


def _text(body: bytes) -> bytes:
    text = body.strip().removeprefix(b"\xef\xbb\xbf")
    if not text.startswith(b"{"):
        text = _unpacked(text)
    if len(text) > MAX_BYTES:
        raise MessageError(
            f"the message has {len(text)} bytes, more than the {MAX_BYTES} allowed; shorten it"
        )
    return text


def _envelope(text: bytes) -> _Envelope:
    return msgspec.json.decode(text, type=_Envelope)


def _data(text: bytes, envelope: _Envelope) -> bytes:
    """What the event carries, JSON inside a string and base64 taken out; the text itself when it is none."""
    if not envelope.is_event:
        return text
    if envelope.data_base64:
        return _unpacked(envelope.data_base64.encode())
    inner = bytes(envelope.data)
    if inner.startswith(b'"'):
        inner = msgspec.json.decode(inner, type=str).encode()
    if not inner.lstrip().startswith(b"{"):
        raise MessageError("the event's data is no JSON object; put the message there")
    return inner


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
