"""`keeper` against the real parts: Azurite, etcd, and the runtime that works its messages off."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from keeper import Keeper, World

from sandbox.arm import LocalArm
from sandbox.azurite import Azurite
from sandbox.etcd import EtcdCluster
from sandbox.identity import ManagedIdentity
from shared.bootstrap import Clients
from shared.clients.blob import blob_store
from shared.errors import NotFoundError
from shared.operations import dispatch

pytestmark = [pytest.mark.etcd, pytest.mark.azurite]

WIDGET = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "blue", "namespace": "shop"}}
POD = (
    b"k8s\x00\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x18\x0a\x16\x0a\x05web-0\x12\x00\x1a\x04shop\x2a\x05abcde"
    b"\x1a\x00\x22\x00"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Azurite() as azurite, EtcdCluster.start() as etcd:
        with etcd.client() as client:
            client.put(b"/registry/example.com/widgets/shop/blue", json.dumps(WIDGET).encode())
            client.put(b"/registry/pods/shop/web-0", POD)
            client.put(b"/registry/pods/shop/web-1", POD)
            client.put(b"/registry/ranges/serviceips", b"10.0.0.0/16")
            for number in range(20):
                client.put(b"/registry/configmaps/shop/c%02d" % number, b"x" * 1000)
        yield World(azurite, etcd, tmp_path_factory.mktemp("keeper"))


@pytest.fixture
def keeper(world: World, capsys: pytest.CaptureFixture[str]) -> Keeper:
    world.write_config({})
    return Keeper(world.settings, capsys)


@pytest.fixture
def app(world: World) -> Iterator[None]:
    """The app takes messages off its queue while the test runs."""
    with world.app():
        yield


@pytest.fixture
def backup(world: World, keeper: Keeper) -> str:
    """The newest backup's manifest name; taken now if there is none."""
    listed = keeper("backup", "list", "--json").document["backups"]
    if not listed:
        world.reconcile()
        listed = keeper("backup", "list", "--json").document["backups"]
    return str(listed[-1]["name"])


def test_before_the_first_pass_everything_is_empty_and_nothing_is_an_error(keeper: Keeper) -> None:
    assert keeper("backup", "list").err == "no backups yet; take one with: keeper run backup --wait\n"
    assert keeper("poison", "list").err == "no message failed for good\n"
    assert "never ran" in keeper("status").out
    assert keeper("status", "--json").document["rows"][0]["state"] == "never ran"
    printed = keeper("backup", "verify")
    assert printed.code == 2
    assert "container 'etcd-backups' has no backup of 'prod'; take one with: keeper run backup" in printed.err
    plan = keeper("plan", "etcd-backup", "--json").document
    assert [action["kind"] for action in plan["actions"]][:1] == ["Backup"]


def test_a_plan_from_a_recorded_snapshot_is_the_same_byte_for_byte(keeper: Keeper, tmp_path: Path) -> None:
    file = tmp_path / "prod.json"
    assert keeper("snapshot", "etcd-backup", "-o", str(file)).code == 0
    offline = {"AzureWebJobsStorage": "none", "KUBEKEEPER_CONFIG": "absent.yaml"}
    first = keeper("plan", "etcd-backup", "--from", str(file), "--json", **offline)
    again = keeper("plan", "etcd-backup", "--from", str(file), "--json", **offline)
    assert first.code == 0
    assert first.out == again.out
    assert first.document["digest"]
    to_stdout = keeper("snapshot", "etcd-backup", "-o", "-")
    assert to_stdout.document["kubekeeper"] == "snapshot/v1"
    text = keeper("plan", "etcd-backup", "--from", str(file), **offline).out
    assert "1. Backup" in text
    assert first.document["digest"][:12] in text


