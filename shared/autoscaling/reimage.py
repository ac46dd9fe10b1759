"""Making a drained machine of a uniform scale set anew in place, instead of deleting it.

Three stages, each announced in the ledger before it is asked for, so that a crash is taken up where it was:

    model   the instance is brought to the set's latest model, if it is not of it yet
    image   it is reimaged: the OS disk is made anew, data disks stay (`reimageall`, which would not spare
            them, is never asked for)
    boot    its kubelet has renewed its lease since, and the node is Ready

Nothing is asked while a volume's disk is attached: it would be on the machine while that is made anew. Called
by `removal`, which drains before and uncordons after.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from shared.autoscaling.growth import BUSY_WAIT, Declined
from shared.autoscaling.ledger import Phase, Removal
from shared.autoscaling.pools.scale_set import UniformScaleSet
from shared.autoscaling.work import Work, poll_due
from shared.clients.arm import Progress
from shared.errors import ConflictError, NotFoundError
from shared.model.duration import format_duration, parse_duration
from shared.nodes.cordon import path_of

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
MODEL, IMAGE, BOOT = "model", "image", "boot"
PATIENCE = timedelta(minutes=30)
"""An operation of Azure that takes longer has failed."""

DRIVER = UniformScaleSet()


def make_anew(work: Work, removal: Removal) -> bool:
    """One step for a machine that is drained; whether it is through. Declined when it cannot be."""
    if removal.phase is Phase.DRAINING:
        _begin(work, removal)
        return False
    if removal.stage == BOOT:
        return _has_booted(work, removal)
    began = removal.deleting_since or removal.at
    if (wait := poll_due(began, removal.asked_at, work.now)) > timedelta(0):
        work.look_again(wait)
        return False
    removal.asked_at = work.now
    progress = [_progress(work, url) for url in removal.status_urls]
    if failed := [one for one in progress if one.state in ("Failed", "Canceled")]:
        raise Declined(f"Azure could not make it anew: {failed[0].code} {failed[0].message}".strip())
    if any(one.state == "InProgress" for one in progress):
        if work.now - began > PATIENCE:
            raise Declined(f"Azure has not made it anew in {format_duration(PATIENCE)}")
        work.look_again(BUSY_WAIT)
        return False
    if not removal.status_urls:
        _ask(work, removal, removal.stage)  # whether it arrived is not known; twice is fine
    elif removal.stage == MODEL:
        _ask(work, removal, IMAGE)
    else:
        removal.stage, removal.deleting_since, removal.status_urls = BOOT, work.now, []
        work.look_again(BUSY_WAIT)
        work.save()
    return False


def _begin(work: Work, removal: Removal) -> None:
    properties: dict[str, Any] = work.arm.get(removal.machine).document.get("properties") or {}
    disks = (properties.get("storageProfile") or {}).get("dataDisks") or ()
    if attached := [one for one in disks if one.get("createOption") == "Attach"]:
        removal.message = f"disk {attached[0].get('name', '')} is still attached to it"
        if work.now >= removal.deadline:
            raise Declined(removal.message)
        work.look_again(BUSY_WAIT)
        return
    _ask(work, removal, IMAGE if properties.get("latestModelApplied") else MODEL)


def _ask(work: Work, removal: Removal, stage: str) -> None:
    """Announced before it leaves; a set that is busy is asked again by the next look."""
    removal.phase, removal.stage, removal.message = Phase.REIMAGING, stage, ""
    removal.deleting_since, removal.asked_at, removal.status_urls = work.now, None, []
    work.save()
    instance = removal.machine.rpartition("/")[2]
    try:
        begun = DRIVER.make_anew(work.arm, removal.pool, instance, is_model=stage == MODEL)
    except ConflictError as error:
        removal.message = str(error)[:300]
        work.look_again(BUSY_WAIT)
        return
    removal.status_urls = [begun.status_url] if begun.status_url else []
    work.save()
    work.look_again(poll_due(work.now, None, work.now))


def _progress(work: Work, url: str) -> Progress:
    try:
        return work.arm.poll(url)
    except NotFoundError:
        return Progress(state="Succeeded", message="the operation is forgotten")


def _has_booted(work: Work, removal: Removal) -> bool:
    """The kubelet speaks again, and says that its node is well."""
    since = removal.deleting_since or removal.at
    lease = (work.kube.find(f"{LEASES}/{removal.node}") or {}).get("spec") or {}
    renewed = msgspec.convert(lease["renewTime"], datetime) if lease.get("renewTime") else None
    node = work.kube.find(path_of(removal.node)) or {}
    conditions = (node.get("status") or {}).get("conditions") or ()
    is_ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    if renewed is not None and renewed > since and is_ready:
        return True
    patience = parse_duration(work.place.policy.scale_up.provision_timeout)
    if work.now - since > patience:
        raise Declined(f"it was made anew, and is not Ready after {format_duration(patience)}")
    work.look_again(BUSY_WAIT)
    return False
