"""Azure Resource Manager as raw JSON: single resources, lists, conditional writes, long-running operations.

One client for every provider, because documents are handled whole: what a typed model drops would be
somebody else's configuration, and decoding by hand costs a fraction (measured: 22 times less). Transport,
authentication and retries of reads are those of azure-core. Writes are never repeated here: whether one took
effect is decided by looking again, not by asking twice.

Nobody waits for a long-running operation: a write answers `Begun` with the address to ask later, which may be
stored; `poll` refuses every address that is not the configured Resource Manager's own, so that a forged one
never sees our token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import msgspec

from shared.clients.azure import TIMEOUTS, bearer_token_policy, is_loopback, translated
from shared.errors import ApiError, MessageError, SettingsError
from shared.model.resource_id import parse_resource_id
from shared.trace import span

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.rest import HttpResponse
    from azure.mgmt.core import ARMPipelineClient

Document = dict[str, Any]

ENDPOINT_SETTING = "KUBEKEEPER_ARM_ENDPOINT"
"""App setting: where Resource Manager is, for clouds other than the public one (and for the local world)."""
PUBLIC_ENDPOINT = "https://management.azure.com"
ENDPOINTS = frozenset(
    {PUBLIC_ENDPOINT, "https://management.usgovcloudapi.net", "https://management.chinacloudapi.cn"}
)

API_VERSIONS = {
    "microsoft.authorization": "2022-04-01",
    "microsoft.compute": "2025-04-01",
    "microsoft.compute/disks": "2025-01-02",
    "microsoft.compute/snapshots": "2025-01-02",
    "microsoft.compute/skus": "2021-07-01",
    "microsoft.compute/locations": "2025-04-01",
    "microsoft.network": "2024-10-01",
    "microsoft.containerservice": "2025-10-01",
    "microsoft.storage": "2025-01-01",
    "microsoft.insights/metrics": "2024-02-01",
    "microsoft.resources": "2021-04-01",
}
"""By provider, or more exactly by provider and first type; lower case."""

_REMEDIES = {
    "401": "the identity belongs to another tenant than the subscription, or its token was refused",
    "403": "give the app's identity the role that the automation's page names",
    "SubscriptionNotFound": "check the subscription in the configuration, and the identity's tenant",
    "ResourceGroupNotFound": "check the resource group in the configuration",
}
# Only what got no answer at all is asked again at once, and only reads: an answer is the caller's to judge.
_READ_RETRY: Mapping[str, Any] = {"retry_total": 2, "retry_status": 0, "retry_backoff_factor": 0.5}
_OPERATION_PATH = re.compile(
    r"^/subscriptions/[0-9a-f-]{36}/.*/(operations|operationresults|operationstatuses)/[^/]+$", re.IGNORECASE
)
_ENDED = {"succeeded": "Succeeded", "failed": "Failed", "canceled": "Canceled", "cancelled": "Canceled"}


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it came, and when. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    read_at: datetime

    @property
    def document(self) -> Document:
        """The body as built-in types; an empty one for an empty body."""
        return msgspec.json.decode(self.body, type=Document) if self.body else {}

    @property
    def etag(self) -> str:
        """From the body, where ARM puts it, or the header; empty when the resource has none."""
        found = self.document.get("etag") or self.headers.get("etag") or ""
        return str(found)


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted write. `status_url` is where to ask how it goes on, empty when it `is_done` already."""

    status: int
    status_url: str
    retry_after_seconds: float
    body: bytes
    etag: str

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self.status_url


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How a long-running operation stands: InProgress, Succeeded, Failed or Canceled.

    An operation that a later one preempted is Failed here although HTTP says 200 (cloud-provider-azure#1356).
    """

    state: str
    code: str = ""
    message: str = ""
    retry_after_seconds: float = 10.0


class Arm:
    """Resource Manager as one identity sees it. Threads may share it. Errors are those of `shared.errors`."""

    def __init__(
        self, client: ARMPipelineClient[Any, Any], endpoint: str, now: Callable[[], datetime]
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._now = now

    def get(self, resource_id: str, **query: str) -> Answer:
        """One resource, or any other readable path below its id. NotFoundError carries ARM's code."""
        return self._send("GET", self._url(resource_id, query), f"read '{_short(resource_id)}'")

    def pages(self, path: str, **query: str) -> Iterator[bytes]:
        """The raw body of each page of a list (`/subscriptions/.../virtualMachines`)."""
        url, what = self._url(path, query), f"list '{_short(path)}'"
        while url:
            body = self._send("GET", url, what).body
            yield body
            url = msgspec.json.decode(body, type=_Page).next_link or ""
            if url:
                self._require_own(url)

    def put(self, resource_id: str, body: Document | bytes, *, if_match: str = "", **query: str) -> Begun:
        """Write the whole resource; with `if_match` only over that version (ConflictError otherwise)."""
        return self._begin(
            "PUT", self._url(resource_id, query), f"write '{_short(resource_id)}'", body, if_match
        )

    def patch(self, resource_id: str, body: Document, *, if_match: str = "") -> Begun:
        """Change parts of the resource."""
        url = self._url(resource_id, {})
        return self._begin("PATCH", url, f"change '{_short(resource_id)}'", body, if_match)

    def post(self, resource_id: str, action: str, body: Document | None = None, **query: str) -> Begun:
        """An action of the resource, such as `powerOff` (with skipShutdown="true")."""
        url = self._url(f"{resource_id}/{action}", query, versioned_as=resource_id)
        return self._begin("POST", url, f"{action} '{_short(resource_id)}'", body, "")

    def delete(self, resource_id: str, *, if_match: str = "", **query: str) -> Begun:
        """Delete the resource; NotFoundError when it is gone already."""
        url = self._url(resource_id, query)
        return self._begin("DELETE", url, f"delete '{_short(resource_id)}'", None, if_match)

    def poll(self, status_url: str) -> Progress:
        """How a long-running operation stands. MessageError for an address that is not Resource Manager's.

        NotFoundError when the service has forgotten the operation: then look at the resource itself.
        """
        self._require_own(status_url)
        if not _OPERATION_PATH.match(urlsplit(status_url).path):
            raise MessageError(
                f"'{urlsplit(status_url).path[:120]}' is no address of a long-running operation"
            )
        try:
            answer = self._send("GET", status_url, "ask about a long-running operation")
        except ApiError as error:
            # `Location` answers a failed operation with its error as the status of the request.
            if error.status in (400, 409, 412) and error.code:
                return Progress(state="Failed", code=error.code, message=str(error))
            raise
        return _progress(answer)

    def _begin(self, method: str, url: str, what: str, body: Document | bytes | None, if_match: str) -> Begun:
        with span(what, method=method):
            answer = self._send(method, url, what, body, {"If-Match": if_match} if if_match else {})
        status_url = answer.headers.get("azure-asyncoperation") or (
            answer.headers.get("location", "") if answer.status in (201, 202) else ""
        )
        return Begun(
            status=answer.status,
            status_url=status_url,
            retry_after_seconds=_retry_after(answer.headers),
            body=answer.body,
            etag=answer.etag if answer.body else answer.headers.get("etag", ""),
        )

    def _send(
        self,
        method: str,
        url: str,
        what: str,
        body: Document | bytes | None = None,
        headers: Mapping[str, str] = {},
    ) -> Answer:
        from azure.core.rest import HttpRequest

        content = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
        kind = {"Content-Type": "application/json"} if content is not None else {}
        request = HttpRequest(
            method, url, headers={"Accept": "application/json", **kind, **headers}, content=content
        )
        retry = _READ_RETRY if method == "GET" else {"retry_total": 0}
        with translated(what, service="Resource Manager", remedies=_REMEDIES):
            response: HttpResponse = self._client.send_request(request, **retry)
            if response.status_code >= 400:
                raise _http_error(response)
        return Answer(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=response.content,
            read_at=self._now(),
        )

    def _url(self, path: str, query: Mapping[str, str], versioned_as: str = "") -> str:
        if not path.startswith("/") or "?" in path or "#" in path or ".." in path:
            raise SettingsError(f"'{path[:120]}' is not a path of Resource Manager")
        version = {"api-version": api_version(versioned_as or path)}
        return f"{self._endpoint}{path}?{urlencode(version | dict(query))}"

    def _require_own(self, url: str) -> None:
        ours, theirs = urlsplit(self._endpoint), urlsplit(url)
        if (theirs.scheme, theirs.netloc.lower()) != (ours.scheme, ours.netloc.lower()):
            raise MessageError(
                f"'{theirs.hostname}' is not the configured Resource Manager; our token is not sent there"
            )


class _Page(msgspec.Struct):
    next_link: str | None = msgspec.field(default=None, name="nextLink")


def api_version(path: str) -> str:
    """The api-version used for a path, by the last provider it names; SettingsError for an unknown one."""
    _, found, rest = path.lower().rpartition("/providers/")
    if not found or (path.count("/") == 4 and "/" not in rest):  # a provider itself, as a subscription has it
        return API_VERSIONS["microsoft.resources"]
    namespace, _, types = rest.partition("/")
    first = types.partition("/")[0]
    version = API_VERSIONS.get(f"{namespace}/{first}") or API_VERSIONS.get(namespace)
    if version is None:
        raise SettingsError(f"'{namespace}' is not a resource provider that Kubekeeper works with")
    return version


def arm(
    environ: Mapping[str, str],
    *,
    credential: TokenCredential | None = None,
    now: Callable[[], datetime] | None = None,
) -> Arm:
    """Resource Manager as the app's own identity sees it, unless another is given; `now` dates what is
    read.
    """
    from azure.mgmt.core import ARMPipelineClient

    from shared.clients.storage import credential as app_credential

    endpoint = arm_endpoint(environ)
    policies = _policies(credential or app_credential(environ), endpoint)
    return Arm(
        ARMPipelineClient(base_url=endpoint, policies=policies),
        endpoint,
        now or (lambda: datetime.now(UTC)),
    )


def _policies(credential: TokenCredential, endpoint: str) -> list[Any]:
    from azure.core.pipeline import policies as p

    # The pipeline azure-mgmt-core itself would build, less resource provider registration and logging.
    scope = f"{PUBLIC_ENDPOINT if is_loopback(endpoint) else endpoint}/.default"
    return [
        p.RequestIdPolicy(),
        p.UserAgentPolicy(base_user_agent="kubekeeper"),
        p.RetryPolicy(**TIMEOUTS),
        bearer_token_policy(credential, scope),
        p.CustomHookPolicy(),
    ]


def arm_endpoint(environ: Mapping[str, str]) -> str:
    """Where Resource Manager is; SettingsError for a host that our token must not be sent to."""
    endpoint = environ.get(ENDPOINT_SETTING, PUBLIC_ENDPOINT).rstrip("/")
    url = urlsplit(endpoint)
    if endpoint in ENDPOINTS or (url.scheme in ("http", "https") and is_loopback(endpoint) and not url.path):
        return endpoint
    known = ", ".join(sorted(ENDPOINTS))
    raise SettingsError(
        f"app setting '{ENDPOINT_SETTING}' is not a Resource Manager of Azure; expected one of {known}"
    )


def _progress(answer: Answer) -> Progress:
    if answer.status == 202:
        return Progress(state="InProgress", retry_after_seconds=_retry_after(answer.headers))
    document = answer.document
    error = document.get("error") or {}
    code, message = str(error.get("code") or ""), " ".join(str(error.get("message") or "").split())
    status = document.get("status")
    state = _ENDED.get(str(status).lower(), "InProgress") if isinstance(status, str) else "Succeeded"
    preempted = document.get("resultCode") or (document.get("properties") or {}).get("resultCode")
    if state == "Succeeded" and preempted and str(preempted) not in ("Succeeded", "OK"):
        state, code = "Failed", str(preempted)
    return Progress(state=state, code=code, message=message, retry_after_seconds=_retry_after(answer.headers))


def _http_error(response: HttpResponse) -> Exception:
    from azure.core.exceptions import HttpResponseError
    from azure.mgmt.core.exceptions import ARMErrorFormat

    return HttpResponseError(response=response, error_format=ARMErrorFormat)


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return max(1.0, float(headers.get("retry-after", "10")))
    except ValueError:
        return 10.0


def _short(path: str) -> str:
    """The type and name at the end of an id: enough to find it, without a line of slashes."""
    try:
        found = parse_resource_id(path)
    except SettingsError:
        return path
    return f"{found.types[-1]}/{'/'.join(found.names)}"
