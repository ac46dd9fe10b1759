"""What a queue message may look like, and what is said about one that may not."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import MessageError
from shared.runtime.message import MAX_BYTES, Nudge, decode, event_id
from shared.runtime.operation import OperationMessage

NUDGE = {"cluster": "prod", "automation": "etcd-backup", "reason": "Timer"}
OPERATION = {
    "id": "a-1",
    "operation": "scale",
    "cluster": "prod",
    "parameters": {"count": 5},
}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        base64.b64encode,
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"  \n" + text + b"\n",
        lambda text: base64.b64encode(text) + b"\n",
    ],
)
def test_a_message_is_read_plain_or_base64_whatever_the_sender_adds(wrap) -> None:
    assert decode(wrap(json.dumps(NUDGE).encode()), Nudge) == Nudge(**NUDGE)
    body = wrap(json.dumps(OPERATION, indent=2).encode())
    assert decode(body, OperationMessage) == OperationMessage(**OPERATION)


CLOUD_EVENT = {"specversion": "1.0", "id": "e-1", "source": "s", "type": "t"}
EVENT_GRID = {"id": "e-1", "eventType": "t", "subject": "s", "dataVersion": "1", "eventTime": "2026-11-23"}


@pytest.mark.parametrize(
    "event",
    [
        CLOUD_EVENT | {"data": OPERATION},
        CLOUD_EVENT | {"data": json.dumps(OPERATION)},
        CLOUD_EVENT | {"data_base64": base64.b64encode(json.dumps(OPERATION).encode()).decode()},
        EVENT_GRID | {"data": OPERATION},
        EVENT_GRID | {"data": json.dumps(OPERATION)},
    ],
)
@pytest.mark.parametrize("wrap", [lambda text: text, base64.b64encode])
def test_a_message_is_read_out_of_an_event_of_either_schema(event, wrap) -> None:
    body = wrap(json.dumps(event).encode())
    assert decode(body, OperationMessage) == OperationMessage(**OPERATION)
    assert event_id(body) == "e-1"


@pytest.mark.parametrize("data", [None, 5, [OPERATION], "hello", '"{'])
def test_an_event_without_a_message_is_refused(data) -> None:
    with pytest.raises(MessageError):
        decode(json.dumps(CLOUD_EVENT | {"data": data}).encode(), OperationMessage)
    with pytest.raises(MessageError, match="put the message there"):
        decode(json.dumps(CLOUD_EVENT).encode(), OperationMessage)


def test_what_is_no_event_has_no_event_id() -> None:
    for body in (b"", b"hello", json.dumps(OPERATION).encode(), json.dumps(CLOUD_EVENT | {"id": 5}).encode()):
        assert event_id(body) == ""


def test_what_is_sent_is_what_is_read() -> None:
    nudge = Nudge(cluster="prod", automation="etcd-backup", reason="FollowUp", after=7)
    assert decode(nudge.encode().encode(), Nudge) == nudge


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "neither a JSON object nor one in base64"),
        (b"hello", "neither a JSON object nor one in base64"),
        (b"\x00\xff" * 32768, "(65536 bytes) is neither a JSON object nor one in base64"),
        (b"A" * 65536, "neither a JSON object nor one in base64"),
        (b"[1, 2]", "neither a JSON object nor one in base64"),
        (b'{"cluster": "prod"', "not valid JSON"),
        (b"{}", "missing required field `cluster`"),
        (b'{"cluster": "prod", "automation": "etcd-backup", "secret": 1}', "unknown field `secret`"),
        (b'{"cluster": "../x", "automation": "etcd-backup"}', "`$.cluster`"),
        (b'{"cluster": "prod", "automation": "etcd-backup", "after": -1}', "`$.after`"),
        (b'{"cluster": 5, "automation": "etcd-backup"}', "Expected `str`, got `int`"),
        (json.dumps(NUDGE | {"reason": "x" * MAX_BYTES}).encode(), f"more than the {MAX_BYTES} allowed"),
    ],
)
def test_anything_else_is_refused_in_one_line_that_says_why(body: bytes, said: str) -> None:
    with pytest.raises(MessageError) as raised:
        decode(body, Nudge)
    line = str(raised.value)
    assert said in line
    assert "\n" not in line
    assert len(line) < 500


@given(st.binary(max_size=300))
def test_no_bytes_whatever_crash_the_reader(body: bytes) -> None:
    try:
        decode(body, OperationMessage)
    except MessageError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=10,
)
NAMES = (
    *("id", "operation", "cluster", "parameters", "specversion", "eventType"),
    *("data", "data_base64", "automation", "reason", "after"),
)
NEARLY = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, JSON))


@pytest.mark.no_cover
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first draw imports much
@given(NEARLY)
def test_no_document_whatever_crashes_the_reader(document) -> None:
    body = json.dumps(document).encode()
    for kind in (OperationMessage, Nudge):
        try:
            decode(body, kind)
        except MessageError as error:
            assert "\n" not in str(error)
    event_id(body)


@pytest.mark.parametrize("identity", ["", "a/b", "a b", "-a", "a" * 101, "ä"])
def test_an_operation_id_that_is_no_table_key_is_refused(identity: str) -> None:
    with pytest.raises(MessageError, match=r"\$\.id"):
        decode(json.dumps(OPERATION | {"id": identity}).encode(), OperationMessage)
