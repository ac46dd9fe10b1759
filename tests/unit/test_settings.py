"""kubekeeper.yaml: what is accepted, and the exact line for everything that is not."""

import os
import subprocess
import sys

import pytest

from shared.errors import SettingsError
from shared.secret import resolve_secret
from shared.settings import load_settings, parse_settings

GOOD = """\
clusters:
  - name: prod
    etcd:
      endpoints: ["http://127.0.0.1:2379"]
    etcdBackup: {}
"""


def error_of(text: str | bytes) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_settings(text, "kubekeeper.yaml")
    line = str(caught.value)
    assert "\n" not in line
    return line


def with_policy(policy: str) -> str:
    return GOOD.replace("{}", policy)


def with_etcd(etcd: str) -> str:
    return f"clusters:\n  - name: prod\n    etcd: {etcd}\n"


def test_every_key_but_the_name_has_a_default() -> None:
    settings = parse_settings("clusters: [{name: prod}]", "x.yaml")
    assert settings.clusters[0].name == "prod"
    assert settings.clusters[0].etcd_backup is None


def test_an_empty_mapping_takes_every_default() -> None:
    policy = parse_settings(GOOD, "x.yaml").cluster("prod").etcd_backup
    assert policy is not None
    assert (policy.schedule, policy.objective, policy.container) == ("0 * * * *", "2h", "etcd-backups")


def test_json_is_accepted_because_it_is_yaml() -> None:
    assert parse_settings('{"clusters": [{"name": "a"}]}', "x.json").clusters[0].name == "a"


def test_anchors_and_merges_share_parts_between_clusters() -> None:
    text = """
clusters:
  - name: a
    etcd: {endpoints: ["http://127.0.0.1:1"]}
    etcdBackup: &usual {objective: 3h, maxChain: 5}
  - name: b
    etcd: {endpoints: ["http://127.0.0.1:2"]}
    etcdBackup: {<<: *usual, maxChain: 7}
"""
    policy = parse_settings(text, "x").cluster("b").etcd_backup
    assert policy is not None
    assert (policy.objective, policy.max_chain) == ("3h", 7)


def test_an_unknown_cluster_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="unknown cluster 'prd'; the configuration has: prod"):
        parse_settings(GOOD, "x").cluster("prd")


BAD_DOCUMENTS = {
    "empty": (
        "",
        "kubekeeper.yaml: the configuration is empty; it needs 'clusters:' with at least one cluster",
    ),
    "only comments": (
        "# nothing\n",
        "kubekeeper.yaml: the configuration is empty; it needs 'clusters:' with at least one cluster",
    ),
    "a list": ("- a\n", "kubekeeper.yaml:1: expected a mapping, got a list"),
    "a word": ("clusters", "kubekeeper.yaml:1: expected a mapping, got text"),
    "unclosed bracket": (
        "clusters: [\n",
        "kubekeeper.yaml:2:1: not valid YAML: expected the node content, but found '<stream end>'",
    ),
    "tab": (
        "clusters:\n\t- name: a\n",
        "kubekeeper.yaml:2:1: not valid YAML: a tab is used for indentation; use spaces",
    ),
    "bad indentation": (
        "clusters:\n  - name: a\n    etcd: x: y\n",
        "kubekeeper.yaml:3:12: not valid YAML: mapping values are not allowed here; "
        "check the indentation, and quote values that contain ': '",
    ),
    "two documents": (
        "clusters: [{name: a}]\n---\nclusters: [{name: b}]\n",
        "kubekeeper.yaml:2:1: not valid YAML: "
        "more than one document; put all clusters into one, without '---' between them",
    ),
    "undefined alias": ("clusters: *x\n", "kubekeeper.yaml:1:11: not valid YAML: found undefined alias 'x'"),
    "not text": (b"\xff\xfe\x00", "kubekeeper.yaml: byte 0 is not UTF-8; save the file as UTF-8 text"),
    "control character": (
        "clusters: \x07\n",
        "kubekeeper.yaml: character 10 cannot stand in YAML: special characters are not allowed",
    ),
    "python tag": (
        "clusters: !!python/object/apply:os.system [id]\n",
        "kubekeeper.yaml:1: clusters[0]: expected a mapping, got text",
    ),
    "duplicate key": (
        "clusters:\n  - name: a\n    name: b\n",
        "kubekeeper.yaml:3: clusters[0]: the key 'name' stands here twice",
    ),
    "duplicate top key": (
        "clusters: [{name: a}]\nclusters: [{name: b}]\n",
        "kubekeeper.yaml:2: the key 'clusters' stands here twice",
    ),
    "no value": (
        with_policy(""),
        "kubekeeper.yaml:5: clusters[0].etcdBackup: has no value; "
        "give it one, or remove the key to take its default",
    ),
    "bare merge": (
        "clusters:\n  - <<: 3\n",
        "kubekeeper.yaml:2: clusters[0]: '<<' takes an alias of a mapping, such as '<<: *defaults'",
    ),
    "no clusters": ("clusters: []\n", "kubekeeper.yaml:1: clusters: expected a list of length >= 1"),
    "missing name": (
        "clusters:\n  - etcdBackup: {}\n",
        "kubekeeper.yaml:2: clusters[0]: the key 'name' is missing",
    ),
}


