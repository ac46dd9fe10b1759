"""The Kubernetes-shaped data that tests and benchmarks stand on."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
import zstandard

from sandbox.etcd import EtcdCluster
from sandbox.kubedata import KubeData, total_bytes
from shared.clients.etcd import prefix_end


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """Length-delimited protobuf fields; fails on anything left over."""
    found, position = [], 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        tag, length = varint(), varint()
        assert tag & 7 == 2
        assert position + length <= len(message)
        found.append((tag >> 3, message[position : position + length]))
        position += length
    return found


def test_the_same_seed_gives_the_same_data_and_another_does_not() -> None:
    first = list(islice(KubeData(1).objects(), 300))
    assert list(islice(KubeData(1).objects(), 300)) == first
    assert list(islice(KubeData(2).objects(), 300)) != first
    assert len({key for key, _ in first}) == 300


def test_a_change_keeps_the_key_and_most_of_the_value() -> None:
    data = KubeData(1)
    for number in range(200):
        (key, old), (same_key, new) = data.object(number), data.object(number, generation=1)
        assert same_key == key
        assert new != old
        assert len(new) == len(old)


def test_objects_are_what_an_api_server_stores() -> None:
    data = KubeData(1)
    kinds: Counter[str] = Counter()
    for number, (key, value) in enumerate(islice(data.objects(), 500)):
        kinds[data.kind(number)] += 1
        assert key.startswith(b"/registry/")
        if value.startswith(b"k8s\0"):
            (type_meta_tag, type_meta), (raw_tag, raw) = fields(value[4:])
            assert (type_meta_tag, raw_tag) == (1, 2)
            assert [tag for tag, _ in fields(type_meta)] == [1, 2]
            assert all(fields(part) for _, part in fields(raw))
        else:
            document = json.loads(value)
            assert document["metadata"]["name"].encode() == key.rsplit(b"/", 1)[1]
            assert document["metadata"]["namespace"].encode() in key
    assert kinds["pod"] == 140
    assert len(kinds) == 10


def test_it_compresses_like_a_real_cluster() -> None:
    pairs = list(islice(KubeData(1).objects(), 3000))
    text = b"".join(key + value for key, value in pairs)
    ratio = len(text) / len(zstandard.ZstdCompressor(level=1).compress(text))
    assert 2 < ratio < 5
    assert total_bytes(pairs) == len(text)


@pytest.mark.etcd
def test_a_load_and_a_churn_write_what_they_say() -> None:
    with EtcdCluster.start() as cluster:
        told: list[int] = []
        loaded = cluster.seed(2_000_000, progress=told.append)
        client = cluster.client()
        assert client.range(b"/registry/", prefix_end(b"/registry/"), count_only=True).count == loaded.count
        assert 2_000_000 <= loaded.written_bytes < 2_100_000
        assert client.status(cluster.endpoints[0]).revision == loaded.revision
        assert told == sorted(told)
        changed = cluster.churn(loaded, percent=5)
        assert 0.05 <= changed.written_bytes / loaded.written_bytes < 0.06
        events = client.range(b"/registry/events/", prefix_end(b"/registry/events/"), limit=5).kvs
        assert all(event.lease for event in events)
