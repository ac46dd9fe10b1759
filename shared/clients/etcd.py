"""etcd over gRPC: snapshots, status, hashes and the few writes that operations and drills need.

Owns the connection to every configured endpoint of one cluster, authentication, and the translation of
every failure into one line of `shared.errors`. Decides nothing. Works with etcd 3.4, 3.5 and 3.6 (field
numbers in etcd_api.proto). Synchronous and thread-safe; gRPC is imported when a client is built. Called by
observe, act, verify and operations.

`ApiError.code` is a CamelCase reason: those of `shared.clients.etcd_diagnosis` for a connection that fails,
and `Compacted`, `FutureRevision`, `NoSpace`, `NotOnLearner`, `NoLeader`, `Stalled`, `EndedEarly`,
`Deadline` for the rest.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from shared.clients import etcd_diagnosis
from shared.errors import ApiError, ForbiddenError, SettingsError, UnavailableError
from shared.model.duration import format_duration
from shared.model.etcd import Alarm, HashKV, KeyValue, Member, MemberStatus, RangeResult
from shared.secret import resolve_secret

if TYPE_CHECKING:
    import grpc

    from shared.clients import etcd_api_pb2 as pb
    from shared.settings import EtcdConnection

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

DEFAULT_TIMEOUT = timedelta(seconds=5)
DEFRAGMENT_TIMEOUT = timedelta(minutes=10)
HASH_TIMEOUT = timedelta(minutes=2)
_BULK_TIMEOUT = timedelta(seconds=60)
_TOKEN_PAUSES = (0.0, 0.2, 1.0)  # seconds before asking again with a new token
_TRAILER_BYTES = 32  # the sha256 of all database bytes, etcd's last message

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    (
        "grpc.enable_http_proxy",
        0,
    ),  # members are reached directly, whatever proxy the host has for the Internet
    ("grpc.enable_retries", 0),  # a retry is the caller's decision
    ("grpc.use_local_subchannel_pool", 1),  # no back-off inherited from another client of the same member
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_STREAM_OPTIONS: tuple[tuple[str, int], ...] = (
    *_CHANNEL_OPTIONS,
    ("SingleThreadedUnaryStream", 1),  # grpc.experimental.ChannelOptions: no thread switch per message
)

_ETCD_ERRORS: tuple[tuple[str, type[ApiError], str, str], ...] = (
    # text in etcd's own message, error type, code, what to say and do
    ("required revision has been compacted", ApiError, "Compacted", "the revision is compacted already"),
    (
        "required revision is a future revision",
        ApiError,
        "FutureRevision",
        "the member has not reached the revision",
    ),
    (
        "database space exceeded",
        ApiError,
        "NoSpace",
        "the database is at its quota; compact, run etcd-defrag, then `etcdctl alarm disarm`",
    ),
    (
        "not supported for learner",
        ApiError,
        "NotOnLearner",
        "a learner does not serve this call; ask a voting member",
    ),
    ("no leader", UnavailableError, "NoLeader", "the cluster has no leader; check that most members run"),
    ("leader changed", UnavailableError, "NoLeader", "the leader is changing; try again in a moment"),
    (
        "request timed out",
        UnavailableError,
        "NoQuorum",
        "the members cannot agree in time; check that most of them run and reach each other",
    ),
    (
        "user name is empty",
        ForbiddenError,
        "AuthenticationNeeded",
        "etcd has authentication on; set etcd.user and etcd.password",
    ),
    (
        "authentication failed",
        ForbiddenError,
        "AuthenticationFailed",
        "user or password is refused; check etcd.user and etcd.password",
    ),
    (
        "permission denied",
        ForbiddenError,
        "PermissionDenied",
        "the user may not do this; grant it the root role (snapshot, hash and defragment need it)",
    ),
)


class Pending(Protocol[T_co]):
    """A call under way; `result()` waits for it, raising what the plain call would raise."""

    def result(self) -> T_co: ...


@dataclass(frozen=True)
class _Ask(Generic[T]):
    """One unary request: `Service/Method`, the message, its answer's class, what the caller gets of it."""

    path: str
    request: Any
    response: Any
    convert: Callable[[Any], T]
    timeout: timedelta


