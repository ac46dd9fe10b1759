"""Event Grid events as the Functions library hands them over, in both schemas."""

from __future__ import annotations

import json

import azure.functions as func
import pytest
from azure.functions import meta
from azure.functions.eventgrid import EventGridEventInConverter

from shared.runtime.event import Incoming, incoming

EVENT_GRID = {
    "id": "1",
    "topic": "/clusters/prod",
    "subject": "etcd/prod",
    "eventType": "Kubekeeper.Cluster.EtcdUnhealthy",
    "eventTime": "2026-11-23T10:00:00Z",
    "dataVersion": "1",
    "data": {"cluster": "prod"},
}
CLOUD_EVENT = {
    "specversion": "1.0",
    "id": "1",
    "source": "/clusters/prod",
    "subject": "etcd/prod",
    "type": "Kubekeeper.Cluster.EtcdUnhealthy",
    "time": "2026-11-23T10:00:00Z",
    "data": {"cluster": "prod"},
}
EXPECTED = Incoming(
    id="1",
    type="Kubekeeper.Cluster.EtcdUnhealthy",
    subject="etcd/prod",
    data={"cluster": "prod"},
    source="/clusters/prod",
)


def _as_library(document: dict) -> object:
    return EventGridEventInConverter.decode(meta.Datum(json.dumps(document), "json"), trigger_metadata=None)


@pytest.mark.parametrize("document", [EVENT_GRID, CLOUD_EVENT])
def test_both_schemas_become_the_same_value(document: dict) -> None:
    assert incoming(_as_library(document)) == EXPECTED


def test_the_library_really_hands_over_another_type_for_cloud_events() -> None:
    """The reason for normalising: the annotation of the function says EventGridEvent for both."""
    assert isinstance(_as_library(EVENT_GRID), func.EventGridEvent)
    assert not isinstance(_as_library(CLOUD_EVENT), func.EventGridEvent)


@pytest.mark.parametrize("base", [EVENT_GRID, CLOUD_EVENT])
@pytest.mark.parametrize("data", [None, "text", '{"cluster": "prod"}', 5, [], {"cluster": 7}])
def test_strange_data_never_crashes(base: dict, data: object) -> None:
    event = incoming(_as_library(base | {"data": data}))
    assert event.type == EXPECTED.type
    assert isinstance(event.data, dict)


def test_data_that_is_json_in_a_string_is_read() -> None:
    assert incoming(_as_library(CLOUD_EVENT | {"data": '{"cluster": "prod"}'})) == EXPECTED
