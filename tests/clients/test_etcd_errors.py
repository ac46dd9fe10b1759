"""What the etcd client says when something is wrong: one line, what and what to do, and the right type."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import msgspec
import pytest

from sandbox.certificates import Authority
from sandbox.etcd import PASSWORD, USER, EtcdCluster, free_ports
from shared.clients import etcd_api_pb2 as pb
from shared.clients.etcd import EtcdClient
from shared.errors import ApiError, ForbiddenError, SettingsError, UnavailableError
from shared.settings import EtcdConnection

pytestmark = pytest.mark.etcd

SECOND = timedelta(seconds=1)
PAST = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def tls() -> Iterator[EtcdCluster]:
    with EtcdCluster.start(tls=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def plain() -> Iterator[EtcdCluster]:
    """One member without TLS but with authentication, and enough data for a stream to be interrupted."""
    with EtcdCluster.start() as cluster:
        cluster.seed(30_000_000)
        cluster.enable_auth()
        yield cluster


def failure(
    connection: EtcdConnection, environ: dict[str, str], call: Callable[[EtcdClient], object]
) -> ApiError:
    with EtcdClient(connection, environ, timeout=SECOND) as client, pytest.raises(ApiError) as caught:
        call(client)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)  # what; what to do
    return caught.value


def status_failure(connection: EtcdConnection, environ: dict[str, str] | None = None) -> ApiError:
    return failure(connection, environ or {}, lambda client: client.status(connection.endpoints[0]))


def with_tls(cluster: EtcdCluster, **changes: str | None) -> EtcdConnection:
    connection = cluster.connection()
    assert connection.tls
    return msgspec.structs.replace(connection, tls=msgspec.structs.replace(connection.tls, **changes))


def test_a_port_where_nothing_listens_is_refused() -> None:
    error = status_failure(EtcdConnection(endpoints=(f"http://127.0.0.1:{free_ports(1)[0]}",)))
    assert isinstance(error, UnavailableError)
    assert error.code == "ConnectionRefused"
    assert "connection refused; check that the member runs and that host and port are right" in str(error)


def test_a_name_that_does_not_resolve_is_named() -> None:
    error = status_failure(EtcdConnection(endpoints=("http://etcd.invalid:2379",)))
    assert error.code == "NameNotFound"
    assert "the name 'etcd.invalid' cannot be resolved" in str(error)


def test_a_wrong_authority_is_told_from_every_other_tls_problem(tls: EtcdCluster) -> None:
    other = tls.write_secret("other-ca.pem", Authority("Somebody else").pem)
    error = status_failure(with_tls(tls, ca=f"file:{other}"))
    assert error.code == "UnknownAuthority"
    assert "signed by an unknown authority (CN=Sandbox etcd CA); set etcd.tls.ca" in str(error)


def test_a_host_that_the_certificate_does_not_name_is_told(tls: EtcdCluster) -> None:
    error = status_failure(with_tls(tls, server_name="etcd.example.com"))
    assert error.code == "HostnameMismatch"
    assert "is for localhost, 127.0.0.1, not for 'etcd.example.com'" in str(error)


def test_the_server_name_can_be_overridden(tls: EtcdCluster) -> None:
    connection = with_tls(tls, server_name="localhost")
    with EtcdClient(connection, {}) as client:
        assert client.status(connection.endpoints[0]).version


def test_an_expired_server_certificate_is_named_with_its_date() -> None:
    with EtcdCluster.start(tls=True) as cluster:
        assert cluster.authority
        expired = cluster.authority.issue("etcd", not_before=PAST - timedelta(days=9), not_after=PAST)
        cluster.write_secret("server.pem", expired.certificate)  # etcd reads it anew at every handshake
        cluster.write_secret("server.key", expired.key)
        error = status_failure(cluster.connection())
    assert error.code == "CertificateExpired"
    assert "the server certificate expired on 2024-01-01 00:00 UTC; renew it on the member" in str(error)


def test_an_expired_client_certificate_is_named_with_its_date(tls: EtcdCluster) -> None:
    assert tls.authority
    expired = tls.authority.issue("kubekeeper", not_before=PAST - timedelta(days=9), not_after=PAST)
    certificate = tls.write_secret("expired.pem", expired.certificate)
    key = tls.write_secret("expired.key", expired.key)
    error = status_failure(with_tls(tls, certificate=f"file:{certificate}", key=f"file:{key}"))
    assert error.code == "CertificateExpired"
    assert "the client certificate expired on 2024-01-01 00:00 UTC; renew etcd.tls.certificate" in str(error)


def test_a_client_certificate_of_another_authority_is_refused(tls: EtcdCluster) -> None:
    foreign = Authority("Somebody else").issue("kubekeeper")
    certificate = tls.write_secret("foreign.pem", foreign.certificate)
    key = tls.write_secret("foreign.key", foreign.key)
    error = status_failure(with_tls(tls, certificate=f"file:{certificate}", key=f"file:{key}"))
    assert error.code == "ClientCertificateRefused"
    assert "use one signed by the CA etcd trusts" in str(error)


def test_a_missing_client_certificate_is_asked_for(tls: EtcdCluster) -> None:
    error = status_failure(with_tls(tls, certificate=None, key=None))
    assert error.code == "ClientCertificateMissing"
    assert "set etcd.tls.certificate and etcd.tls.key" in str(error)


def test_tls_against_a_member_without_tls_is_told(plain: EtcdCluster) -> None:
    error = status_failure(EtcdConnection(endpoints=(plain.endpoints[0].replace("http:", "https:"),)))
    assert error.code == "NotTls"
    assert "write the endpoint as http://" in str(error)


def test_no_tls_against_a_member_with_tls_is_told(tls: EtcdCluster) -> None:
    error = status_failure(EtcdConnection(endpoints=(tls.endpoints[0].replace("https:", "http:"),)))
    assert error.code == "NeedsTls"
    assert "write the endpoint as https:// and set etcd.tls" in str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ca": "file:/does/not/exist.pem"}, "cannot read '/does/not/exist.pem'"),
        ({"ca": "setting:NO_SUCH"}, "app setting 'NO_SUCH' is not set"),
        ({"ca": "setting:NOT_PEM"}, r"etcd.tls.ca \(setting:NOT_PEM\) holds no PEM certificate"),
        ({"certificate": None}, "etcd.tls has only one of certificate and key"),
    ],
)
def test_tls_settings_that_cannot_work_are_refused_at_once(
    tls: EtcdCluster, changes: dict[str, str | None], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        EtcdClient(with_tls(tls, **changes), {"NOT_PEM": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_http_endpoints_with_tls_settings_are_refused_at_once(tls: EtcdCluster) -> None:
    connection = msgspec.structs.replace(tls.connection(), endpoints=("http://127.0.0.1:2379",))
    with pytest.raises(SettingsError, match=r"is http but etcd.tls is set"):
        EtcdClient(connection, {})


def test_a_wrong_password_is_refused_without_being_shown(plain: EtcdCluster) -> None:
    environ = {"ETCD_PASSWORD": "a-wrong-one"}
    error = status_failure(plain.connection(), environ)
    assert isinstance(error, ForbiddenError)
    assert "user or password is refused; check etcd.user and etcd.password" in str(error)
    assert "a-wrong-one" not in str(error)
    assert PASSWORD not in str(error)


def test_a_missing_user_is_asked_for_when_authentication_is_on(plain: EtcdCluster) -> None:
    connection = EtcdConnection(endpoints=plain.endpoints)
    error = failure(connection, {}, lambda client: client.hash_kv(plain.endpoints[0]))
    assert isinstance(error, ForbiddenError)
    assert "set etcd.user and etcd.password" in str(error)


def test_a_user_without_the_root_role_may_not_take_a_snapshot(plain: EtcdCluster) -> None:
    plain.etcdctl("user", "add", "reader:reader-password")
    connection = msgspec.structs.replace(plain.connection(), user="reader")
    error = failure(
        connection,
        {"ETCD_PASSWORD": "reader-password"},
        lambda client: list(
            client.snapshot(plain.endpoints[0], stall_timeout=30 * SECOND, total_timeout=60 * SECOND)
        ),
    )
    assert isinstance(error, ForbiddenError)
    assert "grant it the root role" in str(error)
    assert USER not in str(error).replace("root role", "")


def test_a_paused_member_runs_into_the_deadline(tls: EtcdCluster) -> None:
    tls.pause(0)
    try:
        error = status_failure(tls.connection())
    finally:
        tls.resume(0)
    assert isinstance(error, UnavailableError)
    assert "the member may be paused or overloaded" in str(error)


def test_a_stream_that_stalls_is_ended_by_the_watchdog(plain: EtcdCluster) -> None:
    client = plain.client()
    stream = client.snapshot(plain.endpoints[0], stall_timeout=SECOND, total_timeout=60 * SECOND)
    next(stream)
    plain.pause(0)
    began = time.monotonic()
    try:
        with pytest.raises(
            UnavailableError, match=r"snapshot: no progress for 1s, after [0-9]+ bytes"
        ) as caught:
            list(stream)
    finally:
        plain.resume(0)
    assert caught.value.code == "Stalled"
    assert time.monotonic() - began < 30  # half of what the whole stream may take


def test_time_spent_in_the_consumer_is_no_stall(plain: EtcdCluster) -> None:
    client = plain.client()
    stream = client.snapshot(plain.endpoints[0], stall_timeout=2 * SECOND, total_timeout=60 * SECOND)
    next(stream)
    time.sleep(2.5)
    assert len(list(stream)) > 100


def test_a_stream_that_takes_too_long_altogether_is_ended(plain: EtcdCluster) -> None:
    client = plain.client()
    stream = client.snapshot(plain.endpoints[0], stall_timeout=9 * SECOND, total_timeout=SECOND / 2)
    with pytest.raises(UnavailableError) as caught:
        for _ in stream:
            time.sleep(0.6)
    assert caught.value.code == "Deadline"


def test_a_member_killed_while_streaming_is_an_error_not_a_short_snapshot() -> None:
    with EtcdCluster.start() as cluster:
        cluster.seed(30_000_000)
        client = cluster.client()
        stream = client.snapshot(cluster.endpoints[0], stall_timeout=30 * SECOND, total_timeout=60 * SECOND)
        next(stream)
        cluster.kill(0)
        with pytest.raises(UnavailableError, match=r"with [0-9]+ still to come") as caught:
            list(stream)
    assert caught.value.code == "EndedEarly"


# What a healthy etcd cannot be made to send, from a server that speaks the same protocol.

Messages = Callable[[], Iterator[pb.SnapshotResponse]]


@pytest.fixture
def serve() -> Iterator[Callable[[Messages], EtcdClient]]:
    servers: list[grpc.Server] = []
    clients: list[EtcdClient] = []

    def start(messages: Messages) -> EtcdClient:
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_stream_rpc_method_handler(
            lambda _request, _context: messages(),
            request_deserializer=pb.SnapshotRequest.FromString,
            response_serializer=pb.SnapshotResponse.SerializeToString,
        )
        handlers = {"Snapshot": handler}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("etcdserverpb.Maintenance", handlers)]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        clients.append(EtcdClient(EtcdConnection(endpoints=(f"http://127.0.0.1:{port}",)), {}))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for server in servers:
        server.stop(None).wait()


def message(blob: bytes, remaining: int) -> pb.SnapshotResponse:
    return pb.SnapshotResponse(blob=blob, remaining_bytes=remaining)


def read(client: EtcdClient, stall_timeout: timedelta = 30 * SECOND) -> bytes:
    stream = client.snapshot(client.endpoints[0], stall_timeout=stall_timeout, total_timeout=60 * SECOND)
    return b"".join(stream)


def test_empty_messages_for_ever_are_a_stall(serve: Callable[[Messages], EtcdClient]) -> None:
    def messages() -> Iterator[pb.SnapshotResponse]:
        yield message(b"x" * 1024, 4096)
        for _ in range(1000):
            time.sleep(0.02)
            yield message(b"", 4096)

    with pytest.raises(UnavailableError, match=r"no progress for") as caught:
        read(serve(messages), SECOND / 2)
    assert caught.value.code == "Stalled"


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [(b"x" * 1024, 1024)],
        [(b"x" * 1024, 1024), (b"x" * 1024, 0)],
    ],
    ids=["nothing", "half", "no trailer"],
)
def test_an_orderly_end_before_the_trailer_is_an_error(
    serve: Callable[[Messages], EtcdClient], sent: list[tuple[bytes, int]]
) -> None:
    with pytest.raises(UnavailableError, match="ended the stream early") as caught:
        read(serve(lambda: iter([message(*parts) for parts in sent])))
    assert caught.value.code == "EndedEarly"


def test_a_count_that_does_not_add_up_is_an_error(serve: Callable[[Messages], EtcdClient]) -> None:
    with pytest.raises(UnavailableError, match="1024 came, 1500 are said to remain"):
        read(serve(lambda: iter([message(b"x" * 1024, 2048), message(b"x" * 1024, 1500)])))


def test_a_complete_stream_of_the_same_server_is_accepted(serve: Callable[[Messages], EtcdClient]) -> None:
    sent = [(b"x" * 1024, 512), (b"", 512), (b"y" * 512, 0), (b"z" * 32, 0)]
    assert len(read(serve(lambda: iter([message(*parts) for parts in sent])))) == 1568
