"""One-off operations on node pools: `scale` and `replace-node`.

Called by the dispatcher under the claim on (cluster, autoscaling); each may be delivered twice, or resumed
after a crash. `scale` writes a wish into the state and lets an ordinary pass fulfil it, so that all checks of
an ordinary pass hold. `replace-node` adds a node first, waits for it, then drains and deletes the old one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.azure import NOW
from shared.autoscaling.facts import Pool
from shared.autoscaling.growth import Declined, Wish, begin_growth, follow_growths
from shared.autoscaling.observation import Observation
from shared.autoscaling.observe import is_node_of, machine_of, observe, place_of
from shared.autoscaling.reconcile import follow_up, look_and_act, pools_of
from shared.autoscaling.removal import begin_removal, follow_removals, new_removal
from shared.autoscaling.work import Work, begin_work
from shared.errors import NotYetError
from shared.model.duration import parse_duration
from shared.model.node import Node
from shared.model.plan import Action, ActionKind, Outcome, Status

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.operations.catalogue import NodeParameters, ScaleParameters
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

MANUAL, REPLACING = "manual", "replacements"
LOOK_SECONDS = 20.0
PATIENCE = timedelta(minutes=45)
"""A replacement that takes longer has failed; what it began goes on by itself."""


# scale


def scale(
    cluster: Cluster, parameters: ScaleParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """Wish for a size, or end the wish, and see to it at once."""
    work = begin_work(place_of(cluster, clients, now), claim)
    try:
        pool = _pool_named(parameters.pool, work, observe(work.place, work.state, NOW))
        _check(pool, parameters.count)
    except Declined as declined:
        return [_outcome(ActionKind.SCALE_UP, parameters.pool, str(declined), failed=True)]
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
        message = f"{pool.name} follows demand again; it has {pool.capacity} nodes"
    else:
        limit = f" for {parameters.expires}" if parameters.expires else ""
        message = f"{pool.name} shall have {parameters.count} nodes{limit}; it has {pool.capacity}"
    kind = (
        ActionKind.SCALE_DOWN
        if (parameters.count or 0) < pool.capacity and parameters.count is not None
        else ActionKind.SCALE_UP
    )
    done = _outcome(kind, pool.name, message)
    return msgspec.structs.replace(done, data={"event": "SizeRequested", "pool": pool.id})


# replace-node


def replace_node(
    cluster: Cluster, parameters: NodeParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """One step of a replacement; NotYetError until the new node is there and the old one gone."""
    work = begin_work(place_of(cluster, clients, now), claim)
    follow_growths(work)
    follow_removals(work)
    known = (work.state.get(REPLACING) or {}).get(claim.run_id)
    try:
        if known is None:
            _begin(work, claim, parameters.node)
        elif known["phase"] == "adding":
            _when_added(work, claim, known)
        else:
            return _when_gone(work, claim, known)
    except Declined as declined:
        _forget(work, claim)
        return [_outcome(ActionKind.REPLACE_NODE, parameters.node, str(declined), failed=True)]
    raise NotYetError(f"replacing {parameters.node}: {_note_of(work, claim)}", seconds=LOOK_SECONDS)


def _begin(work: Work, claim: Claim, name: str) -> None:
    observation = observe(work.place, work.state, NOW)
    node = _node_named(name, observation)
    pool = next((p for p in pools_of(observation, work.place.policy).values() if is_node_of(p, node)), None)
    if pool is None:
        raise Declined(f"node '{name}' belongs to no pool that is autoscaled here")
    ready = _ready_nodes(observation, pool)
    known: dict[str, Any] = {"node": name, "uid": node.uid, "pool": pool.id}
    known |= {"at": f"{work.now:%Y-%m-%dT%H:%M:%SZ}"}
    known |= {"machine": machine_of(node.provider_id), "wanted": len(ready) + 1}
    if pool.capacity >= pool.max or pool.hands_off:
        # There is no room for one more: the old one goes first, and demand brings the new one.
        _note(work, claim, known | {"phase": "removing"})
        _remove(work, pool, node)
        return
    _note(work, claim, known | {"phase": "adding"})
    action = Action(
        kind=ActionKind.SCALE_UP,
        target=pool.name,
        reason="Requested",
        message=f"one more node in {pool.name}, to replace {name}",
        parameters={"pool": pool.id, "from": pool.capacity, "to": pool.capacity + 1},
    )
    wish = Wish(action=action, pool=pool, was=pool.capacity, to=pool.capacity + 1, seen=len(ready))
    begun = begin_growth(work, wish)
    if begun.status is Status.FAILED:
        raise Declined(f"{name} is not replaced: {begun.message}")


def _when_added(work: Work, claim: Claim, known: dict[str, Any]) -> None:
    """Drain the old node as soon as there is one more that is Ready."""
    observation = observe(work.place, work.state, NOW)
    pool = pools_of(observation, work.place.policy).get(known["pool"])
    if pool is None:
        raise Declined(f"the pool of {known['node']} is gone")
    node = next((n for n in observation.kubernetes.nodes if n.uid == known["uid"]), None)
    if node is None:
        _note(work, claim, known | {"phase": "removing"})
        return
    late = work.now - msgspec.convert(known["at"], datetime) > PATIENCE
    if len(_ready_nodes(observation, pool)) < known["wanted"] and not late:
        return
    if late:
        raise Declined(f"{known['node']} is not replaced: no new node came in {PATIENCE}")
    _note(work, claim, known | {"phase": "removing"})
    _remove(work, pool, node)


def _remove(work: Work, pool: Pool, node: Node) -> None:
    action = Action(
        kind=ActionKind.SCALE_DOWN,
        target=pool.name,
        reason="Requested",
        message=f"{node.name} is being replaced",
        parameters={"pool": pool.id, "nodes": [node.name]},
    )
    removal = new_removal(
        work,
        pool,
        machine_of(node.provider_id),
        "Requested",
        node=node.name,
        uid=node.uid,
        is_lost=not node.is_ready,
    )
    begin_removal(work, action, pool, [removal])
    follow_removals(work)


def _when_gone(work: Work, claim: Claim, known: dict[str, Any]) -> list[Outcome]:
    name = known["node"]
    if name in work.ledger.draining:
        removal = work.ledger.draining[name]
        raise NotYetError(f"{name}: {removal.message or removal.phase}", seconds=LOOK_SECONDS)
    _forget(work, claim)
    node = work.kube.find(f"/api/v1/nodes/{name}")
    if node is not None and node["metadata"].get("uid") == known["uid"]:
        text = f"{name} is still there: its removal was given up; the journal says why"
        return [_outcome(ActionKind.REPLACE_NODE, name, text, failed=True)]
    return [_outcome(ActionKind.REPLACE_NODE, name, f"{name} is replaced")]


# Parts


def _note(work: Work, claim: Claim, known: dict[str, Any]) -> None:
    work.state[REPLACING] = {**(work.state.get(REPLACING) or {}), claim.run_id: known}
    work.save()


def _forget(work: Work, claim: Claim) -> None:
    left = {run: known for run, known in (work.state.get(REPLACING) or {}).items() if run != claim.run_id}
    work.state[REPLACING] = left
    work.save()


def _note_of(work: Work, claim: Claim) -> str:
    return str((work.state.get(REPLACING) or {}).get(claim.run_id, {}).get("phase", ""))


def _ready_nodes(observation: Observation, pool: Pool) -> list[Node]:
    return [n for n in observation.kubernetes.nodes if n.is_ready and not n.is_going and is_node_of(pool, n)]


def _pool_named(name: str, work: Work, observation: Observation) -> Pool:
    pools = pools_of(observation, work.place.policy)
    found = next((pool for pool in pools.values() if pool.name.lower() == name.lower()), None)
    if found is None:
        names = ", ".join(sorted(pool.name for pool in pools.values())) or "none"
        raise Declined(f"cluster '{observation.cluster}' has no autoscaled pool '{name}'; there are: {names}")
    return found


def _node_named(name: str, observation: Observation) -> Node:
    found = next((node for node in observation.kubernetes.nodes if node.name == name), None)
    if found is None:
        raise Declined(f"there is no node '{name}' in the cluster; see: kubectl get nodes")
    return found


def _outcome(kind: ActionKind, target: str, message: str, *, failed: bool = False) -> Outcome:
    action = Action(kind=kind, target=target, reason="Requested", message=f"{kind} of {target}, as requested")
    data = {"final": True} if failed else {}
    status = Status.FAILED if failed else Status.SUCCEEDED
    return Outcome(action=action, status=status, message=message, data=data)
