"""Everything that can be wrong around the app, provoked for real, and the one line each is answered with.

The tables below are also docs/reference/errors.md, which this module writes when run as a program. In a line,
`<...>` stands for what differs from case to case.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from keeper import Keeper, World
from relay import Relay

from sandbox.azurite import Azurite
from sandbox.certificates import Authority
from sandbox.etcd import EtcdCluster, free_ports
from shared.bootstrap import Clients
from shared.runtime import poison
from shared.settings import EtcdConnection

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/errors.md"

pytestmark = [pytest.mark.etcd, pytest.mark.azurite]


@dataclass
class Case:
    """What a row may change before its command runs. `stack` ends what it starts."""

    world: World
    secure: EtcdCluster
    directory: Path
    stack: ExitStack = field(default_factory=ExitStack)
    settings: dict[str, str] = field(default_factory=dict)

    def connection(self, **changes: object) -> EtcdConnection:
        """The secure etcd's connection with some fields of `tls` (or itself) changed."""
        given = self.secure.connection()
        self.settings |= self.secure.environ
        tls = {key: value for key, value in changes.items() if key in ("ca", "certificate", "key")}
        rest = {key: value for key, value in changes.items() if key not in tls}
        assert given.tls is not None
        return msgspec.structs.replace(given, tls=msgspec.structs.replace(given.tls, **tls), **rest)

    def secret(self, name: str, text: str) -> str:
        """A `file:` reference to a new file."""
        path = self.directory / name
        path.write_text(text)
        return f"file:{path}"

    def storage(self, **changes: str) -> None:
        """The app's connection string with some parts changed."""
        parts = dict(
            part.split("=", 1) for part in self.world.settings["AzureWebJobsStorage"].split(";") if part
        )
        self.settings["AzureWebJobsStorage"] = ";".join(f"{k}={v}" for k, v in (parts | changes).items())


Arrange = Callable[[Case], None]


@dataclass(frozen=True)
class Row:
    """A situation, how it is provoked, the command that meets it, and how that ends."""

    situation: str
    arrange: Arrange
    command: str
    code: int
    line: str


def wrong_endpoint(case: Case) -> None:
    (port,) = free_ports(1)
    case.world.write_config({}, EtcdConnection(endpoints=(f"http://127.0.0.1:{port}",)))


def unknown_host(case: Case) -> None:
    case.world.write_config({}, EtcdConnection(endpoints=("http://etcd.invalid:2379",)))


def http_to_tls(case: Case) -> None:
    port = case.secure.endpoints[0].rpartition(":")[2]
    case.world.write_config({}, EtcdConnection(endpoints=(f"http://127.0.0.1:{port}",)))


def wrong_ca(case: Case) -> None:
    case.world.write_config({}, case.connection(ca=case.secret("other-ca.pem", Authority("Other").pem)))


def expired_certificate(case: Case) -> None:
    authority = case.secure.authority
    assert authority is not None
    day = timedelta(days=1)
    old = authority.issue(
        "kubekeeper", not_before=datetime.now(UTC) - 3 * day, not_after=datetime.now(UTC) - day
    )
    case.world.write_config(
        {},
        case.connection(
            certificate=case.secret("old.pem", old.certificate), key=case.secret("old.key", old.key)
        ),
    )


def no_client_certificate(case: Case) -> None:
    case.world.write_config({}, case.connection(certificate=None, key=None))


def wrong_password(case: Case) -> None:
    case.world.write_config({}, case.connection(password=case.secret("password", "wrong")))


def no_password_setting(case: Case) -> None:
    case.world.write_config({}, case.connection(password="setting:NO_SUCH_SETTING"))


def store_unreachable(case: Case) -> None:
    (port,) = free_ports(1)
    case.storage(BlobEndpoint=f"http://127.0.0.1:{port}/devstoreaccount1")


def wrong_storage_key(case: Case) -> None:
    case.storage(AccountKey=base64.b64encode(b"wrong" * 8).decode())


def malformed_storage(case: Case) -> None:
    case.settings["AzureWebJobsStorage"] = "hunter2"


def no_storage(case: Case) -> None:
    case.settings["AzureWebJobsStorage"] = ""


def other_container(case: Case) -> None:
    case.world.write_config({"container": "not-made-yet"})


def configuration_blob_missing(case: Case) -> None:
    url = case.world.settings["AzureWebJobsStorage"].partition("BlobEndpoint=")[2].partition(";")[0]
    case.settings["KUBEKEEPER_CONFIG"] = f"{url}/kubekeeper-absent/fleet.yaml"


