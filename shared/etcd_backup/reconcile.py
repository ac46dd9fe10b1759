"""Etcd backups of one cluster, the whole story: observe, decide, act, record.

Called for every nudge by the runtime, under the claim on (cluster, etcd-backup).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shared.etcd_backup.act import Place, act
from shared.etcd_backup.decide import decide
from shared.etcd_backup.drill import drill, is_drill_due
from shared.etcd_backup.observe import observe, observe_etcd
from shared.etcd_backup.policy import EtcdBackupPolicy
from shared.model.plan import Outcome
from shared.record import record

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.etcd_backup.observation import Observation
    from shared.runtime.claim import Claim
    from shared.settings import Cluster


def reconcile(cluster: Cluster, clients: Clients, claim: Claim, now: datetime) -> list[Outcome]:
    """One pass; RunFailedError at the end when an action failed, so that the platform delivers again."""
    with open_place(cluster, clients, claim) as place:
        note_first_look(claim, now)
        observation = observe(cluster, place.etcd, place.store, state=claim.state, now=now)
        plan = decide(observation, place.policy, now)
        outcomes = act(plan, place)
        if observation.backups and is_drill_due(place.policy.drill_schedule, claim.state, now):
            outcomes += drill(place, observation.backups[-1], now)
    record(clients, plan, outcomes)
    return outcomes


def look(cluster: Cluster, clients: Clients, state: dict[str, Any], now: datetime) -> Observation:
    """Observe without acting; a container that no pass has made yet holds no backup."""
    from shared.clients.etcd import EtcdClient
    from shared.model.backup import Listing

    assert cluster.etcd is not None
    assert cluster.etcd_backup is not None
    store = clients.blobs(cluster.etcd_backup.container)
    with EtcdClient(cluster.etcd, clients.environ) as etcd:
        if not store.exists():
            nothing = Listing(records=(), orphans=())
            return observe_etcd(cluster, etcd, listing=nothing, state=state, now=now)
        return observe(cluster, etcd, store, state=state, now=now)


@contextmanager
def open_place(cluster: Cluster, clients: Clients, claim: Claim) -> Iterator[Place]:
    """The cluster's etcd and its container, made ready; SettingsError when the cluster has no etcd."""
    from shared.clients.etcd import EtcdClient
    from shared.errors import SettingsError

    if cluster.etcd is None:
        raise SettingsError(f"cluster '{cluster.name}' has no 'etcd' in the configuration; add its endpoints")
    policy = cluster.etcd_backup or EtcdBackupPolicy()
    store = clients.blobs(policy.container)
    store.ensure()
    with EtcdClient(cluster.etcd, clients.environ) as etcd:
        yield Place(
            cluster=cluster.name,
            policy=policy,
            store=store,
            etcd=etcd,
            connection=cluster.etcd,
            claim=claim,
            environ=clients.environ,
            now=clients.now,
        )


def note_first_look(claim: Claim, now: datetime) -> None:
    """Remember since when the cluster is looked after: the objective's alarm gives it that long."""
    if "firstSeenAt" not in claim.state:
        claim.save(claim.state | {"firstSeenAt": f"{now:%Y-%m-%dT%H:%M:%SZ}"})
