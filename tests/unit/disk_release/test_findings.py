"""Storage findings: why a claim is Pending, what cannot work, what is open to all, what nobody claims."""

from __future__ import annotations

import pytest
from disk_builders import NOW, POLICY, Scene, ago, disk

from shared.disk_release import findings
from shared.disk_release.decide import decide
from shared.model.disk import (
    CREATED_FOR_VOLUME,
    DISK_DRIVER,
    FILE_DRIVER,
    Claim,
    CsiNode,
    Disk,
    Event,
    Pod,
    StorageClass,
    Volume,
    key,
)

PREMIUM = StorageClass(name="premium", provisioner=DISK_DRIVER, parameters={"skuName": "Premium_LRS"})
LAZY = StorageClass(name="lazy", provisioner=DISK_DRIVER, waits_for_consumer=True)


def pending(scene: Scene, storage_class: str | None = "premium", *messages: str) -> tuple[str, str]:
    claim = Claim(namespace="data", name="new", phase="Pending", storage_class=storage_class)
    scene.claims["new"] = claim
    scene.classes.setdefault("premium", PREMIUM)
    scene.classes.setdefault("lazy", LAZY)
    for number, message in enumerate(messages):
        scene.events.append(
            Event(
                kind="PersistentVolumeClaim",
                namespace="data",
                name="new",
                reason="ProvisioningFailed",
                message=message,
                at=ago(number),
            )
        )
    return findings.why_pending(claim, scene.build())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('code: "QuotaExceeded", Operation could not be completed', "QuotaExceeded"),
        ("exceeding approved Total Regional Disks quota", "QuotaExceeded"),
        ("StatusCode=403 AuthorizationFailed: does not have authorization", "RoleMissing"),
        ("ZonalAllocationFailed: we do not have sufficient capacity", "ZoneFull"),
        ("SkuNotAvailable: the requested size", "SkuNotAvailable"),
        ("InvalidParameter: skuname", "BadParameter"),
        ("waiting for first consumer to be created before binding", "WaitsForConsumer"),
        ("something else went wrong", "ProvisioningFailed"),
    ],
)
def test_a_pending_claim_has_its_cause_in_words(message: str, reason: str) -> None:
    assert pending(Scene(), "premium", message)[0] == reason


def test_the_newest_event_decides() -> None:
    assert pending(Scene(), "premium", "QuotaExceeded", "AuthorizationFailed")[0] == "QuotaExceeded"


def test_a_claim_whose_class_is_missing() -> None:
    reason, message = pending(Scene(), "gold")

    assert reason == "ClassMissing"
    assert "'gold'" in message and "premium" in message


def test_a_claim_without_class_where_none_is_the_default() -> None:
    assert pending(Scene(), None)[0] == "NoDefaultClass"
    assert pending(Scene(), "")[0] == "NoVolume"


def test_a_claim_that_waits_for_its_first_pod() -> None:
    assert pending(Scene(), "lazy")[0] == "WaitsForConsumer"


def test_a_claim_whose_pod_cannot_be_scheduled() -> None:
    scene = Scene()
    scene.pods["w"] = Pod(
        namespace="data", name="w", phase="Pending", claims=("new",), unschedulable="0/4 nodes are available"
    )

    reason, message = pending(scene, "lazy")

    assert reason == "PodUnschedulable"
    assert "0/4 nodes" in message


def test_a_claim_of_a_class_that_cannot_work_says_so() -> None:
    scene = Scene()
    scene.classes["nfs"] = StorageClass(name="nfs", provisioner="nfs.csi.k8s.io")

    assert pending(scene, "nfs")[0] == "DriverMissing"


@pytest.mark.parametrize(
    ("storage_class", "reason"),
    [
        (StorageClass(name="x", provisioner="other.csi"), "DriverMissing"),
        (StorageClass(name="x", provisioner=DISK_DRIVER, zones=("northeurope-1",)), "ZoneMissing"),
        (StorageClass(name="x", provisioner=DISK_DRIVER, parameters={"skuName": "Gold_LRS"}), "SkuUnknown"),
        (
            StorageClass(
                name="x",
                provisioner=DISK_DRIVER,
                parameters={"skuName": "UltraSSD_LRS", "cachingMode": "ReadOnly"},
            ),
            "CachingNotAllowed",
        ),
        (StorageClass(name="x", provisioner="kubernetes.io/azure-disk"), None),
        (StorageClass(name="x", provisioner="kubernetes.io/no-provisioner"), None),
        (StorageClass(name="x", provisioner=DISK_DRIVER, zones=("westeurope-1", "westeurope-2")), None),
        (StorageClass(name="x", provisioner=DISK_DRIVER, parameters={"skuname": "premium_lrs"}), None),
    ],
)
def test_a_class_that_cannot_work_here(storage_class: StorageClass, reason: str | None) -> None:
    problem = findings.class_problem(storage_class, Scene().build())

    assert (problem[0] if problem else None) == reason


