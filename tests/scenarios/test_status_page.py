"""What the status page shows of an automation's memory, while the automation is at work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_release_world import Keeper
from ingress_sync_world import INGRESSES, IngressWorld, Servers, ingress

from sandbox.arm import QUOTED
from sandbox.scenario import World
from shared.status.collect import gateway_of, held_disks, quarantined_objects, rows_of


@pytest.fixture
def world(tmp_path: Path) -> Iterator[IngressWorld]:
    with Servers() as servers:
        world = IngressWorld(servers, tmp_path)
        yield world
        world.close()


def test_a_disk_is_held_from_the_fence_until_it_is_seen_free(tmp_path: Path) -> None:
    with World(serve=False) as world:
        world.cloud.marks_out_of_service = False
        world.arm.core.latencies = QUOTED
        world.add_nodes("a", "b", "c")
        world.add_stateful_set("db")
        world.advance(120)
        app, dead = Keeper(world, tmp_path), world.pod("db-0").node
        (cluster,) = app.settings.clusters
        assert held_disks(app.clients(), cluster) == ()
        world.kill_kubelet(dead)
        app.until(lambda: not world.node(dead).is_ready, within=60)
        app.nudge()
        app.until(lambda: app.events("FenceBegun"), within=300)
        (held,) = held_disks(app.clients(), cluster)
        assert (held.disk, held.vm, held.node) == ("db-0", dead, dead)
        assert held.step == "PowerOffVM Running"
        app.until(lambda: app.events("Released"), within=300)
        assert held_disks(app.clients(), cluster) == ()


def test_routes_are_shown_as_written_and_a_bad_object_as_quarantined(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.apply(INGRESSES, ingress("bad", "bad.example", tls={"bad.example": "not-there"}))
    world.nudge()
    world.settle()
    clients = world.process()
    (cluster,) = clients.settings().clusters
    gateway = gateway_of(clients, cluster)
    assert gateway is not None
    assert [(one.host, one.path, one.owner) for one in gateway.routes] == [("web.example", "/", "shop/web")]
    assert (gateway.written_at is not None, gateway.writing_since) == (True, None)
    (out,) = quarantined_objects(rows_of(clients, cluster, {}), gateway)
    assert out["subject"] == "shop/bad"
