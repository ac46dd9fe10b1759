"""Loads and lists a cluster of 5,000 nodes and 150,000 pods; a process of its own, since memory is measured.

Prints JSON: seconds and megabytes. Called by test_kube_large.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sandbox.clock import Clock
from sandbox.kube import LocalKubernetes, kinds
from sandbox.kube.crowd import nodes, pods
from sandbox.kube_client import KubeClient

NODES, PODS, PAGE = 5_000, 150_000, 500


class Metadata(msgspec.Struct):
    name: str = ""
    continues: str = msgspec.field(default="", name="continue")


class Item(msgspec.Struct):
    metadata: Metadata


class Page(msgspec.Struct):
    metadata: Metadata
    items: list[Item]


def peak() -> int:
    """Megabytes that this process has had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def pages(client: KubeClient, path: str) -> tuple[int, int]:
    """How many requests it took, and objects there are."""
    count, requests, token = 0, 0, ""
    while True:
        answer = client.send("GET", path, query={"limit": PAGE, **({"continue": token} if token else {})})
        page = msgspec.json.decode(answer.data, type=Page)
        count, requests, token = count + len(page.items), requests + 1, page.metadata.continues
        if not token:
            return requests, count


def main() -> None:
    found: dict[str, float] = {"before": peak()}
    with LocalKubernetes(Clock(datetime(2026, 11, 23, 10, 0, tzinfo=UTC))) as kubernetes:
        began = time.process_time()  # of this process alone, whatever else the machine does
        kubernetes.load(kinds.NODES, nodes(NODES))
        kubernetes.load(kinds.PODS, pods(PODS, nodes=NODES, pending=100))
        found["load seconds"] = time.process_time() - began
        found["loaded"] = peak()
        client = kubernetes.client()
        assert pages(client, "/api/v1/nodes") == (10, NODES)
        began = time.monotonic()
        assert pages(client, "/api/v1/pods") == (300, PODS)
        found["list seconds"] = time.monotonic() - began
        pending = client.send("GET", "/api/v1/pods", query={"fieldSelector": "spec.nodeName="})
        assert len(msgspec.json.decode(pending.data, type=Page).items) == 100
        began, size = time.monotonic(), 0
        whole = client.send("GET", "/api/v1/pods", stream=True)
        for piece in whole.stream(1 << 20):
            size += len(piece)
        found["whole seconds"] = time.monotonic() - began
        found["whole megabytes"] = size >> 20
    found["peak"] = peak()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
