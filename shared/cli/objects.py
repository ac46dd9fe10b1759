"""How `keeper backup get` shows what etcd holds under a key: JSON, text, or the envelope of a protobuf.

Kubernetes stores built-in types as protobuf behind the four bytes `k8s\\0` (apimachinery's `runtime.Unknown`:
type, then the object), custom resources as JSON, and with encryption at rest `k8s:enc:...`. Only the envelope
and the name are read here; the rest is shown as bytes. Pure.
"""

from __future__ import annotations

import base64
import json
from typing import Any

MAGIC = b"k8s\x00"
ENCRYPTED = b"k8s:enc:"
_PREVIEW_BYTES = 256


def describe(value: bytes) -> dict[str, Any]:
    """What is known about a value: `format`, `bytes` and what the format tells.

    `object` for JSON; `apiVersion`, `kind`, `namespace`, `name` for protobuf, as far as they can be read;
    `provider` for what the API server encrypted; `text` for text. Everything but JSON also carries `base64`.
    """
    known: dict[str, Any] = {"format": "binary", "bytes": len(value)}
    if value.startswith(MAGIC):
        known |= {"format": "protobuf", **read_envelope(value)}
    elif value.startswith(ENCRYPTED):
        known |= {"format": "encrypted", "provider": _provider(value)}
    elif (document := _json(value)) is not None:
        return known | {"format": "json", "object": document}
    elif (text := _text(value)) is not None:
        known |= {"format": "text", "text": text}
    return known | {"base64": base64.b64encode(value).decode()}


def readable(value: bytes) -> str:
    """The value for people: JSON indented, text as it is, protobuf by type and name with a hex preview."""
    known = describe(value)
    if known["format"] == "json":
        return json.dumps(known["object"], indent=2, ensure_ascii=False)
    if known["format"] == "text":
        return str(known["text"])
    lines = [
        f"{name}: {known[name]}"
        for name in ("apiVersion", "kind", "namespace", "name", "provider")
        if name in known
    ]
    what = {"protobuf": "protobuf", "encrypted": "encrypted by the API server", "binary": "binary"}[
        known["format"]
    ]
    lines.append(f"{what}, {len(value)} bytes; all of it with --raw")
    return "\n".join([*lines, *_hex_lines(value)])


def read_envelope(value: bytes) -> dict[str, str]:
    """`apiVersion`, `kind`, `namespace`, `name` of a protobuf object; what cannot be read is absent."""
    found: dict[str, str] = {}
    unknown = _fields(value[len(MAGIC) :])
    _name(found, _fields(unknown.get(1, b"")), {1: "apiVersion", 2: "kind"})
    # Field 1 of every built-in type is its ObjectMeta: name = 1, namespace = 3.
    metadata = _fields(_fields(unknown.get(2, b"")).get(1, b""))
    _name(found, metadata, {3: "namespace", 1: "name"})
    return found


def _name(found: dict[str, str], fields: dict[int, bytes], names: dict[int, str]) -> None:
    for number, name in names.items():
        text = _text(fields.get(number, b""))
        if text:
            found[name] = text


def _fields(message: bytes) -> dict[int, bytes]:
    """The first length-delimited value of each field, up to the first thing that is no protobuf."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            _, at = _varint(message, at)
        elif tag & 7 == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                break
            found.setdefault(tag >> 3, message[at : at + length])
            at += length
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            break
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends; a cut one ends with the data."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            break
    return value, at


def _json(value: bytes) -> Any:
    if value[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(value)
    except ValueError:
        return None


def _text(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c in "\n\t\r" for c in text) else None


def _provider(value: bytes) -> str:
    """`aescbc:v1:key1` of `k8s:enc:aescbc:v1:key1:...`."""
    parts = value[len(ENCRYPTED) : 200].split(b":")
    return ":".join(part.decode("ascii", "replace") for part in parts[:3])


def _hex_lines(value: bytes) -> list[str]:
    lines = []
    for at in range(0, min(len(value), _PREVIEW_BYTES), 16):
        part = value[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:06x}  {part.hex(' '):<47}  {shown}")
    if len(value) > _PREVIEW_BYTES:
        lines.append("...")
    return lines
