"""The stand-in of Kubernetes with as many objects as the largest clusters have."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.kube import kinds
from sandbox.kube.errors import RefusalError
from sandbox.kube.store import Record, Selection, Store
from sandbox.tools import CHECKOUT


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_150_000_pods_are_loaded_and_listed_within_memory() -> None:
    script = Path(__file__).with_name("large_cluster.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole megabytes"] > 750, "pods are as long as real ones"
    assert found["loaded"] < 1_300, found
    assert found["peak"] < found["loaded"] + 150, found
    assert found["load seconds"] < 30, found


def test_a_loaded_crowd_begins_a_new_history() -> None:
    store = Store()
    document = {"metadata": {"name": "a", "namespace": "default"}}
    store.write(kinds.PODS, document)
    before = store.revision
    others = ({"metadata": {"name": name, "namespace": "default"}} for name in "cb")
    assert store.load(kinds.PODS, others) == 2
    assert [record.key[1] for record in store.select(kinds.PODS)] == ["a", "b", "c"]
    with pytest.raises(RefusalError, match="too old resource version"):
        store.changes(kinds.PODS, before)
    assert store.changes(kinds.PODS, store.revision) == []


@pytest.mark.parametrize("seed", range(20))
def test_pages_show_one_moment_whatever_is_written_between_them(seed: int) -> None:
    chance, store = random.Random(seed), Store()

    def write() -> None:
        key = ("default", f"p{chance.randrange(30):02}")
        if store.get(kinds.PODS, key) is not None and chance.random() < 0.4:
            store.remove(kinds.PODS, key)
        else:
            store.write(kinds.PODS, {"metadata": {"namespace": key[0], "name": key[1]}})

    for _ in range(40):
        write()
    expected = list(store.select(kinds.PODS))
    found: list[Record] = []
    page = store.page(kinds.PODS, Selection(), limit=4)
    moment = page.revision
    while True:
        found += page.records
        if page.next_key is None:
            break
        for _ in range(chance.randrange(6)):
            write()
        page = store.page(kinds.PODS, Selection(), limit=4, start=page.next_key, revision=moment)
    assert found == expected