def lease_held(case: Case) -> None:
    held = Clients(case.world.settings).claims.acquire("prod", "etcd-backup")
    assert held is not None
    case.stack.enter_context(held)
    case.stack.enter_context(case.world.app())


def _relayed(case: Case, then: str) -> None:
    port = int(case.world.etcd.endpoints[0].rpartition(":")[2])
    relay = case.stack.enter_context(Relay(port, 300_000, then=then))
    endpoint = EtcdConnection(endpoints=(f"http://127.0.0.1:{relay.port}",))
    case.world.write_config({"stallTimeout": "1s", "maxChain": 0}, endpoint)
    case.stack.enter_context(case.world.app())


def stream_stalls(case: Case) -> None:
    _relayed(case, "stall")


def stream_ends_early(case: Case) -> None:
    _relayed(case, "end")


def nothing(case: Case) -> None:
    """The world as it is."""


def broken_yaml(case: Case) -> None:
    case.world.config.write_text("clusters:\n  - name: prod\n   etcd: {}\n")


def misspelt_key(case: Case) -> None:
    case.world.config.write_text("clusters:\n  - name: prod\n    etcdBakcup: {}\n")


def no_encryption_key(case: Case) -> None:
    case.world.write_config({"encryption": {"keyFile": "setting:NO_SUCH_KEY"}, "maxChain": 0})
    case.stack.enter_context(case.world.app())


ETCD = "problem  prod <endpoint>: etcd <endpoint>: "
CONFIG = "keeper: <file>:"

COMMANDS = [
    Row(
        "wrong endpoint",
        wrong_endpoint,
        "doctor",
        1,
        ETCD + "connection refused; check that the member runs and that host and port are right",
    ),
    Row(
        "an endpoint whose name does not exist",
        unknown_host,
        "doctor",
        1,
        ETCD + "the name '<host>' cannot be resolved; check the endpoint and DNS",
    ),
    Row(
        "http to a member that speaks TLS",
        http_to_tls,
        "doctor",
        1,
        ETCD + "the member speaks TLS; write the endpoint as https:// and set etcd.tls",
    ),
    Row(
        "wrong CA",
        wrong_ca,
        "doctor",
        1,
        ETCD + "the server certificate is signed by an unknown authority (<name>); "
        "set etcd.tls.ca to the CA that signed etcd's certificates",
    ),
    Row(
        "expired client certificate",
        expired_certificate,
        "doctor",
        1,
        ETCD + "the client certificate expired on <time> UTC; renew etcd.tls.certificate",
    ),
    Row(
        "no client certificate",
        no_client_certificate,
        "doctor",
        1,
        ETCD + "the member demands a client certificate; set etcd.tls.certificate and etcd.tls.key",
    ),
    Row(
        "authentication refused",
        wrong_password,
        "doctor",
        1,
        ETCD + "user or password is refused; check etcd.user and etcd.password",
    ),
    Row(
        "a secret that is not set",
        no_password_setting,
        "doctor",
        1,
        "problem  prod etcd: app setting '<name>' is not set, but the configuration refers to it; "
        "set it, or correct the reference",
    ),
    Row(
        "store unreachable",
        store_unreachable,
        "backup list",
        3,
        "keeper: cannot list container '<container>': no answer from the storage account (<kind>); "
        "check its address, firewall and that it is running",
    ),
    Row(
        "store refuses the credentials",
        wrong_storage_key,
        "backup list",
        3,
        "keeper: cannot list container '<container>': AuthorizationFailure (403); "
        "check the connection string, or the roles of the identity",
    ),
    Row(
        "malformed connection string",
        malformed_storage,
        "backup list",
        2,
        "keeper: app setting 'AzureWebJobsStorage' is not a storage connection string; copy it again",
    ),
    Row(
        "no storage account",
        no_storage,
        "status",
        2,
        "keeper: no storage account is configured; set 'AzureWebJobsStorage' (connection string) or "
        "'AzureWebJobsStorage__accountName' (managed identity)",
    ),
    Row(
        "container missing",
        other_container,
        "backup verify",
        2,
        "keeper: container '<container>' has no backup of 'prod'; take one with: keeper run backup --wait",
    ),
    Row(
        "configuration missing in the store",
        configuration_blob_missing,
        "status",
        2,
        "keeper: there is no configuration at '<url>'; upload it, or correct KUBEKEEPER_CONFIG",
    ),
    Row(
        "lease held by another run",
        lease_held,
        "run backup --wait --timeout 2s",
        3,
        "keeper: operation <id> is still accepted; it is not lost: look again with 'keeper explain <id>'",
    ),
    Row(
        "a snapshot stream that stalls",
        stream_stalls,
        "run backup --wait",
        1,
        "Failed: etcd <endpoint>: snapshot: no progress for 1s, after <bytes> bytes with <bytes> still "
        "to come; try another member, look at etcd's log",
    ),
    Row(
        "a snapshot stream that ends early",
        stream_ends_early,
        "run backup --wait",
        1,
        "Failed: etcd <endpoint>: snapshot: the stream broke (<reason>), after <bytes> bytes with <bytes> "
        "still to come; try another member, look at etcd's log",
    ),
    Row(
        "encryption key not set",
        no_encryption_key,
        "run backup --wait",
        1,
        "Failed: app setting '<name>' is not set, but the configuration refers to it; "
        "set it, or correct the reference",
    ),
    Row(
        "local disk full",
        nothing,
        "snapshot etcd-backup -o /dev/full",
        1,
        "keeper: '<file>': No space left on device; free some space or choose another place",
    ),
    Row(
        "unknown cluster",
        nothing,
        "run backup --cluster nope",
        2,
        "keeper: unknown cluster 'nope'; the configuration has: <clusters>",
    ),
    Row(
        "unknown operation",
        nothing,
        "run bakcup",
        2,
        "keeper: unknown operation 'bakcup'; there are: <operations>",
    ),
    Row(
        "operation without a parameter it needs",
        nothing,
        "run rolling-upgrade",
        2,
        "keeper: parameters of operation 'rolling-upgrade': Object missing required field `pool`; "
        "it takes pool, image, version, surge, reimage, timeout, backup, discardLocalData",
    ),
    Row(
        "YAML that is not YAML",
        broken_yaml,
        "status",
        2,
        CONFIG + "3:4: not valid YAML: this line is not indented like the lines it belongs to",
    ),
    Row(
        "misspelt key in the configuration",
        misspelt_key,
        "status",
        2,
        CONFIG + "3: clusters[0].etcdBakcup: unknown key 'etcdBakcup'; did you mean 'etcdBackup'?",
    ),
]