@pytest.mark.parametrize(("text", "line"), BAD_DOCUMENTS.values(), ids=BAD_DOCUMENTS)
def test_a_document_that_cannot_be_read_is_one_line(text: str | bytes, line: str) -> None:
    assert error_of(text) == line


BAD_VALUES = {
    "misspelt key": (
        with_policy("{shedule: '* * * * *'}"),
        "5: clusters[0].etcdBackup.shedule: unknown key 'shedule'; did you mean 'schedule'?",
    ),
    "snake case key": (
        with_policy("{max_chain: 3}"),
        "5: clusters[0].etcdBackup.max_chain: unknown key 'max_chain'; did you mean 'maxChain'?",
    ),
    "foreign key": (
        with_etcd("{endpoints: ['http://a:1'], tls: {zzz: 1}}"),
        "3: clusters[0].etcd.tls.zzz: unknown key 'zzz'; known here: ca, certificate, key, serverName",
    ),
    "wrong type": (
        with_policy("{maxChain: many}"),
        "5: clusters[0].etcdBackup.maxChain: expected a whole number, got text",
    ),
    "yes read as boolean": (
        "clusters:\n  - name: yes\n",
        "2: clusters[0].name: expected text, got true or false; put quotes around it",
    ),
    "number out of range": (
        with_policy("{maxChain: 500}"),
        "5: clusters[0].etcdBackup.maxChain: expected a whole number <= 200",
    ),
    "bad name": (
        "clusters:\n  - name: Prod_1\n",
        "2: clusters[0].name: "
        "expected 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
    ),
    "bad duration": (
        with_policy("{stallTimeout: 10 minutes}"),
        "5: clusters[0].etcdBackup.stallTimeout: expected a duration, such as 90s, 10m, 6h or 1h30m",
    ),
    "no duration": (
        with_policy("{objective: ''}"),
        "5: clusters[0].etcdBackup.objective: expected a duration, such as 90s, 10m, 6h or 1h30m",
    ),
    "zero duration": (
        with_policy("{objective: 0s}"),
        "5: clusters[0].etcdBackup.objective: must be longer than nothing",
    ),
    "stall beyond total": (
        with_policy("{stallTimeout: 30m}"),
        "5: clusters[0].etcdBackup.stallTimeout: is longer than totalTimeout (20m), so it could never act",
    ),
    "six cron fields": (
        with_policy("{schedule: '0 0 * * * *'}"),
        "5: clusters[0].etcdBackup.schedule: '0 0 * * * *' has 6 fields; "
        "expected five: minute hour day month weekday, in UTC",
    ),
    "bad cron": (
        with_policy("{schedule: '61 * * * *'}"),
        "5: clusters[0].etcdBackup.schedule: '61 * * * *' is not a cron schedule (bad minute); "
        "expected: minute hour day month weekday",
    ),
    "cron that never comes": (
        with_policy("{drillSchedule: '0 0 30 2 *'}"),
        "5: clusters[0].etcdBackup.drillSchedule: '0 0 30 2 *' is not a cron schedule (bad day-of-month); "
        "expected: minute hour day month weekday",
    ),
    "container name": (
        with_policy("{container: A}"),
        "5: clusters[0].etcdBackup.container: "
        "expected 3 to 63 lower-case letters, digits and single hyphens, "
        "as Azure containers are named",
    ),
    "nothing kept": (
        with_policy("{retention: {hourly: 0, daily: 0, weekly: 0, monthly: 0}}"),
        "5: clusters[0].etcdBackup.retention: all counts are 0, so nothing would be kept; keep at least one",
    ),
    "no key": (
        with_policy("{encryption: {}}"),
        "5: clusters[0].etcdBackup.encryption: needs exactly one of 'keyVaultKey' and 'keyFile'",
    ),
    "two keys": (
        with_policy(
            "{encryption: {keyFile: 'setting:K', keyVaultKey: 'https://v.vault.azure.net/keys/k/1'}}"
        ),
        "5: clusters[0].etcdBackup.encryption: needs exactly one of 'keyVaultKey' and 'keyFile'",
    ),
    "not a key identifier": (
        with_policy("{encryption: {keyVaultKey: 'k'}}"),
        "5: clusters[0].etcdBackup.encryption.keyVaultKey: "
        "expected a key identifier, https://VAULT.vault.azure.net/keys/NAME/VERSION",
    ),
    "two clusters of one name": (
        "clusters:\n  - name: a\n  - name: a\n",
        "3: clusters[1].name: 'a' is already the name of another cluster; names are unique",
    ),
    "backups of nothing": (
        "clusters:\n  - name: a\n    etcdBackup: {}\n",
        "3: clusters[0].etcdBackup: backups need 'etcd' with the endpoints of this cluster beside it",
    ),
    "endpoint without a port": (
        with_etcd("{endpoints: ['http://10.0.0.4']}"),
        "3: clusters[0].etcd.endpoints[0]: "
        "expected https://HOST:PORT of one etcd member, such as https://10.0.0.4:2379",
    ),
    "endpoint without a scheme": (
        with_etcd("{endpoints: ['10.0.0.4:2379']}"),
        "3: clusters[0].etcd.endpoints[0]: "
        "expected https://HOST:PORT of one etcd member, such as https://10.0.0.4:2379",
    ),
    "endpoint with a path": (
        with_etcd("{endpoints: ['http://10.0.0.4:2379/v3']}"),
        "3: clusters[0].etcd.endpoints[0]: "
        "expected https://HOST:PORT of one etcd member and nothing behind the port",
    ),
    "bad port": (
        with_etcd("{endpoints: ['http://10.0.0.4:999999']}"),
        "3: clusters[0].etcd.endpoints[0]: expected https://HOST:PORT of one etcd member",
    ),
    "no endpoints": (
        with_etcd("{endpoints: []}"),
        "3: clusters[0].etcd.endpoints: expected a list of length >= 1",
    ),
    "https without a CA": (
        with_etcd("{endpoints: ['https://a:1']}"),
        "3: clusters[0].etcd: "
        "the endpoints are https; add 'tls' with the 'ca' that signed their certificates",
    ),
    "TLS over http": (
        with_etcd("{endpoints: ['http://a:1'], tls: {ca: 'setting:CA'}}"),
        "3: clusters[0].etcd.tls: the endpoints are http, so TLS would not be used; write them with https",
    ),
    "http and https": (
        with_etcd("{endpoints: ['http://a:1', 'https://b:1']}"),
        "3: clusters[0].etcd.endpoints: some endpoints are http and some https; all members speak the same",
    ),
    "one endpoint twice": (
        with_etcd("{endpoints: ['http://a:1', 'http://a:1']}"),
        "3: clusters[0].etcd.endpoints: an endpoint stands here twice",
    ),
    "certificate without its key": (
        with_etcd("{endpoints: ['https://a:1'], tls: {ca: 'setting:CA', certificate: 'setting:C'}}"),
        "3: clusters[0].etcd.tls: 'certificate' and 'key' belong together; give both or neither",
    ),
    "user without a password": (
        with_etcd("{endpoints: ['http://a:1'], user: root}"),
        "3: clusters[0].etcd: 'user' and 'password' belong together; give both or neither",
    ),
}


