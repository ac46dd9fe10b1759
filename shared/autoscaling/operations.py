"""One-off operations on node pools: `scale` and `replace-node`.

Called by the dispatcher under the claim on (cluster, autoscaling); each may be delivered twice, or resumed
after a crash. `scale` writes a wish into the state and lets an ordinary pass fulfil it, so that all checks of
an ordinary pass hold. `replace-node` is a roll (`rolling`, `replacing`) of one machine; `upgrade` is one of
all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.facts import Pool
from shared.autoscaling.growth import Declined
from shared.autoscaling.ledger import Roll
from shared.autoscaling.observe import is_node_of, machine_of, place_of
from shared.autoscaling.reconcile import follow_up, look_and_act
from shared.autoscaling.replacing import (
    begin_roll,
    carry_out,
    go_on,
    look_at,
    look_at_pools,
    pool_named,
    requested,
)
from shared.autoscaling.work import Work, begin_work
from shared.model.duration import parse_duration
from shared.model.node import Node
from shared.model.plan import ActionKind, Outcome
from shared.model.wording import counted

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.operations.catalogue import NodeParameters, ScaleParameters
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

MANUAL = "manual"
"""In the state: sizes that were asked for."""


# scale


def scale(
    cluster: Cluster, parameters: ScaleParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Wish for a size, or end the wish, and see to it at once."""
    work = begin_work(place_of(cluster, clients, now), claim)
    try:
        pool = pool_named(parameters.pool, look_at_pools(work)[0], cluster.name)
        _check(pool, parameters.count)
    except Declined as declined:
        return [requested(ActionKind.SCALE_UP, parameters.pool, str(declined), failed=True)]
    manual: dict[str, Any] = {n: w for n, w in (work.state.get(MANUAL) or {}).items() if n != pool.name}
    if parameters.count is not None:
        manual[pool.name] = {"size": parameters.count, **_until(parameters, now)}
    work.state[MANUAL] = manual
    work.save()
    _, outcomes = look_and_act(work, frozenset())
    follow_up(work, clients)
    return [_wished(pool, parameters), *outcomes]


def _check(pool: Pool, count: int | None) -> None:
    if pool.hands_off:
        raise Declined(f"{pool.name}: {pool.hands_off}")
    if count is not None and not pool.min <= count <= pool.max:
        raise Declined(
            f"{pool.name} may have {pool.min} to {pool.max} nodes, not {count}; change its limits first"
        )


def _until(parameters: ScaleParameters, now: datetime) -> dict[str, str]:
    if not parameters.expires:
        return {}
    return {"until": f"{now + parse_duration(parameters.expires):%Y-%m-%dT%H:%M:%SZ}"}


def _wished(pool: Pool, parameters: ScaleParameters) -> Outcome:
    if parameters.count is None:
        message = f"{pool.name} follows demand again; it has {counted(pool.capacity, 'node')}"
    else:
        limit = f" for {parameters.expires}" if parameters.expires else ""
        message = f"{pool.name} shall have {counted(parameters.count, 'node')}{limit}; it has {pool.capacity}"
    kind = (
        ActionKind.SCALE_DOWN
        if (parameters.count or 0) < pool.capacity and parameters.count is not None
        else ActionKind.SCALE_UP
    )
    done = requested(kind, pool.name, message)
    return msgspec.structs.replace(done, data={"event": "SizeRequested", "pool": pool.id})


# replace-node


def replace_node(
    cluster: Cluster, parameters: NodeParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """One step of a replacement; NotYetError until the new node is there and the old one gone."""
    work = begin_work(place_of(cluster, clients, now), claim)

    def proceed() -> str:
        pools, nodes = look_at_pools(work)
        roll = work.ledger.rolls.get(claim.run_id) or _begin(work, claim, parameters.node, pools, nodes)
        if roll.pool not in pools:
            raise Declined("its pool is gone")
        go_on(work, claim.run_id, look_at(work, pools[roll.pool], nodes, lambda one: one.id == roll.machine))
        return f"{parameters.node} is replaced"

    return carry_out(work, clients, ActionKind.REPLACE_NODE, parameters.node, proceed)


def _begin(work: Work, claim: Claim, name: str, pools: Mapping[str, Pool], nodes: Sequence[Node]) -> Roll:
    node = next((node for node in nodes if node.name == name), None)
    if node is None:
        raise Declined(f"there is no node '{name}' in the cluster; see: kubectl get nodes")
    pool = next((pool for pool in pools.values() if is_node_of(pool, node)), None)
    if pool is None:
        raise Declined("it belongs to no pool that is autoscaled here")
    if pool.hands_off:
        raise Declined(pool.hands_off)
    machine = machine_of(node.provider_id)
    sight = look_at(work, pool, nodes, lambda one: one.id == machine)
    if not any(one.is_old for one in sight.members):
        raise Declined("Azure has no such machine any more; without a cloud provider: kubectl delete node")
    return begin_roll(work, claim.run_id, pool, node=name, machine=machine)