@dataclass(frozen=True)
class Message:
    """A message that can never be processed, the queue it is put on, and why it is kept as poison."""

    situation: str
    queue: str
    text: str
    reason: str


MESSAGES = [
    Message(
        "64 KiB of garbage",
        "operations",
        "x" * 65536,
        "the message (65536 bytes) is neither a JSON object nor one in base64; send a JSON object",
    ),
    Message(
        "half a JSON document",
        "operations",
        '{"operation": "backup", "clus',
        "the message is not valid JSON (<reason>); send a JSON object",
    ),
    Message(
        "a field of the wrong type",
        "operations",
        '{"operation": 3, "cluster": "prod"}',
        "the message does not fit its schema: Expected `str`, got `int` - at `$.operation`; correct it",
    ),
    Message(
        "an unknown field",
        "operations",
        '{"operation": "backup", "cluster": "prod", "force": true}',
        "the message does not fit its schema: Object contains unknown field `force`; correct it",
    ),
    Message(
        "an unknown operation",
        "operations",
        '{"id": "bad-1", "operation": "bakcup", "cluster": "prod"}',
        "unknown operation 'bakcup'; there are: <operations>",
    ),
    Message(
        "an unknown cluster",
        "operations",
        '{"id": "bad-2", "operation": "backup", "cluster": "nope"}',
        "unknown cluster 'nope'; the configuration has: prod",
    ),
    Message(
        "an unknown parameter",
        "operations",
        '{"id": "bad-3", "operation": "backup", "cluster": "prod", "parameters": {"ful": true}}',
        "parameters of operation 'backup': Object contains unknown field `ful`; it takes full, reason",
    ),
    Message(
        "a missing parameter",
        "operations",
        '{"id": "bad-4", "operation": "rolling-upgrade", "cluster": "prod"}',
        "parameters of operation 'rolling-upgrade': Object missing required field `pool`; "
        "it takes pool, image, version, surge, reimage, timeout, backup, discardLocalData",
    ),
    Message(
        "a nudge for an unknown cluster",
        "etcd-backup",
        '{"cluster": "nope", "automation": "etcd-backup"}',
        "unknown cluster 'nope'; the configuration has: prod",
    ),
    Message(
        "garbage instead of a nudge",
        "etcd-backup",
        "wake up",
        "the message (7 bytes) is neither a JSON object nor one in base64; send a JSON object",
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Azurite() as azurite, EtcdCluster.start() as etcd:
        with etcd.client() as client:
            for number in range(100):
                client.put(b"/registry/configmaps/shop/c%02d" % number, bytes([number]) * 20_000)
        made = World(azurite, etcd, tmp_path_factory.mktemp("bad-input"))
        yield made


@pytest.fixture(scope="module")
def secure() -> Iterator[EtcdCluster]:
    with EtcdCluster.start(tls=True, auth=True) as etcd:
        yield etcd


@pytest.fixture
def case(world: World, secure: EtcdCluster, tmp_path: Path) -> Iterator[Case]:
    world.write_config({})
    case = Case(world, secure, tmp_path)
    with case.stack:
        yield case


@pytest.mark.parametrize("row", COMMANDS, ids=[row.situation for row in COMMANDS])
def test_a_command_answers_with_one_line_and_its_exit_code(
    row: Row, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    row.arrange(case)
    before = dict(case.world.settings)
    case.world.settings.update(case.settings)
    try:
        printed = Keeper(case.world.settings, capsys)(*row.command.split())
    finally:
        case.world.settings.clear()
        case.world.settings.update(before)
    said = printed.out + printed.err
    assert printed.code == row.code, said
    assert "Traceback" not in said
    assert "hunter2" not in said
    assert any(pattern(row.line).fullmatch(line) for line in said.splitlines()), said


def test_a_message_that_can_never_be_processed_is_kept_whole_with_the_reason(world: World) -> None:
    world.write_config({})
    clients = Clients(world.settings)
    with world.app("operations", "etcd-backup"):
        for message in MESSAGES:
            queue = clients.queue(message.queue)
            queue.ensure()
            queue.send(message.text)
        deadline = time.monotonic() + 60
        wanted = {(message.queue, message.text) for message in MESSAGES}
        found: dict[tuple[str, str], str] = {}
        while not wanted <= found.keys() and time.monotonic() < deadline:
            time.sleep(0.2)
            found = {(kept.queue, kept.text): kept.reason for kept in poison.messages(clients)}
    for message in MESSAGES:
        reason = found[message.queue, message.text]
        assert pattern(message.reason).fullmatch(reason), reason


def test_the_page_of_errors_says_what_is_tested_here() -> None:
    assert PAGE.read_text() == page(), "run: PYTHONPATH=.:tests python tests/scenarios/test_bad_input.py"


def page() -> str:
    """docs/reference/errors.md."""
    lines = [
        "# Errors",
        "",
        "Every line says what is wrong and, behind the semicolon, what to do. `<...>` stands for what",
        "differs from case to case. This page is made from the table in",
        "`tests/scenarios/test_bad_input.py`, which provokes each situation on a real etcd and Azurite, and",
        "compares the line.",
        "",
        "## Commands",
        "",
        "Exit codes: 0 done, 1 it ran and the answer is bad, 2 wrong usage or configuration, 3 a dependency",
        "cannot be reached.",
        "",
        "| situation | command | exit code | line |",
        "|---|---|---|---|",
        *(
            f"| {row.situation} | `keeper {row.command}` | {row.code} | `{_cell(row.line)}` |"
            for row in COMMANDS
        ),
        "",
        "## Messages",
        "",
        "A message that can never be processed is tried as often as `maxDequeueCount` in host.json says,",
        "then kept whole in the poison queue. `keeper poison list` shows it with the reason, `keeper poison",
        "replay` sends it again.",
        "",
        "| situation | queue | reason |",
        "|---|---|---|",
        *(f"| {m.situation} | `{m.queue}` | `{_cell(m.reason)}` |" for m in MESSAGES),
        "",
    ]
    return "\n".join(lines)


def _cell(line: str) -> str:
    """As code in a table; a backtick or bar would end it."""
    return line.replace("`", "'").replace("|", "\\|")


def pattern(line: str) -> re.Pattern[str]:
    """The line with each `<...>` standing for anything."""
    return re.compile(".+?".join(re.escape(part) for part in re.split(r"<[a-z -]+>", line)))


if __name__ == "__main__":
    PAGE.write_text(page())
