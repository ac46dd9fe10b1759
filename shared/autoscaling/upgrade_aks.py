"""A rolling upgrade of an AKS pool: AKS does it, by the pool's own upgrade settings; it is asked and watched.

Machines of an agent pool are not replaced from outside: AKS would put back the version it knows. It is asked
once, over the pool's version; whether the request arrived is read from the pool. A node that stays NotReady
ends it: AKS is told to stop, and what is done stays. Called by `upgrade`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from shared.autoscaling.facts import Pool
from shared.autoscaling.growth import Declined
from shared.autoscaling.ledger import Roll
from shared.autoscaling.observe import is_node_of
from shared.autoscaling.pools.agent_pool import AgentPool
from shared.autoscaling.pools.driver import Fresh
from shared.autoscaling.replacing import course_of, done_of, wait_for
from shared.autoscaling.work import Work
from shared.errors import ApiError, ThrottledError, UnavailableError
from shared.model.node import Node

if TYPE_CHECKING:
    from shared.operations.catalogue import UpgradeParameters

PATIENCE = timedelta(hours=2)
"""Without a node that came back; AKS itself waits half an hour for each drain by default."""
ASK_AGAIN = timedelta(minutes=5)
RUNNING = frozenset(
    {"upgrading", "upgradingnodeimageversion", "updating", "scaling", "aborting", "canceling"}
)

DRIVER = AgentPool()


def choose_target(work: Work, pool: Pool, parameters: UpgradeParameters) -> str:
    """The version wanted, or the newest node image; Declined for what AKS would not do."""
    if parameters.image:
        raise Declined("an AKS pool takes version=..., or neither for the newest node image")
    if parameters.surge != 1 or parameters.timeout:
        raise Declined("surge and drain time-out of an AKS pool are its own upgradeSettings; set them there")
    offered = DRIVER.upgrades(work.arm, pool.id)
    if not parameters.version:
        return offered.latest_node_image_version
    versions = [one.kubernetes_version for one in offered.upgrades]
    if parameters.version not in (offered.kubernetes_version, *versions):
        choice = ", ".join(versions) or "none; upgrade the control plane first"
        raise Declined(
            f"AKS does not offer {parameters.version} for it: it has {offered.kubernetes_version}, "
            f"there are: {choice}"
        )
    return parameters.version


def upgrade_by_aks(work: Work, pool: Pool, nodes: Sequence[Node], roll: Roll) -> str:
    """One look: asks AKS, waits, or says that it is done. Declined when AKS gives up, or has to."""
    fresh = DRIVER.read(work.arm, pool.id)
    ours = [node for node in nodes if is_node_of(pool, node)]
    _note_progress(work, roll, ours)
    if _found(fresh, roll) != roll.target or fresh.state != "Succeeded":
        _go_on(work, pool, roll, fresh, ours)
    if late := [node.name for node in ours if not node.is_ready]:
        _stop_for_sick(work, pool, roll, ours, is_running=False)
        wait_for(work, roll, f"AKS is through; {late[0]} is not Ready yet", PATIENCE)
    return f"{pool.name}: AKS has upgraded it to {roll.target}"


def _go_on(work: Work, pool: Pool, roll: Roll, fresh: Fresh, nodes: Sequence[Node]) -> NoReturn:
    if fresh.state.lower() in RUNNING:
        _stop_for_sick(work, pool, roll, nodes, is_running=True)
        back = done_of(roll) if roll.sent_at else "it is busy"
        wait_for(work, roll, f"AKS is at it ({fresh.state}), {back}", PATIENCE)
    is_taken = roll.sent_at is not None and fresh.etag != roll.etag
    if is_taken and fresh.state in ("Failed", "Canceled"):
        raise Declined(f"AKS gave up: {_why(fresh)}")
    if not is_taken or (roll.sent_at and work.now - roll.sent_at > ASK_AGAIN):
        _ask(work, roll, fresh)
    wait_for(work, roll, f"AKS was asked for {roll.target}", PATIENCE)


def _found(fresh: Fresh, roll: Roll) -> str:
    properties = fresh.document.get("properties") or {}
    return str(properties.get("currentOrchestratorVersion" if roll.version else "nodeImageVersion") or "")


def _ask(work: Work, roll: Roll, fresh: Fresh) -> None:
    """Announced first; a refusal for good is Declined, everything else is found out by the next look."""
    roll.sent_at, roll.etag = work.now, fresh.etag
    work.pools_changed()
    work.save()
    try:
        if roll.version:
            DRIVER.upgrade(work.arm, fresh, roll.version)
        else:
            DRIVER.upgrade_image(work.arm, fresh.id)
    except (ThrottledError, UnavailableError) as error:
        wait_for(work, roll, f"AKS does not answer: {error}", PATIENCE)
    except ApiError as error:
        if error.status in (409, 412):
            wait_for(work, roll, f"AKS is busy: {error}", PATIENCE)
        raise Declined(f"AKS refuses: {error}") from error


def _note_progress(work: Work, roll: Roll, nodes: Sequence[Node]) -> None:
    """A node that became Ready after AKS was asked has been made anew."""
    since, before = roll.sent_at, roll.old
    new = sum(1 for one in nodes if since and one.is_ready and one.ready_since and one.ready_since > since)
    roll.of, roll.old = roll.size, max(0, roll.size - new)
    if roll.old != before:
        roll.moved_at = work.now


def _stop_for_sick(work: Work, pool: Pool, roll: Roll, nodes: Sequence[Node], *, is_running: bool) -> None:
    """A node is away while it is made anew; one that stays NotReady for longer ends the upgrade."""
    boot = course_of(work, roll, pool).boot
    for node in nodes:
        since = None if node.is_ready else node.ready_since or node.created_at
        if since is None or work.now - since < boot:
            continue
        line = f"node {node.name} is NotReady since {since:%H:%M:%S} UTC"
        if not is_running:
            raise Declined(f"AKS is through, but {line}")
        try:
            DRIVER.abort(work.arm, pool.id)
        except ApiError as error:
            raise Declined(f"{line}; AKS goes on, it could not be told to stop: {error}") from error
        raise Declined(f"{line}; AKS was told to stop, {done_of(roll)}")


def _why(fresh: Fresh) -> str:
    status = (fresh.document.get("properties") or {}).get("status") or {}
    error = status.get("provisioningError") or {}
    return f"{error.get('code', '')} {error.get('message', '')}".strip() or f"the pool is {fresh.state}"
