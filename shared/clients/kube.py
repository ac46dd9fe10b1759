"""The Kubernetes API, as raw JSON over one pooled connection: what the automations read and write.

Bodies are handed over undecoded, for `msgspec` to take the few fields that are needed: the typed models of
the `kubernetes` package cost about a hundred times more. That package is used for what it is best at, and
only where asked for: a kubeconfig with whatever way of logging in it names.

Every change can be conditional (uid, resourceVersion). Nothing is repeated here: a lost answer is
UnavailableError, and the caller looks again.
"""

from __future__ import annotations

import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

import msgspec

from shared.errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    SettingsError,
    ThrottledError,
    UnavailableError,
)
from shared.secret import resolve_secret

if TYPE_CHECKING:
    import urllib3
    from azure.core.credentials import TokenCredential
    from kubernetes.client import Configuration

    from shared.settings import KubernetesConnection

Document = dict[str, Any]

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"

AKS_SCOPE = "6dae42f8-4368-4678-94ff-3960e28e3630/.default"
"""The application that every AKS cluster with Entra ID takes tokens for."""
DISRUPTION_BUDGET = "DisruptionBudget"
"""`code` of the ThrottledError that an eviction gets while a PodDisruptionBudget allows none."""

METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""Asks for objects without spec, status and data."""

CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
PAGE = 500
WATCH_SILENCE_SECONDS = 150.0
"""The API server sends a bookmark about every minute: after two and a half, nobody is there."""
MAX_LINE_BYTES = 8 << 20
"""No object is larger: etcd takes requests of up to 1.5 MiB."""
_TOKEN_MARGIN_SECONDS = 300

_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: ConflictError,
}
_REMEDIES = {
    401: "the API server does not know this identity; check 'kubernetes' in the configuration",
    403: "bind the role that the automation's page names to this identity",
}


class KubeClient:
    """One identity's connections to one API server; threads may share it.

    Errors are those of `shared.errors`; `code` is the Status' reason, or the first cause's where it has one.
    """

    def __init__(
        self, server: str, tls: ssl.SSLContext | None, authorization: Callable[[], str | None]
    ) -> None:
        import urllib3

        self.server = server.rstrip("/")
        self._authorization = authorization
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        options: dict[str, Any] = {"ssl_context": tls} if tls else {}
        self._pool = urllib3.PoolManager(maxsize=8, retries=False, timeout=timeout, **options)

    def close(self) -> None:
        """Drop idle connections."""
        self._pool.clear()

    def get(self, path: str, **query: str | int) -> bytes:
        """The raw body of one object, or of one page of a list."""
        return self._send("GET", path, query).data

    def read(self, path: str, **query: str | int) -> Document:
        """The decoded body of one object, or of one page of a list."""
        return msgspec.json.decode(self.get(path, **query), type=Document)

    def find(self, path: str) -> Document | None:
        """One object, or None when there is none of that name."""
        try:
            return self.read(path)
        except NotFoundError:
            return None

    def pages(self, path: str, *, limit: int = PAGE, **query: str | int) -> Iterator[bytes]:
        """The raw body of each page of a list, all of one moment.

        ConflictError (410) when that moment is forgotten before the last page: begin again.
        """
        return self._pages(path, limit, query, JSON)

    def metadata_pages(self, path: str, *, limit: int = PAGE, **query: str | int) -> Iterator[bytes]:
        """As `pages`, of objects without spec, status and data: the server cuts them down."""
        return self._pages(path, limit, query, METADATA_LIST)

    def _pages(self, path: str, limit: int, query: Mapping[str, str | int], accept: str) -> Iterator[bytes]:
        token = ""
        while True:
            more: dict[str, str | int] = {"limit": limit, **({"continue": token} if token else {})}
            body = self._send("GET", path, {**query, **more}, accept=accept).data
            yield body
            token = msgspec.json.decode(body, type=_Page).metadata.token
            if not token:
                return

    def watch(
        self,
        path: str,
        version: str,
        query: Mapping[str, str] | None = None,
        *,
        seconds: int,
        silence: float = WATCH_SILENCE_SECONDS,
        linger: float = 0.0,
        metadata_only: bool = False,
    ) -> Watch:
        """What happens in a collection after `version`, for up to `seconds`, with bookmarks in between.

        ConflictError (410) when that version is forgotten: list again. UnavailableError when nothing at all
        is heard for `silence` seconds: the connection is dead. `metadata_only` as in `metadata_pages`. With
        `linger`, the reader rests so many seconds after a line it had to wait for, and then reads all that
        has come since: many lines at once cost a fraction of as many that each wake it.
        """
        asked: dict[str, str | int] = {"resourceVersion": version, "timeoutSeconds": seconds}
        asked |= {"watch": "true", "allowWatchBookmarks": "true", **(query or {})}
        accept = METADATA if metadata_only else JSON
        return Watch(path, self._send("GET", path, asked, accept=accept, stream_silence=silence), linger)

    def create(self, path: str, document: Document) -> Document:
        """POST to a collection; ConflictError when the name is taken."""
        return self._change("POST", path, document, JSON)

    def replace(self, path: str, document: Document) -> Document:
        """PUT; conditional when `document` carries a resourceVersion."""
        return self._change("PUT", path, document, JSON)

    def patch(self, path: str, change: object, kind: str = MERGE_PATCH) -> Document:
        """PATCH; conditional when `change` names uid or resourceVersion in its metadata."""
        return self._change("PATCH", path, change, kind)

    def delete(
        self, path: str, *, uid: str = "", resource_version: str = "", grace_seconds: int | None = None
    ) -> None:
        """DELETE, of exactly that uid and version where given; NotFoundError when it is gone already."""
        self._change("DELETE", path, _options(uid, resource_version, grace_seconds), JSON)

    def evict(self, namespace: str, name: str, *, uid: str = "", grace_seconds: int | None = None) -> None:
        """Ask for the pod to go, as its disruption budgets allow.

        ThrottledError with code `DisruptionBudget` when one refuses; ask again later.
        """
        document = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": _options(uid, "", grace_seconds),
        }
        self.create(f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", document)

    def _change(self, method: str, path: str, body: object, kind: str) -> Document:
        answer = self._send(method, path, {}, msgspec.json.encode(body), kind)
        return msgspec.json.decode(answer.data, type=Document) if answer.data else {}

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: bytes | None = None,
        kind: str = JSON,
        *,
        accept: str = JSON,
        stream_silence: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """The answer, read, unless `stream_silence` is given: then its body is still to come."""
        import urllib3

        url = self.server + quote(path, safe="/:%") + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": accept, "User-Agent": "kubekeeper"} | ({"Content-Type": kind} if body else {})
        if authorization := self._authorization():
            headers["Authorization"] = authorization
        how: dict[str, Any] = {}
        if stream_silence is not None:
            timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=stream_silence)
            how = {"preload_content": False, "timeout": timeout}
        try:
            answer = self._pool.request(method, url, body=body, headers=headers, **how)
            if how and answer.status >= 400:
                answer.read(cache_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError(
                f"cannot {method} {path}: no answer from Kubernetes at {self.server} ({_cause(error)}); "
                "check its address, certificate and the network"
            ) from error
        if answer.status >= 400:
            raise _error(method, path, answer)
        return answer


class Watch:
    """Lines of a running watch, undecoded, without the line's end: `{"type": ..., "object": ...}`.

    Ends when the server ends it. An ERROR line is raised as the error it says, a broken or silent connection
    as UnavailableError. `close` may come from another thread; the iteration then just ends.
    """

    def __init__(self, path: str, answer: urllib3.BaseHTTPResponse, linger: float = 0.0) -> None:
        self._path = path
        self._answer = answer
        self._linger = linger
        self._rest_at = 0.0
        self._waited = 0.0
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the watch; safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        # A thread that waits for bytes is not woken by closing the file, only by shutting the socket down.
        with suppress(ValueError, RuntimeError, OSError):
            self._answer.shutdown()
        with suppress(OSError):
            self._answer.close()

    def __iter__(self) -> Iterator[bytes]:
        rest = bytearray()
        while chunk := self._read():
            rest += chunk
            if chunk.find(b"\n") < 0:
                if len(rest) > MAX_LINE_BYTES:
                    raise ApiError(f"watch of {self._path}: a line of more than {MAX_LINE_BYTES} bytes")
                continue
            *lines, tail = bytes(rest).split(b"\n")
            rest = bytearray(tail)
            for line in lines:
                if line.startswith(_ERROR_LINE):
                    raise _line_error(self._path, line)
                yield line

    def _read(self) -> bytes:
        import urllib3

        began = time.monotonic()
        if self._linger and self._may_rest(began):
            self._closed.wait(self._linger)
            began = time.monotonic()
            self._rest_at = began + self._linger
        try:
            chunk = self._answer.read1(1 << 16, decode_content=False) or b""
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # urllib3 has many ways to say that the connection was shut under it.
            if self._closed.is_set():
                return b""
            raise UnavailableError(
                f"the watch of {self._path} broke off ({_cause(error)}); it is taken up again"
            ) from error
        self._waited = time.monotonic() - began
        return chunk

    def _may_rest(self, now: float) -> bool:
        """Whether the last line had to be waited for. On a busy machine any read may take a while: a flood is
        read for as long as was rested, or it would never end.
        """
        return self._waited > _IDLE_SECONDS or (self._waited > _WAITED_SECONDS and now >= self._rest_at)


_WAITED_SECONDS, _IDLE_SECONDS = 0.001, 0.02
_ERROR_LINE = b'{"type":"ERROR"'


class _Metadata(msgspec.Struct):
    token: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class _Cause(msgspec.Struct):
    reason: str = ""


class _Details(msgspec.Struct, rename="camel"):
    causes: list[_Cause] | None = None
    retry_after_seconds: float | None = None


class _Status(msgspec.Struct):
    reason: str = ""
    message: str = ""
    code: int = 0
    details: _Details | None = None


class _ErrorLine(msgspec.Struct):
    object: _Status


def kube_client(
    connection: KubernetesConnection,
    environ: Mapping[str, str],
    credential: Callable[[], TokenCredential] | None = None,
) -> KubeClient:
    """The cluster's API server, by what the configuration says; `credential` is the app's Entra identity,
    needed where `entra` is set. SettingsError names what cannot be used, never its content.
    """
    if connection.kubeconfig:
        return _from_kubeconfig(resolve_secret(connection.kubeconfig, environ))
    context = _context(connection, environ)
    if connection.token:
        reference = connection.token
        # Read anew for each request: projected service account tokens are replaced every hour.
        return KubeClient(
            connection.server or "", context, lambda: f"Bearer {resolve_secret(reference, environ).strip()}"
        )
    if connection.entra:
        assert credential is not None, "an Entra identity is needed for 'entra: true'"
        return KubeClient(connection.server or "", context, _EntraToken(credential))
    return KubeClient(connection.server or "", context, lambda: None)


def _context(connection: KubernetesConnection, environ: Mapping[str, str]) -> ssl.SSLContext | None:
    if not (connection.server or "").startswith("https:"):
        return None
    authority = resolve_secret(connection.ca, environ) if connection.ca else None
    try:
        context = ssl.create_default_context(cadata=authority)
    except ssl.SSLError as error:
        raise SettingsError(
            f"'kubernetes.ca' ({connection.ca}) holds no certificate in PEM; copy it again"
        ) from error
    if connection.certificate and connection.key:
        pair = [resolve_secret(reference, environ) for reference in (connection.certificate, connection.key)]
        _load_pair(context, *pair)
    return context


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # Python's ssl takes the pair from files only; they are readable by us alone and gone at once.
    with tempfile.TemporaryDirectory(prefix="kubekeeper-") as directory:
        files = Path(directory, "tls.crt"), Path(directory, "tls.key")
        for file, text in zip(files, (certificate, key), strict=True):
            file.touch(mode=0o600)
            file.write_text(text)
        try:
            context.load_cert_chain(*files)
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                "'kubernetes.certificate' and 'kubernetes.key' are no PEM pair that fits; copy them again"
            ) from error


def _from_kubeconfig(text: str) -> KubeClient:
    """Whatever the kubeconfig names (exec plugins too) is the official client's to read."""
    import yaml
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import load_kube_config_from_dict

    configuration = Configuration()
    try:
        document = yaml.safe_load(text)
        load_kube_config_from_dict(document, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise SettingsError(
            f"'kubernetes.kubeconfig' is no kubeconfig that can be used ({type(error).__name__}); "
            "try it with kubectl"
        ) from error
    context = None
    if configuration.host.startswith("https:"):
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if not configuration.verify_ssl:
            raise SettingsError(
                "'kubernetes.kubeconfig' switches certificate checks off; put the cluster's CA into it"
            )
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return KubeClient(configuration.host, context, lambda: _header(configuration))


def _header(configuration: Configuration) -> str | None:
    """The Authorization header; asking for it renews a token that has run out."""
    setting = configuration.auth_settings().get("BearerToken")
    value = setting["value"] if setting else None
    return str(value) if value else None


class _EntraToken:
    """`Bearer ...` for AKS, asked for anew before it ends."""

    def __init__(self, credential: Callable[[], TokenCredential]) -> None:
        self._make = credential
        self._lock = threading.Lock()
        self._token: tuple[float, str] | None = None

    def __call__(self) -> str:
        from shared.clients.azure import translated

        with self._lock:
            if self._token is None or self._token[0] - time.time() < _TOKEN_MARGIN_SECONDS:
                with translated("get a token for Kubernetes", service="Entra ID", remedies={}):
                    found = self._make().get_token(AKS_SCOPE)
                self._token = (found.expires_on, found.token)
            return f"Bearer {self._token[1]}"


def _options(uid: str, resource_version: str, grace_seconds: int | None) -> Document:
    conditions = {"uid": uid, "resourceVersion": resource_version}
    options: Document = {"apiVersion": "v1", "kind": "DeleteOptions"}
    if wanted := {name: value for name, value in conditions.items() if value}:
        options["preconditions"] = wanted
    if grace_seconds is not None:
        options["gracePeriodSeconds"] = grace_seconds
    return options


def _error(method: str, path: str, answer: urllib3.BaseHTTPResponse) -> ApiError:
    try:
        status = msgspec.json.decode(answer.data, type=_Status)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # a proxy in between answers in its own words
        status = _Status(message=answer.data[:200].decode(errors="replace"))
    details = status.details or _Details()
    code = next((cause.reason for cause in details.causes or () if cause.reason), status.reason)
    said = " ".join(status.message.split())[:300]
    line = f"cannot {method} {path}: {code or 'HTTP error'} ({answer.status}), {said}"
    if remedy := _REMEDIES.get(answer.status):
        line = f"{line}; {remedy}"
    if answer.status == 429:
        wait = details.retry_after_seconds or _number(answer.headers.get("Retry-After"), 10.0)
        return ThrottledError(line, retry_after_seconds=wait, code=code)
    kind = UnavailableError if answer.status >= 500 else _BY_STATUS.get(answer.status, ApiError)
    return kind(line, status=answer.status, code=code)


def _line_error(path: str, line: bytes) -> ApiError:
    try:
        status = msgspec.json.decode(line, type=_ErrorLine).object
    except (msgspec.MsgspecError, UnicodeDecodeError):
        status = _Status(message=line[:200].decode(errors="replace"))
    said = " ".join(status.message.split())[:300]
    kind = _BY_STATUS.get(status.code, UnavailableError)
    return kind(
        f"the watch of {path} ended: {status.reason or 'error'} ({status.code}), {said}",
        status=status.code or None,
        code=status.reason,
    )


def _number(text: str | None, default: float) -> float:
    try:
        return max(0.0, float(text or default))
    except ValueError:
        return default


def _cause(error: Exception) -> str:
    """The innermost reason: urllib3 wraps refusals, time-outs and certificate errors several times."""
    reason: BaseException = error
    while (inner := getattr(reason, "reason", None)) is not None and isinstance(inner, BaseException):
        reason = inner
    return type(reason).__name__