def test_a_snapshot_of_another_cluster_or_garbage_is_refused(keeper: Keeper, tmp_path: Path) -> None:
    file = tmp_path / "snapshot.json"
    keeper("snapshot", "etcd-backup", "-o", str(file))
    printed = keeper("plan", "etcd-backup", "--from", str(file), "--cluster", "other")
    assert (printed.code, printed.err) == (
        2,
        f"keeper: '{file}' was recorded for cluster 'prod', not 'other'\n",
    )
    file.write_text("{}")
    printed = keeper("plan", "etcd-backup", "--from", str(file))
    assert printed.code == 2
    assert "see docs/reference/snapshot-file.md" in printed.err


def test_backups_are_listed_and_verified_in_place(keeper: Keeper, backup: str) -> None:
    (record,) = keeper("backup", "list", "--json").document["backups"]
    assert record["name"] == backup
    listed = keeper("backup", "list")
    assert record["run"][:8] in listed.out
    assert len(listed.out.splitlines()) == 3  # cluster, header, one line for each backup
    assert "verified" in listed.out
    assert max(map(len, listed.out.splitlines())) <= 80
    for name in ("latest", "prod/latest", backup, record["run"][:8], str(record["revision"])):
        printed = keeper("backup", "verify", name)
        assert printed.code == 0, printed
        assert printed.out.startswith("verified: ")
    document = keeper("backup", "verify", "--json").document
    assert document["state"] == "verified"
    assert document["backup"] == backup


def test_offline_a_proof_by_members_counts_as_long_as_the_bytes_are_the_same(
    keeper: Keeper, backup: str
) -> None:
    printed = keeper("backup", "verify", backup, "--offline")
    assert printed.code == 0
    assert "ProvenBefore" in printed.out


def test_a_backup_that_does_not_exist_is_named(keeper: Keeper, backup: str) -> None:
    printed = keeper("backup", "verify", "4711")
    assert printed.code == 2
    assert "'prod' has no backup '4711'; list them with: keeper backup list --cluster prod" in printed.err


def test_single_objects_are_read_from_the_store(keeper: Keeper, backup: str) -> None:
    keys = keeper("backup", "get", "prod/latest", "/registry/pods/").out.splitlines()
    assert keys == ["/registry/pods/shop/web-0", "/registry/pods/shop/web-1"]
    assert len(keeper("backup", "get", "latest").out.splitlines()) == 24
    printed = keeper("backup", "get", "latest", "/registry/example.com/widgets/shop/blue")
    assert printed.document == WIDGET
    assert keeper("backup", "get", "latest", "/registry/ranges/serviceips").out == "10.0.0.0/16\n"
    pod = keeper("backup", "get", "latest", "/registry/pods/shop/web-0").out
    assert pod.startswith("apiVersion: v1\nkind: Pod\nnamespace: shop\nname: web-0\nprotobuf, ")
    document = keeper("backup", "get", "latest", "/registry/pods/shop/web-0", "--json").document
    assert (document["kind"], document["name"], document["version"]) == ("Pod", "web-0", 1)
    listed = keeper("backup", "get", "latest", "/registry/pods/", "--json").document
    assert [key["key"] for key in listed["keys"]] == keys


def test_raw_writes_the_bytes_of_one_key(keeper: Keeper, world: World, backup: str) -> None:
    command = [sys.executable, "-c", "from shared.cli.main import main; main()", "backup", "get", "latest"]
    done = subprocess.run(
        [*command, "/registry/pods/shop/web-0", "--raw"],
        env=os.environ | world.settings,
        capture_output=True,
        check=True,
    )
    assert done.stdout == POD
    refused = keeper("backup", "get", "latest", "/registry/pods/", "--raw")
    assert refused.code == 2
    assert "is no key but the beginning of 2; --raw takes one key" in refused.err


def test_a_damaged_key_index_costs_time_but_no_answer(keeper: Keeper, world: World, backup: str) -> None:
    store = blob_store(world.settings, "etcd-backups")
    name = keeper("backup", "list", "--json").document["backups"][-1]["keyIndex"]
    whole = store.read(name)
    bent = whole.data[:-1] + bytes([whole.data[-1] ^ 1])
    etag = store.replace(name, bent, whole.etag, whole.metadata)
    try:
        printed = keeper("backup", "get", "latest", "/registry/ranges/serviceips")
        assert (printed.code, printed.out) == (0, "10.0.0.0/16\n")
        assert "reading all of the backup instead" in printed.err
    finally:
        store.replace(name, whole.data, etag, whole.metadata)