@pytest.mark.parametrize(("text", "line"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_that_cannot_be_meant_is_one_line_with_its_place(text: str, line: str) -> None:
    assert error_of(text) == f"kubekeeper.yaml:{line}"


@pytest.mark.parametrize(
    "text",
    [
        with_etcd("{endpoints: ['http://a:1'], user: root, password: hunter2}"),
        with_etcd("{endpoints: ['http://root:hunter2@a:1']}"),
        with_etcd("{endpoints: ['https://a:1'], tls: {ca: 'hunter2'}}"),
        with_policy("{encryption: {keyFile: hunter2}}"),
        with_policy("{encryption: {keyVaultKey: hunter2}}"),
    ],
)
def test_a_secret_written_into_the_configuration_is_refused_and_not_repeated(text: str) -> None:
    assert "hunter2" not in error_of(text)


def test_a_document_that_expands_without_end_is_refused() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    assert "expands too far" in error_of(text)
    assert "expands too far" in error_of("clusters: &loop [*loop]\n")


@pytest.mark.no_cover
def test_deep_nesting_is_refused_without_a_traceback() -> None:
    assert "nest" in error_of("[" * 5000 + "]" * 5000)


def test_a_megabyte_of_something_else_is_refused() -> None:
    assert "larger than" in error_of("#" * (1024 * 1024 + 1))


def test_settings_are_loaded_from_the_path_in_the_app_setting(tmp_path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(GOOD)
    assert load_settings({"KUBEKEEPER_CONFIG": str(file)}).clusters[0].name == "prod"


def test_a_missing_file_says_which_setting_names_it(tmp_path) -> None:
    with pytest.raises(SettingsError, match=r"No such file.*set KUBEKEEPER_CONFIG"):
        load_settings({"KUBEKEEPER_CONFIG": str(tmp_path / "absent.yaml")})


def test_a_directory_is_no_configuration(tmp_path) -> None:
    with pytest.raises(SettingsError, match="cannot read the configuration"):
        load_settings({"KUBEKEEPER_CONFIG": str(tmp_path)})


@pytest.mark.azurite
def test_settings_are_loaded_from_a_blob_url(azurite) -> None:
    from shared.clients.blob import blob_store

    environ = {"AzureWebJobsStorage": azurite.connection_string}
    store = blob_store(environ, "settings-from-blob")
    store.ensure()
    store.create("fleet.yaml", GOOD.encode())
    url = f"{azurite.blob_url.rstrip('/')}/settings-from-blob/fleet.yaml"
    assert load_settings(environ | {"KUBEKEEPER_CONFIG": url}).clusters[0].name == "prod"
    store.create("bad.yaml", b"clusters: [{}]")
    with pytest.raises(SettingsError, match=r"bad\.yaml:1: clusters\[0\]: the key 'name' is missing"):
        load_settings(environ | {"KUBEKEEPER_CONFIG": url.replace("fleet", "bad")})


def test_a_url_that_names_no_blob_is_refused_without_its_token() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"KUBEKEEPER_CONFIG": "https://a.blob.core.windows.net/?sig=hunter2"})
    assert "names no blob" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_secrets_come_from_files_and_app_settings(tmp_path) -> None:
    (tmp_path / "key").write_text("from file")
    assert resolve_secret(f"file:{tmp_path / 'key'}", {}) == "from file"
    assert resolve_secret("setting:PASSWORD", {"PASSWORD": "x"}) == "x"
    with pytest.raises(SettingsError, match="app setting 'PASSWORD' is not set"):
        resolve_secret("setting:PASSWORD", {})
    with pytest.raises(SettingsError, match="cannot read"):
        resolve_secret(f"file:{tmp_path / 'absent'}", {})


def test_reading_the_types_costs_no_yaml_import() -> None:
    code = (
        "import sys, shared.settings; sys.exit(any(m in sys.modules for m in ('yaml', 'cronsim', 'azure')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
