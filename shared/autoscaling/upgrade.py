"""Operation `rolling-upgrade`: every machine of a pool of its latest model, one after the other.

What a pool is told, and what is done then:

    scale sets          the new image goes into the set's model (without one: the model as it stands); then
                        machines of an earlier model are replaced (`rolling`, `replacing`)
    availability sets   new machines are made from the new image; those of another, or without an image those
                        made before the operation, are replaced
    AKS pools           AKS is asked for the version or the newest node image, and does it all itself, by the
                        pool's own upgrade settings; it is watched, and told to stop at a node that stays
                        NotReady

An etcd backup comes first where the cluster has backups. Whoever is delivered again after a crash finds each
step done or not done by looking; nothing is counted from memory. Called by the dispatcher under the claim on
(cluster, autoscaling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from shared.autoscaling.facts import Pool, PoolKind
from shared.autoscaling.growth import Declined
from shared.autoscaling.ledger import Roll
from shared.autoscaling.observe import is_node_of, place_of
from shared.autoscaling.pools.availability_set import AvailabilitySet
from shared.autoscaling.pools.driver import Fresh, is_image, read_image
from shared.autoscaling.pools.scale_set import UniformScaleSet
from shared.autoscaling.removal import KEEP
from shared.autoscaling.replacing import (
    Sight,
    begin_roll,
    carry_out,
    course_of,
    go_on,
    look_at,
    look_at_pools,
    pool_named,
    wait_for,
)
from shared.autoscaling.rolling import is_unwell, what_is_wrong
from shared.autoscaling.upgrade_aks import choose_target, upgrade_by_aks
from shared.autoscaling.work import Work, begin_work
from shared.errors import ApiError, ThrottledError, UnavailableError
from shared.model.node import HOSTNAME, Node, node_selector_terms
from shared.model.plan import ActionKind, Outcome
from shared.model.wording import counted
from shared.runtime.nudge import send
from shared.runtime.operation import OperationMessage, OperationState

if TYPE_CHECKING:
    from shared.bootstrap import Clients
    from shared.operations.catalogue import UpgradeParameters
    from shared.runtime.claim import Claim
    from shared.settings import Cluster

Document = dict[str, Any]

ASK_AGAIN = timedelta(minutes=5)
"""A backup of which nobody has heard after so long is asked for again; its id runs once."""
BACKUP_PATIENCE = timedelta(hours=2)


def rolling_upgrade(
    cluster: Cluster, parameters: UpgradeParameters, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """One step of an upgrade; NotYetError until every machine is of the latest model."""
    work = begin_work(place_of(cluster, clients, now), claim)

    def proceed() -> str:
        pools, nodes = look_at_pools(work)
        roll = work.ledger.rolls.get(claim.run_id)
        pool = pools.get(roll.pool) if roll else pool_named(parameters.pool, pools, cluster.name)
        if pool is None:
            raise Declined("the pool is gone")
        if roll is None:
            roll = _begin(work, pool, nodes, parameters)
        _back_up_first(work, cluster, roll, parameters, clients)
        if pool.kind is PoolKind.AGENT_POOL:
            return upgrade_by_aks(work, pool, nodes, roll)
        _set_model(work, pool, roll, parameters)
        go_on(work, claim.run_id, _look(work, pool, nodes, roll))
        how = "made anew" if roll.reimage else "replaced"
        return f"{pool.name}: {counted(roll.of, 'machine')} {how}, all {roll.size} are of the latest model"

    return carry_out(work, clients, ActionKind.ROLLING_UPGRADE, parameters.pool, proceed)


def _begin(work: Work, pool: Pool, nodes: Sequence[Node], parameters: UpgradeParameters) -> Roll:
    """Refuses what cannot end well before anything is touched."""
    image = _image_of(parameters, pool)
    if parameters.reimage and (pool.kind is not PoolKind.SCALE_SET or parameters.surge != 1):
        raise Declined("reimage is for uniform scale sets, one node at a time; leave it or surge out")
    known = {"surge": parameters.surge, "timeout": parameters.timeout or "", "reimage": parameters.reimage}
    known |= {"image": parameters.image} if image and pool.kind is PoolKind.AVAILABILITY_SET else {}
    if pool.kind is PoolKind.AGENT_POOL:
        known |= {"target": choose_target(work, pool, parameters), "version": parameters.version}
    roll = begin_roll(work, work.claim.run_id, pool, **known)
    sight = _look(work, pool, nodes, roll)
    course = course_of(work, roll, pool)
    if unwell := [one for one in sight.members if is_unwell(one, course, work.now)]:
        raise Declined(
            f"{what_is_wrong(unwell[0], course)}; replace or remove it first (operation replace-node)"
        )
    kept = [one for one in nodes if is_node_of(pool, one) and one.annotations.get(KEEP) == "true"]
    if kept and pool.kind is not PoolKind.AGENT_POOL:  # AKS does not ask for it
        raise Declined(f"node {kept[0].name} carries the annotation {KEEP}; remove it first")
    _guard_model(work, pool, parameters)
    if not parameters.discard_local_data:
        _guard_volumes(work, pool, nodes)
    work.save()
    return roll


def _look(work: Work, pool: Pool, nodes: Sequence[Node], roll: Roll) -> Sight:
    driver = work.driver_of(pool)
    if isinstance(driver, AvailabilitySet):
        old = driver.outdated(work.arm, pool.id, roll.at)
    elif isinstance(driver, UniformScaleSet):
        old = driver.outdated(work.arm, pool.id)
    else:
        old = frozenset()
    return look_at(work, pool, nodes, lambda one: one.instance in old)


def _image_of(parameters: UpgradeParameters, pool: Pool) -> Document | None:
    if parameters.version and pool.kind is not PoolKind.AGENT_POOL:
        raise Declined(
            "its Kubernetes version comes with its image or its custom data; give image=..., or change the "
            "model and give neither"
        )
    if not parameters.image:
        return None
    try:
        return read_image(parameters.image)
    except ValueError as error:
        raise Declined(str(error)) from error


# Guards


def _guard_model(work: Work, pool: Pool, parameters: UpgradeParameters) -> None:
    """Sets that Azure would upgrade by itself, and disks that go with their machine."""
    if pool.kind not in (PoolKind.SCALE_SET, PoolKind.FLEXIBLE_SCALE_SET):
        return
    properties = work.driver_of(pool).read(work.arm, pool.id).document.get("properties") or {}
    mode = str((properties.get("upgradePolicy") or {}).get("mode") or "Manual")
    if mode != "Manual":
        raise Declined(
            f"its upgradePolicy is {mode}: Azure would change machines by itself, undrained; set it to Manual"
        )
    profile = (properties.get("virtualMachineProfile") or {}).get("storageProfile") or {}
    if profile.get("dataDisks") and not parameters.reimage and not parameters.discard_local_data:
        raise Declined(
            "its model has data disks, which are deleted with their machine; reimage=true keeps them, or if "
            "nothing on them is needed: discardLocalData=true"
        )


def _guard_volumes(work: Work, pool: Pool, nodes: Sequence[Node]) -> None:
    """Volumes that live on a node of the pool and would be lost with it."""
    names = {node.labels.get(HOSTNAME, node.name) for node in nodes if is_node_of(pool, node)}
    pages = work.kube.pages("/api/v1/persistentvolumes")
    volumes = [volume for page in pages for volume in msgspec.json.decode(page).get("items") or ()]
    found = [volume for volume in volumes if _is_on(volume, names)]
    if found:
        name = found[0]["metadata"]["name"]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise Declined(
            f"PersistentVolume {name}{more} is on a disk of one of its nodes and would be lost; move it, or "
            "if it is not needed: discardLocalData=true"
        )


def _is_on(volume: Mapping[str, Any], names: set[str]) -> bool:
    spec = volume.get("spec") or {}
    terms = node_selector_terms((spec.get("nodeAffinity") or {}).get("required")) or ()
    return ("local" in spec or "hostPath" in spec) and any(
        term.matches({HOSTNAME: name}, name) for term in terms for name in names
    )


# First


def _back_up_first(
    work: Work, cluster: Cluster, roll: Roll, parameters: UpgradeParameters, clients: Clients
) -> None:
    """Where the cluster has backups: one now, by an operation of its own. Declined when it fails."""
    if cluster.etcd_backup is None or not parameters.backup or roll.is_backed_up:
        return
    identity = f"before-upgrade-{work.claim.run_id}"
    record = clients.operations.read(identity)
    if record is not None and record.state is OperationState.SUCCEEDED:
        roll.is_backed_up, roll.moved_at, roll.sent_at = True, work.now, None
        work.save()
        return
    if record is not None and record.is_over:
        raise Declined(
            f"the etcd backup before it failed: {record.message}; mend that, or backup=false to go without"
        )
    if record is None and (roll.sent_at is None or work.now - roll.sent_at > ASK_AGAIN):
        roll.sent_at = work.now
        work.save()
        wanted = OperationMessage(
            id=identity,
            operation="backup",
            cluster=cluster.name,
            parameters={"reason": f"before the rolling upgrade of {roll.name}"},
        )
        send(clients, "operations", wanted.encode())
    said = (record.progress or record.message or record.state.lower()) if record else "asked for"
    wait_for(work, roll, f"an etcd backup first: {said}", BACKUP_PATIENCE)


def _set_model(work: Work, pool: Pool, roll: Roll, parameters: UpgradeParameters) -> None:
    """Write the image into a scale set's model, unless it stands there, and wait until that is through."""
    driver, image = work.driver_of(pool), _image_of(parameters, pool)
    if image is None or not isinstance(driver, UniformScaleSet):
        return
    fresh = driver.read(work.arm, pool.id)
    if not _has_image(fresh, image):
        try:
            driver.set_image(work.arm, fresh, image)
        except (ThrottledError, UnavailableError) as error:
            wait_for(work, roll, f"its image is to be set: {error}")
        except ApiError as error:
            if error.status not in (409, 412):
                raise Declined(f"Azure refuses the image: {error}") from error
            wait_for(work, roll, f"its image is to be set; the set is busy: {error}")
        work.pools_changed()
        wait_for(work, roll, "its image is being set")
    if fresh.state in ("Updating", "Creating"):
        wait_for(work, roll, "its image is being set")


def _has_image(fresh: Fresh, image: Document) -> bool:
    profile = (fresh.document.get("properties") or {}).get("virtualMachineProfile") or {}
    return is_image((profile.get("storageProfile") or {}).get("imageReference"), image)