def test_a_sku_of_zones_where_no_node_stands_in_one() -> None:
    scene = Scene()
    for name in "abcd":
        scene.node(name, labels={"topology.kubernetes.io/zone": "0"})
    storage_class = StorageClass(name="x", provisioner=DISK_DRIVER, parameters={"skuName": "PremiumV2_LRS"})

    problem = findings.class_problem(storage_class, scene.build())

    assert problem is not None and problem[0] == "SkuNeedsZone"


def kept(scene: Scene) -> list[str]:
    return [left.subject for left in findings.kept_pods(scene.build(), POLICY, NOW)]


def test_a_pod_that_a_dead_node_keeps_though_its_disk_is_not_there() -> None:
    scene = (
        Scene().silent("a").detach("d1", "a").no_attachment().change("pods", "db-0", deleting_since=ago(60))
    )
    left = next(left for left in decide(scene.build(), POLICY, NOW).left_alone if left.reason == "PodKept")

    assert left.subject == "pod data/db-0"
    assert "node a" in left.message and "kubectl delete pod db-0 -n data --force" in left.message


def test_a_pod_is_not_kept_by_a_node_that_is_alive_or_out_of_service_nor_while_its_disk_is_there() -> None:
    def going() -> Scene:
        scene = Scene().silent("a").detach("d1", "a").no_attachment()
        return scene.change("pods", "db-0", deleting_since=ago(60))

    assert kept(going()) == ["pod data/db-0"]
    assert kept(going().silent("a", 30)) == []  # grace is not over
    assert kept(going().taint("a", ours=False)) == []
    assert kept(going().attach("d1", "a")) == []  # the verdict on the disk speaks
    assert kept(going().change("pods", "db-0", deleting_since=None)) == []
    assert kept(going().change("volumes", "d1", driver=FILE_DRIVER)) == []


def test_a_released_volume_is_reported_and_never_freed() -> None:
    scene = Scene().change("volumes", "d1", phase="Released")
    del scene.claims["d1"]
    plan = decide(scene.build(), POLICY, NOW)

    assert plan.actions == ()
    assert "VolumeReleased" in {left.reason for left in plan.left_alone}


@pytest.mark.parametrize(
    ("options", "is_open"),
    [
        ((), True),
        (("dir_mode=0777", "file_mode=0777"), True),
        (("dir_mode=0750", "file_mode=0640"), False),
        (("dir_mode=0750",), True),
        (("dir_mode=0755", "file_mode=0666"), True),
        (("dir_mode=0755", "file_mode=0644", "uid=999"), False),
    ],
)
def test_shares_that_everybody_may_write(options: tuple[str, ...], is_open: bool) -> None:
    assert findings.is_world_writable(options) is is_open


def test_an_open_share_is_reported_with_the_options_to_set() -> None:
    scene = Scene()
    scene.classes["files"] = StorageClass(name="files", provisioner=FILE_DRIVER)
    scene.classes["nfs"] = StorageClass(name="nfs", provisioner=FILE_DRIVER, parameters={"protocol": "nfs"})
    scene.volumes["share"] = Volume(name="pv-share", driver=FILE_DRIVER, handle="rg#account#share#")
    scene.csi_nodes["a"] = CsiNode(name="a", drivers={DISK_DRIVER: 8, FILE_DRIVER: None})

    found = list(findings.open_shares(scene.build()))

    assert [left.subject for left in found] == ["storageclass files", "pv pv-share"]
    assert "dir_mode=0750" in found[0].message and "uid=" in found[0].message


def test_two_attachments_of_a_node_under_one_lun() -> None:
    scene = Scene().volume("d2", node="a", pod="db-1")
    scene.change("attachments", "d1", lun=3).change("attachments", "d2", lun=3)

    found = list(findings.shared_luns(scene.build()))

    assert [(left.subject, left.reason) for left in found] == [("node a", "LunShared")]
    assert "va-d1, va-d2" in found[0].message


def test_a_node_whose_slots_are_full_and_what_takes_them_for_nothing() -> None:
    scene = Scene().attach("stray", "a")
    scene.csi_nodes["a"] = CsiNode(name="a", drivers={DISK_DRIVER: 2})

    found = list(findings.full_nodes(scene.build()))

    assert found[0].reason == "SlotsFull"
    assert "stray" in found[0].message and "d1" not in found[0].message.replace("d1,", "")


def test_a_disk_nobody_claims_and_what_it_costs() -> None:
    scene = Scene()
    scene.census[key(disk("old"))] = Disk(
        id=disk("old"),
        tags={CREATED_FOR_VOLUME: "pv-of-yore"},
        sku="Premium_LRS",
        size_gib=100,
        created_at=ago(86400 * 40),
    )

    found = list(findings.unclaimed_disks(scene.build(), POLICY, NOW))

    assert [left.subject for left in found] == ["disk old"]
    assert "13.00 a month" in found[0].message and "40 days" in found[0].message


def test_disks_that_are_claimed_attached_or_not_of_kubernetes_are_no_findings() -> None:
    scene = Scene()
    scene.census[key(disk("plain"))] = Disk(id=disk("plain"))
    scene.census[key(disk("d1"))] = Disk(id=disk("d1"), tags={CREATED_FOR_VOLUME: "pv-d1"})

    assert list(findings.unclaimed_disks(scene.build(), POLICY, NOW)) == []
