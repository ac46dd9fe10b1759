"""What `keeper backup get` makes of the values Kubernetes stores."""

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from shared.cli.objects import describe, read_envelope, readable


def field(number: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def pod(name: bytes = b"web-0", namespace: bytes = b"shop") -> bytes:
    metadata = field(1, name) + field(2, b"") + field(3, namespace) + field(5, b"uid")
    type_meta = field(1, b"v1") + field(2, b"Pod")
    return (
        b"k8s\x00"
        + field(1, type_meta)
        + field(2, field(1, metadata) + field(2, b"\xff\xfe"))
        + field(3, b"")
    )


def test_json_is_shown_indented() -> None:
    value = b'{"kind":"Widget","metadata":{"name":"a"}}'
    assert describe(value)["format"] == "json"
    assert json.loads(readable(value)) == json.loads(value)
    assert "\n  " in readable(value)


def test_protobuf_is_named_by_its_envelope() -> None:
    known = describe(pod())
    assert known["format"] == "protobuf"
    assert (known["apiVersion"], known["kind"], known["namespace"], known["name"]) == (
        "v1",
        "Pod",
        "shop",
        "web-0",
    )
    assert base64.b64decode(known["base64"]) == pod()
    assert readable(pod()).splitlines()[:4] == [
        "apiVersion: v1",
        "kind: Pod",
        "namespace: shop",
        "name: web-0",
    ]


def test_an_object_without_a_namespace_has_none() -> None:
    assert "namespace" not in describe(pod(namespace=b""))


def test_what_the_api_server_encrypted_says_by_which_provider() -> None:
    known = describe(b"k8s:enc:aescbc:v1:key1:\x00\xff")
    assert (known["format"], known["provider"]) == ("encrypted", "aescbc:v1:key1")


def test_text_is_text_and_the_rest_is_bytes() -> None:
    assert describe(b"10.0.0.0/16")["text"] == "10.0.0.0/16"
    assert describe(b"\x00\x01")["format"] == "binary"
    assert describe(b"{not json")["format"] == "text"
    assert describe(b"")["bytes"] == 0


def test_a_long_value_is_previewed() -> None:
    assert readable(bytes(range(256)) * 20).endswith("...")


@given(st.binary(max_size=200))
def test_no_bytes_behind_the_magic_are_too_broken_to_describe(data: bytes) -> None:
    assert read_envelope(b"k8s\x00" + data).keys() <= {"apiVersion", "kind", "namespace", "name"}
    assert readable(b"k8s\x00" + data)


@given(st.binary(max_size=100))
def test_every_value_can_be_got_back(data: bytes) -> None:
    known = describe(data)
    back = json.dumps(known["object"]) if known["format"] == "json" else base64.b64decode(known["base64"])
    assert json.loads(back) == json.loads(data) if known["format"] == "json" else back == data