class _Target(msgspec.Struct, frozen=True):
    """An endpoint taken apart; `url` is what messages name."""

    url: str
    host: str
    port: int
    is_tls: bool

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class EtcdClient:
    """One cluster's etcd. `endpoint` arguments are entries of `endpoints`; a context manager, or call
    `close()`.

    Raises SettingsError at once for an endpoint or PEM document that cannot work; connecting happens at the
    first call.
    """

    def __init__(
        self,
        connection: EtcdConnection,
        environ: Mapping[str, str] = os.environ,
        *,
        timeout: timedelta = DEFAULT_TIMEOUT,
    ) -> None:
        # gRPC writes its own view of failed handshakes to stderr; what matters is in the errors raised here.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        self.endpoints = connection.endpoints
        self._timeout = timeout
        self._targets = {
            url: _target(url, has_tls=connection.tls is not None) for url in connection.endpoints
        }
        self._user = connection.user
        self._password = resolve_secret(connection.password, environ).strip() if connection.password else ""
        self._tls = _tls_material(connection, environ)
        self._lock = threading.Lock()
        self._channels: dict[tuple[str, bool], grpc.Channel] = {}
        self._tokens: dict[str, str] = {}
        self._preferred = connection.endpoints[0]

    def __enter__(self) -> EtcdClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every call and connection."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    # Maintenance

    def status(self, endpoint: str) -> MemberStatus:
        """The member's own view; served by learners too, and without a quorum."""
        return self.status_begin(endpoint).result()

    def status_begin(self, endpoint: str) -> Pending[MemberStatus]:
        """`status`, started now and awaited later, so that several members can be asked at once."""
        from shared.clients import etcd_api_pb2 as pb

        ask = _Ask("Maintenance/Status", pb.StatusRequest(), pb.StatusResponse, _status, self._timeout)
        return _Call(self, endpoint, ask)

    def alarms(self) -> tuple[Alarm, ...]:
        """Alarms as the cluster agrees on them; passes through raft. `MemberStatus.alarms()` does not."""
        from shared.clients import etcd_api_pb2 as pb

        return self._ask(
            _Ask("Maintenance/Alarm", pb.AlarmRequest(), pb.AlarmResponse, _alarms, self._timeout)
        )

    def hash_kv(self, endpoint: str, revision: int = 0, timeout: timedelta = HASH_TIMEOUT) -> HashKV:
        """The voter's HashKV up to `revision` (0: newest).

        ApiError with code `Compacted`, `FutureRevision` (the member is behind) or `NotOnLearner`.
        """
        return self.hash_kv_begin(endpoint, revision, timeout).result()

    def hash_kv_begin(
        self, endpoint: str, revision: int = 0, timeout: timedelta = HASH_TIMEOUT
    ) -> Pending[HashKV]:
        """`hash_kv`, started now and awaited later."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.HashKVRequest(revision=revision)
        ask = _Ask("Maintenance/HashKV", request, pb.HashKVResponse, partial(_hash_kv, revision), timeout)
        return _Call(self, endpoint, ask)

    def defragment(self, endpoint: str, timeout: timedelta = DEFRAGMENT_TIMEOUT) -> None:
        """Rewrites the member's database file; the member answers nothing else meanwhile."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.DefragmentRequest()
        self._ask(_Ask("Maintenance/Defragment", request, pb.DefragmentResponse, _nothing, timeout), endpoint)

    def move_leader(self, leader_endpoint: str, target_id: int) -> None:
        """Asks the leader to hand over to the member `target_id`."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.MoveLeaderRequest(target_id=target_id)
        ask = _Ask("Maintenance/MoveLeader", request, pb.MoveLeaderResponse, _nothing, self._timeout)
        self._ask(ask, leader_endpoint)

    def snapshot(
        self, endpoint: str, *, stall_timeout: timedelta, total_timeout: timedelta
    ) -> SnapshotStream:
        """The member's database as it streams in; see `SnapshotStream`."""
        return SnapshotStream(self, endpoint, stall_timeout, total_timeout)

    # Cluster

    def members(self) -> tuple[Member, ...]:
        """The member list, as the first voter that answers knows it; needs no quorum."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.MemberListRequest()
        return self._ask(_Ask("Cluster/MemberList", request, pb.MemberListResponse, _members, self._timeout))

    # Keys

    def range(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        endpoint: str | None = None,
    ) -> RangeResult:
        """Keys in [key, range_end), or the one key; `prefix_end(prefix)` gives the end of a prefix."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.RangeRequest(
            key=key,
            range_end=range_end,
            limit=limit,
            revision=revision,
            keys_only=keys_only,
            count_only=count_only,
            serializable=serializable,
        )
        return self._ask(_Ask("KV/Range", request, pb.RangeResponse, _range, self._timeout), endpoint)

    def get(self, key: bytes) -> KeyValue | None:
        """One live key, or None."""
        found = self.range(key).kvs
        return found[0] if found else None

    def put(self, key: bytes, value: bytes, lease: int = 0) -> int:
        """Writes one key; the new revision."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.PutRequest(key=key, value=value, lease=lease)
        return self._ask(_Ask("KV/Put", request, pb.PutResponse, _revision, self._timeout))

    def delete(self, key: bytes, range_end: bytes = b"") -> int:
        """Deletes a key or a range; how many were there."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.DeleteRangeRequest(key=key, range_end=range_end)
        return self._ask(
            _Ask("KV/DeleteRange", request, pb.DeleteRangeResponse, lambda r: int(r.deleted), self._timeout)
        )

    def put_all_begin(
        self, pairs: Sequence[tuple[bytes, bytes]], *, lease: int = 0, endpoint: str | None = None
    ) -> Pending[int]:
        """One transaction that writes all pairs (etcd allows 128 by default); gives the new revision."""
        from shared.clients import etcd_api_pb2 as pb

        puts = [pb.RequestOp(request_put=pb.PutRequest(key=k, value=v, lease=lease)) for k, v in pairs]
        ask = _Ask("KV/Txn", pb.TxnRequest(success=puts), pb.TxnResponse, _revision, _BULK_TIMEOUT)
        return _Call(self, endpoint or self._preferred, ask)

    def create(self, key: bytes, value: bytes) -> bool:
        """Writes the key only if it does not exist yet; whether it was written."""
        from shared.clients import etcd_api_pb2 as pb

        absent = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=key, create_revision=0)
        put = pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))
        request = pb.TxnRequest(compare=[absent], success=[put])
        return self._ask(_Ask("KV/Txn", request, pb.TxnResponse, lambda r: bool(r.succeeded), self._timeout))

    def compact(self, revision: int, *, physical: bool = True) -> None:
        """Drops history before `revision`; with `physical`, waits until the file has lost it too."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.CompactionRequest(revision=revision, physical=physical)
        self._ask(_Ask("KV/Compact", request, pb.CompactionResponse, _nothing, _BULK_TIMEOUT))

    def grant_lease(self, ttl: timedelta) -> int:
        """A new lease; its id."""
        from shared.clients import etcd_api_pb2 as pb

        request = pb.LeaseGrantRequest(ttl=int(ttl.total_seconds()))
        return self._ask(
            _Ask("Lease/LeaseGrant", request, pb.LeaseGrantResponse, lambda r: int(r.id), self._timeout)
        )

    # How calls are made

    def _ask(self, ask: _Ask[T], endpoint: str | None = None) -> T:
        """The answer of `endpoint`, or of the one that answered last, else of the others in turn."""
        if endpoint:
            return _Call(self, endpoint, ask).result()
        first = self._preferred
        failure: ApiError | None = None
        for url in (first, *(e for e in self.endpoints if e != first)):
            try:
                answer = _Call(self, url, ask).result()
            except ApiError as error:
                if not isinstance(error, UnavailableError) and error.code != "NotOnLearner":
                    raise
                failure = error
            else:
                self._preferred = url
                return answer
        assert failure is not None
        raise failure

    def channel(self, endpoint: str, *, for_stream: bool = False) -> grpc.Channel:
        """The endpoint's connection; streams have their own, with larger windows."""
        with self._lock:
            channel = self._channels.get((endpoint, for_stream))
            if channel is None:
                channel = self._channels[endpoint, for_stream] = self._connect(endpoint, for_stream)
            return channel

    def disconnect_stream(self, endpoint: str) -> None:
        """Close the endpoint's connection for streams: its buffers are megabytes, and the next use is far."""
        with self._lock:
            channel = self._channels.pop((endpoint, True), None)
        if channel is not None:
            channel.close()

    def _connect(self, endpoint: str, for_stream: bool) -> grpc.Channel:
        import grpc

        if endpoint not in self._targets:
            raise SettingsError(
                f"'{endpoint}' is not a configured etcd endpoint; known: {', '.join(self.endpoints)}"
            )
        target = self._targets[endpoint]
        options: list[tuple[str, Any]] = list(_STREAM_OPTIONS if for_stream else _CHANNEL_OPTIONS)
        if not target.is_tls:
            return grpc.insecure_channel(target.authority, options)
        if self._tls.server_name:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name))
        credentials = grpc.ssl_channel_credentials(self._tls.ca, self._tls.key, self._tls.certificate)
        return grpc.secure_channel(target.authority, credentials, options)

    def metadata(self, endpoint: str) -> tuple[tuple[str, str], ...]:
        """What goes with every call: the token, when a user is configured."""
        if not self._user:
            return ()
        token = self._tokens.get(endpoint)
        if token is None:
            token = self._tokens[endpoint] = self._authenticate(endpoint)
        return (("token", token),) if token else ()

    def can_retry(self, endpoint: str, error: Any) -> bool:
        """Whether the error is a refused token, which the next call will replace."""
        if not self._user or not _is_token_refused(error):
            return False
        self._tokens.pop(endpoint, None)
        return True

    def _authenticate(self, endpoint: str) -> str:
        """A token, from the member itself (it surely knows its own) or, for a learner, from another.

        Empty when etcd has authentication off: then user and password are simply not needed.
        """
        import grpc

        from shared.clients import etcd_api_pb2 as pb

        request = pb.AuthenticateRequest(name=self._user, password=self._password)
        others = sorted((e for e in self.endpoints if e != endpoint), key=lambda e: e not in self._tokens)
        failure: ApiError | None = None
        for url in (endpoint, *others):
            call = _unary(self.channel(url), "Auth/Authenticate", pb.AuthenticateResponse)
            try:
                response = call(request, timeout=self._timeout.total_seconds())
            except grpc.RpcError as error:
                if "authentication is not enabled" in (error.details() or ""):
                    return ""
                failure = self.translate(url, error, self._timeout)
                if isinstance(failure, ForbiddenError) or (
                    url == endpoint and failure.code != "NotOnLearner"
                ):
                    break
            else:
                return str(response.token)
        assert failure is not None
        raise failure

    def translate(self, endpoint: str, error: Any, timeout: timedelta) -> ApiError:
        """An ApiError for a gRPC error; looks at the connection when gRPC could not make one."""
        import grpc

        code, details = error.code(), (error.details() or "").replace("\n", " ")
        where = f"etcd {endpoint}"
        if code is grpc.StatusCode.UNAVAILABLE:
            # While gRPC waits before it connects again it repeats its last error, even if the member is back.
            with self._lock:
                self._channels.pop((endpoint, False), None)
        for text, kind, reason, advice in _ETCD_ERRORS:
            if text in details:
                return kind(f"{where}: {advice}", code=reason)
        unreachable = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        if code in unreachable and "etcdserver:" not in details:
            finding = self._diagnose(endpoint)
            if finding:
                return UnavailableError(f"{where}: {finding.message}", code=finding.code)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            text = f"no answer within {format_duration(timeout)}; the member may be paused or overloaded"
            return UnavailableError(f"{where}: {text}", code="Deadline")
        if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
            return ForbiddenError(f"{where}: {details}; check etcd.user and etcd.password", code=code.name)
        if code is grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(f"{where}: {details}; look at etcd's log", code="Unavailable")
        return ApiError(f"{where}: {code.name}: {details}; look at etcd's log", code=code.name)

    def clock(self, endpoint: str) -> datetime | None:
        """The member's clock, to the second; None when it does not tell."""
        target = self._targets[endpoint]
        return etcd_diagnosis.read_date(target.host, target.port, is_tls=target.is_tls, tls=self._tls)

    def _diagnose(self, endpoint: str) -> etcd_diagnosis.Finding | None:
        target = self._targets[endpoint]
        now = etcd_diagnosis.utc_now()
        return etcd_diagnosis.diagnose(target.host, target.port, is_tls=target.is_tls, tls=self._tls, now=now)