def test_a_key_that_is_not_there_is_exit_code_2(keeper: Keeper, backup: str) -> None:
    printed = keeper("backup", "get", "latest", "/registry/nothing")
    assert printed.code == 2
    assert "begins with '/registry/nothing'" in printed.err


def test_a_backup_is_restored_to_the_snapshot_file_that_etcd_sent(
    keeper: Keeper, world: World, backup: str, tmp_path: Path
) -> None:
    file = tmp_path / "prod.db"
    printed = keeper("backup", "restore", "prod/latest", "--file", str(file))
    assert printed.code == 0, printed.err
    assert str(file) in printed.out.replace("\n", "")
    (record,) = keeper("backup", "list", "--json").document["backups"]
    assert file.stat().st_size == record["databaseBytes"] + 32
    again = keeper("backup", "restore", "--file", str(file))
    assert (again.code, again.out) == (2, "")
    assert f"'{file}' exists; move it away or choose another name" in again.err
    assert (
        keeper("backup", "restore").err == "keeper: say what to write: --file PATH, --data-dir DIR or both\n"
    )


def test_a_backup_is_restored_to_data_directories_by_etcds_own_tool(
    keeper: Keeper, world: World, backup: str, tmp_path: Path
) -> None:
    tools = {"PATH": f"{world.etcd.tools.etcdctl.parent}:{os.environ['PATH']}"}
    members = ("--member", "m0=http://127.0.0.1:2380", "--member", "m1=http://127.0.0.1:3380")
    directory = tmp_path / "etcd"
    printed = keeper(
        "backup", "restore", "--data-dir", str(directory), *members, "--no-bump", "--json", **tools
    )
    assert printed.code == 0, printed.err
    made = [Path(each) for each in printed.document["dataDirs"]]
    assert made == [directory / "m0", directory / "m1"]
    assert all((each / "member" / "snap" / "db").is_file() for each in made)
    assert printed.document["file"] is None
    assert "silently stale" in printed.document["advice"][0]
    again = keeper("backup", "restore", "--data-dir", str(directory), *members, **tools)
    assert again.code == 2
    assert f"'{directory / 'm0'}' exists; a restore never overwrites" in again.err


def test_without_a_tool_that_can_raise_revisions_the_exact_commands_are_printed(
    keeper: Keeper, backup: str, tmp_path: Path
) -> None:
    directory = tmp_path / "etcd"
    printed = keeper("backup", "restore", "--data-dir", str(directory), PATH="/nonexistent")
    assert printed.code == 1
    assert not directory.exists()
    (command,) = [line for line in printed.out.splitlines() if "snapshot restore" in line]
    assert f"etcdutl snapshot restore {tmp_path}/etcd.snapshot.db --name default" in command
    assert command.endswith("--mark-compacted")
    assert (tmp_path / "etcd.snapshot.db").is_file()


