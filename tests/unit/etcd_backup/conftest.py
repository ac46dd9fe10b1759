"""Snapshots of a real etcd, taken once per run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from captured import Captured, Shelf, capture

from sandbox.etcd import EtcdCluster


@pytest.fixture(scope="session")
def snapshot_etcd() -> Iterator[EtcdCluster]:
    """The etcd the snapshots come from; its tools are the ones to compare with."""
    with EtcdCluster.start() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def snapshots(snapshot_etcd: EtcdCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Captured]:
    """What `captured.capture` took, by name."""
    return capture(snapshot_etcd, tmp_path_factory.mktemp("snapshots"))


@pytest.fixture(params=[None, bytes(range(32))], ids=["clear", "encrypted"])
def shelf(request: pytest.FixtureRequest) -> Shelf:
    """An empty shelf for backups, once without and once with encryption."""
    return Shelf(request.param)