class _Call(Generic[T]):
    """One unary call under way. A refused token is replaced up to three times: a member may learn of it
    late.
    """

    def __init__(self, client: EtcdClient, endpoint: str, ask: _Ask[T]) -> None:
        self._client, self._endpoint, self._ask = client, endpoint, ask
        self._method = _unary(client.channel(endpoint), ask.path, ask.response)
        self._future = self._send()

    def _send(self) -> Any:
        metadata = self._client.metadata(self._endpoint)
        seconds = self._ask.timeout.total_seconds()
        return self._method.future(self._ask.request, timeout=seconds, metadata=metadata)

    def result(self) -> T:
        import grpc

        for pause in (*_TOKEN_PAUSES, None):
            try:
                return self._ask.convert(self._future.result())
            except grpc.RpcError as error:
                if pause is None or not self._client.can_retry(self._endpoint, error):
                    raise self._client.translate(self._endpoint, error, self._ask.timeout) from error
                time.sleep(pause)
                self._future = self._send()
        raise AssertionError("unreachable")


class SnapshotStream:
    """A snapshot as it arrives: iterate for `bytes`, all of the database and then etcd's 32-byte sha256 of
    it.

    The iteration ends normally only when everything announced has arrived; otherwise it raises
    UnavailableError with code `Stalled` (no progress for `stall_timeout`; a member can send empty messages
    for ever, etcd-io/etcd#22125), `Deadline` (not done within `total_timeout`), `EndedEarly`, or the
    connection's own reason. Time spent in the consumer counts against the total only. The member holds a
    read transaction open from start to end, so consume fast and `close()` when giving up (or use it as a
    context manager).
    """

    def __init__(
        self, client: EtcdClient, endpoint: str, stall_timeout: timedelta, total_timeout: timedelta
    ) -> None:
        self.endpoint = endpoint
        self.received_bytes = 0
        """Including the trailer once it is there."""
        self.remaining_bytes: int | None = None
        """Database bytes still to come; None before the first message."""
        self.storage_version = ""
        """The member's storage version, from etcd 3.6 on."""
        self._client = client
        self._stall_timeout, self._total_timeout = stall_timeout, total_timeout
        self._waiting_since: float | None = None
        self._is_stalled = False
        self._done = threading.Event()
        self._started = time.monotonic()
        self._ended: float | None = None
        self._is_trailer_seen = False
        self._call: Any = None
        self._messages = self._read()

    def __iter__(self) -> Iterator[bytes]:
        return self._messages

    def __next__(self) -> bytes:
        return next(self._messages)

    def __enter__(self) -> SnapshotStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def held(self) -> timedelta:
        """How long the member's read transaction has been held, as seen from here."""
        return timedelta(seconds=(self._ended or time.monotonic()) - self._started)

    def close(self) -> None:
        """Ends the call, so that the member lets go of its read transaction."""
        self._done.set()
        if self._call is not None:
            self._call.cancel()
            self._client.disconnect_stream(self.endpoint)
        self._ended = self._ended or time.monotonic()

    def _open(self) -> None:
        from shared.clients import etcd_api_pb2 as pb

        method = self._client.channel(self.endpoint, for_stream=True).unary_stream(
            "/etcdserverpb.Maintenance/Snapshot",
            request_serializer=pb.SnapshotRequest.SerializeToString,
            response_deserializer=pb.SnapshotResponse.FromString,
        )
        remaining = self._total_timeout.total_seconds() - (time.monotonic() - self._started)
        metadata = self._client.metadata(self.endpoint)
        self._call = method(pb.SnapshotRequest(), timeout=max(remaining, 0.0), metadata=metadata)

    def _read(self) -> Iterator[bytes]:
        watchdog = threading.Thread(target=self._watch, name="etcd-snapshot-watchdog", daemon=True)
        try:
            self._started = self._waiting_since = time.monotonic()
            self._open()
            watchdog.start()
            yield from self._blobs()
        finally:
            self.close()

    def _blobs(self) -> Iterator[bytes]:
        while True:
            message = self._next_message()
            if message is None:
                break
            if not message.blob:
                continue  # waiting_since stands: the watchdog counts on
            self._account(message)
            self._waiting_since = None
            yield message.blob
            self._waiting_since = time.monotonic()
        if self._missing() != 0:
            raise self._failure("EndedEarly", "the member ended the stream early")

    def _next_message(self) -> pb.SnapshotResponse | None:
        import grpc

        for pause in (*_TOKEN_PAUSES, None):
            try:
                message: pb.SnapshotResponse | None = next(self._call, None)
            except grpc.RpcError as error:
                if self._is_stalled:
                    text = f"no progress for {format_duration(self._stall_timeout)}"
                    raise self._failure("Stalled", text) from error
                is_first = self.received_bytes == 0
                if pause is None or not is_first or not self._client.can_retry(self.endpoint, error):
                    raise self._broken(error) from error
                time.sleep(pause)
                self._open()
            else:
                return message
        raise AssertionError("unreachable")

    def _account(self, message: pb.SnapshotResponse) -> None:
        """Every message must continue the last: what was announced as remaining falls by what arrived."""
        before, size = self.remaining_bytes, len(message.blob)
        is_trailer = before == 0 and size == _TRAILER_BYTES and message.remaining_bytes == 0
        if before is not None and not is_trailer and message.remaining_bytes != before - size:
            text = f"{before} bytes were to come, {size} came, {message.remaining_bytes} are said to remain"
            raise self._failure("Inconsistent", text)
        if is_trailer:
            self._is_trailer_seen = True
        self.remaining_bytes = message.remaining_bytes
        self.received_bytes += size
        self.storage_version = message.version or self.storage_version

    def _missing(self) -> int:
        """Bytes that should still have come; the trailer counts."""
        if self.remaining_bytes is None:
            return _TRAILER_BYTES
        return self.remaining_bytes + (0 if self._is_trailer_seen else _TRAILER_BYTES)

    def _broken(self, error: Any) -> ApiError:
        import grpc

        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and self.received_bytes:
            return self._failure("Deadline", f"not done within {format_duration(self._total_timeout)}")
        if self.received_bytes:
            return self._failure("EndedEarly", f"the stream broke ({error.details()})")
        return self._client.translate(self.endpoint, error, self._total_timeout)

    def _failure(self, code: str, what: str) -> UnavailableError:
        where = f"after {self.received_bytes} bytes"
        if self.remaining_bytes is not None:
            where += f" with {self._missing()} still to come"
        message = f"etcd {self.endpoint}: snapshot: {what}, {where}; try another member, look at etcd's log"
        return UnavailableError(message, code=code)

    def _watch(self) -> None:
        limit = self._stall_timeout.total_seconds()
        while not self._done.wait(min(limit / 4, 1.0)):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > limit:
                self._is_stalled = True
                self._call.cancel()
                return


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`; of everything when it is empty."""
    for index in range(len(prefix) - 1, -1, -1):
        if prefix[index] < 0xFF:
            return prefix[:index] + bytes([prefix[index] + 1])
    return b"\0"


def _target(url: str, *, has_tls: bool) -> _Target:
    parts = urlsplit(url)
    try:
        port = parts.port or 2379
    except ValueError as error:
        raise SettingsError(
            f"etcd endpoint '{url}' has no valid port; write it like https://10.0.0.4:2379"
        ) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"etcd endpoint '{url}' is not a URL; write it like https://10.0.0.4:2379")
    if parts.scheme == "http" and has_tls:
        raise SettingsError(
            f"etcd endpoint '{url}' is http but etcd.tls is set; write https:// or remove etcd.tls"
        )
    return _Target(url=url, host=parts.hostname, port=port, is_tls=parts.scheme == "https")


def _tls_material(connection: EtcdConnection, environ: Mapping[str, str]) -> etcd_diagnosis.TlsMaterial:
    tls = connection.tls
    if tls is None:
        return etcd_diagnosis.TlsMaterial(ca=None, certificate=None, key=None, server_name=None)
    if (tls.certificate is None) != (tls.key is None):
        raise SettingsError("etcd.tls has only one of certificate and key; set both or neither")
    return etcd_diagnosis.TlsMaterial(
        ca=_pem("etcd.tls.ca", tls.ca, environ, "CERTIFICATE"),
        certificate=_pem("etcd.tls.certificate", tls.certificate, environ, "CERTIFICATE"),
        key=_pem("etcd.tls.key", tls.key, environ, "PRIVATE KEY"),
        server_name=tls.server_name,
    )


def _pem(setting: str, reference: str | None, environ: Mapping[str, str], kind: str) -> bytes | None:
    if reference is None:
        return None
    text = resolve_secret(reference, environ)
    if "-----BEGIN" not in text or f"{kind}-----" not in text:
        raise SettingsError(
            f"{setting} ({reference}) holds no PEM {kind.lower()}; give the text of the .pem file"
        )
    return text.encode()


def _unary(channel: grpc.Channel, path: str, response: Any) -> Any:
    return channel.unary_unary(
        f"/etcdserverpb.{path}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )


def _is_token_refused(error: Any) -> bool:
    """`invalid auth token`, or `revision of auth store is old` after a change of users or roles."""
    details = error.details() or ""
    return "invalid auth token" in details or "revision of auth store is old" in details


def _status(response: pb.StatusResponse) -> MemberStatus:
    return MemberStatus(
        member_id=response.header.member_id,
        cluster_id=response.header.cluster_id,
        version=response.version,
        revision=response.header.revision,
        leader=response.leader,
        raft_term=response.raft_term,
        raft_index=response.raft_index,
        raft_applied_index=response.raft_applied_index,
        db_size=response.db_size,
        db_size_in_use=response.db_size_in_use,
        db_size_quota=response.db_size_quota,
        is_learner=response.is_learner,
        storage_version=response.storage_version,
        errors=tuple(response.errors),
    )


def _members(response: pb.MemberListResponse) -> tuple[Member, ...]:
    return tuple(
        Member(
            id=m.id,
            name=m.name,
            peer_urls=tuple(m.peer_urls),
            client_urls=tuple(m.client_urls),
            is_learner=m.is_learner,
        )
        for m in response.members
    )


def _alarms(response: pb.AlarmResponse) -> tuple[Alarm, ...]:
    from shared.clients import etcd_api_pb2 as pb

    return tuple(Alarm(member_id=a.member_id, alarm=pb.AlarmType.Name(a.alarm)) for a in response.alarms)


def _hash_kv(revision: int, response: pb.HashKVResponse) -> HashKV:
    """`hash_revision` came with 3.6; before, it is what was asked for, or the member's newest."""
    return HashKV(
        member_id=response.header.member_id,
        revision=response.hash_revision or revision or response.header.revision,
        hash=response.hash,
        compact_revision=max(response.compact_revision, 0),  # -1 before the first compaction
    )


def _range(response: pb.RangeResponse) -> RangeResult:
    kvs = tuple(
        KeyValue(
            key=kv.key,
            value=kv.value,
            create_revision=kv.create_revision,
            mod_revision=kv.mod_revision,
            version=kv.version,
            lease=kv.lease,
        )
        for kv in response.kvs
    )
    return RangeResult(revision=response.header.revision, kvs=kvs, count=response.count, more=response.more)


def _revision(response: pb.PutResponse | pb.TxnResponse) -> int:
    return response.header.revision


def _nothing(_: object) -> None:
    return None