def test_a_flipped_bit_in_the_store_is_a_bad_answer_with_its_place(
    world: World, keeper: Keeper, backup: str
) -> None:
    (record,) = keeper("backup", "list", "--json").document["backups"]
    store = blob_store(world.settings, "etcd-backups")
    whole = store.read(record["data"])
    bent = bytearray(whole.data)
    bent[len(bent) // 3] ^= 4
    etag = store.replace(record["data"], bytes(bent), whole.etag, whole.metadata)
    try:
        printed = keeper("backup", "verify")
        assert printed.code == 1
        assert printed.out.startswith("bad: frame 0 of prod/")
        assert "\n  place " in printed.out
        assert keeper("backup", "verify", "--json").document["state"] == "bad"
    finally:
        store.replace(record["data"], whole.data, etag, whole.metadata)


def test_status_shows_what_the_last_pass_did(keeper: Keeper, backup: str) -> None:
    printed = keeper("status")
    assert "idle" in printed.out
    assert "Succeeded Backup" in printed.out or "left alone prod" in printed.out
    row = keeper("status", "--json").document["rows"][0]
    assert row["summary"]["automation"] == "etcd-backup"


def test_an_operation_is_followed_to_its_outcome_and_explained(keeper: Keeper, app: None) -> None:
    printed = keeper("run", "pause", "--set", "reason=upgrade", "--wait", "--id", "pause-1", "--json")
    assert printed.code == 0, printed.err
    assert printed.document["state"] == "Succeeded"
    assert keeper("status", "--json").document["rows"][0]["state"] == "paused"
    assert "an operator paused it" in keeper("plan", "etcd-backup").out
    assert keeper("run", "resume", "--wait").out.startswith("Succeeded: ")
    explained = keeper("explain", "pause-1")
    assert explained.code == 0
    assert explained.out.startswith("pause of prod reason=upgrade\n  state     Succeeded")
    assert keeper("explain", "pause-1", "--json").document["operation"]["id"] == "pause-1"


def test_an_unknown_operation_id_is_exit_code_2(keeper: Keeper) -> None:
    printed = keeper("explain", "never-sent")
    assert printed.code == 2
    assert "no operation 'never-sent' has been taken off the queue" in printed.err


def test_without_an_app_waiting_ends_with_exit_code_3_and_the_message_stays(
    keeper: Keeper, world: World
) -> None:
    printed = keeper("run", "etcd-health", "--wait", "--timeout", "1s", "--id", "health-1")
    assert printed.code == 3
    assert "was not taken off the queue by any app; it is not lost" in printed.err
    queue = Clients(world.settings).queue(dispatch.QUEUE)
    messages = queue.receive(timedelta(seconds=5))
    assert ["health-1" in message.text for message in messages] == [True]
    for message in messages:
        queue.delete(message)


def test_without_wait_the_message_is_only_sent(keeper: Keeper, app: None) -> None:
    printed = keeper("run", "resume")
    assert printed.code == 0
    assert printed.out.startswith("sent resume for prod; follow it with: keeper explain ")
    document = keeper("run", "resume", "--json", "--id", "resume-7").document
    assert document == {"id": "resume-7", "operation": "resume", "cluster": "prod", "parameters": {}}


def test_poison_is_listed_shown_replayed_and_dropped(keeper: Keeper, world: World) -> None:
    clients = Clients(world.settings)
    poison = clients.queue(f"{dispatch.QUEUE}-poison")
    poison.ensure()
    text = json.dumps({"id": "again-1", "operation": "resume", "cluster": "prod"})
    clients.journal.failed(dispatch.QUEUE, text.encode(), "the store was away", 5, clients.now())
    poison.send(text)
    poison.send("garbage that nobody can read")
    listed = keeper("poison", "list", "--json").document["messages"]
    assert [m["reason"] for m in listed] == ["the store was away", ""]
    table = keeper("poison", "list").out
    assert "the store was away" in table
    assert max(map(len, table.splitlines())) <= 80
    assert '"operation": "resume"' in keeper("poison", "show", listed[0]["id"][:8]).out
    assert "garbage that nobody" in keeper("poison", "show", listed[1]["id"]).out
    assert "operations: 2 messages failed for good" in keeper("status").out
    assert keeper("poison", "replay", listed[0]["id"][:8]).out == "sent 1 message again\n"
    assert keeper("poison", "drop", "--all", "--json").document == {"dropped": 1}
    assert keeper("poison", "list", "--json").document == {"messages": []}
    printed = keeper("poison", "show", listed[0]["id"])
    assert printed.code == 2
    assert "failed for good; see: keeper poison list" in printed.err
    queue = clients.queue(dispatch.QUEUE)
    waiting = queue.receive(timedelta(seconds=5))
    assert [message.text for message in waiting].count(text) == 1
    for message in waiting:
        queue.delete(message)


def test_doctor_finds_a_healthy_world_healthy(keeper: Keeper, world: World, backup: str) -> None:
    findings = keeper("doctor", "--json")
    levels = {f["subject"]: f["level"] for f in findings.document["findings"]}
    assert findings.code == 0, findings.out
    assert {name for name, level in levels.items() if level == "problem"} == set()
    assert levels["storage blobs"] == levels["storage queues"] == levels["storage tables"] == "ok"
    assert levels["prod etcd"] == levels["prod backups"] == "ok"
    assert levels[f"prod {world.etcd.endpoints[0]}"] == "ok"
    with pytest.raises(NotFoundError):
        store = blob_store(world.settings, "kubekeeper")
        store.read(next((info.name for info in store.list("doctor/")), "doctor/none"))
    lines = keeper("doctor").out.splitlines()
    # The storage account is not configured, and no app runs beside this test whose timer could have fired.
    assert lines[-1].endswith(" 0 problems, 2 warnings"), lines


def test_doctor_names_every_broken_part_and_goes_on(keeper: Keeper, world: World) -> None:
    world.write_config({"objective": "10m", "encryption": {"keyFile": "setting:NO_SUCH_KEY"}})
    printed = keeper(
        "doctor",
        AzureWebJobsStorage="DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        "AccountKey=d3Jvbmc=;BlobEndpoint=" + blob_endpoint(world) + ";",
    )
    assert printed.code == 1
    said = unwrapped(printed.out)
    assert "problem storage blobs: cannot create container 'kubekeeper': AuthorizationFailure (403)" in said
    assert "problem prod encryption: app setting 'NO_SUCH_KEY' is not set" in said
    assert "ok prod etcd: snapshots may be taken" in said


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def blob_endpoint(world: World) -> str:
    parts = dict(part.split("=", 1) for part in world.settings["AzureWebJobsStorage"].split(";") if part)
    return parts["BlobEndpoint"]


def test_the_storage_account_is_checked_and_prepared(keeper: Keeper, world: World) -> None:
    with LocalArm() as arm, ManagedIdentity(arm.directory) as identity:
        world.write_config({}, storageAccount=arm.add_storage_account("backups"))
        settings = {
            **identity.environ,
            "KUBEKEEPER_ARM_ENDPOINT": arm.url,
            "AzureWebJobsStorage__credential": "managedidentity",
        }
        before = keeper("doctor", **settings)
        assert before.code == 1
        assert "problem  container etcd-backups: " in before.out
        assert "(or: keeper backup prepare)" in unwrapped(before.out)
        prepared = keeper("backup", "prepare", **settings)
        assert prepared.code == 0, prepared.err
        assert "etcd-backups: left to you: " in prepared.out
        again = keeper("backup", "prepare", "--json", **settings).document["containers"]["etcd-backups"]
        assert again["done"] == []
        assert again["left"][0]["remedy"] in prepared.out
        after = keeper("doctor", **settings)
        assert "problem  container etcd-backups: " not in after.out
        assert "(or: keeper backup prepare)" not in unwrapped(after.out)


def test_doctor_proves_that_the_encryption_key_works(keeper: Keeper, world: World) -> None:
    world.write_config({"encryption": {"keyFile": "setting:BACKUP_KEY"}})
    key = base64.b64encode(bytes(range(32))).decode()
    printed = keeper("doctor", BACKUP_KEY=key)
    assert "ok       prod encryption: key " in printed.out
    assert key not in printed.out
    assert "problem  prod encryption: " in keeper("doctor", BACKUP_KEY="c2hvcnQ=").out


def test_a_database_of_a_handful_of_keys_is_backed_up_and_read_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """bbolt keeps so few rows inline in the root page: a bucket without a page of its own."""
    with Azurite() as azurite, EtcdCluster.start() as etcd:
        with etcd.client() as client:
            client.put(b"/registry/ranges/serviceips", b"10.0.0.0/16")
        world = World(azurite, etcd, tmp_path)
        world.reconcile()
        keeper = Keeper(world.settings, capsys)
        assert keeper("backup", "verify").code == 0
        assert keeper("backup", "get", "latest").out == "/registry/ranges/serviceips\n"
        assert keeper("backup", "get", "latest", "/registry/ranges/serviceips").out == "10.0.0.0/16\n"
