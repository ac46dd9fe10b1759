"""What the Key Vault and Resource Manager clients share: whom our token may be shown to, and what their
errors become.

Bearer tokens travel over https only, except to this very machine: so the local world is reached with the
same code, and no setting exists that could switch encryption off on the way to a real service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared.errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.core.pipeline import PipelineRequest
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy

# A Functions run is seconds long and is delivered again: few retries here.
RETRY: Mapping[str, Any] = {"retry_total": 2, "retry_backoff_factor": 0.5}
TIMEOUTS: Mapping[str, Any] = {"connection_timeout": 5, "read_timeout": 30}

_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    412: ConflictError,
}


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine: 127.0.0.0/8, ::1 or localhost."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def bearer_token_policy(credential: TokenCredential, scope: str) -> BearerTokenCredentialPolicy[Any, Any]:
    """The SDK's own authentication policy (with claims challenges), which also accepts http to this machine.

    Clients offer `enforce_https` per request only, so the policy sets it for the requests it may go without.
    """
    from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

    class LoopbackPolicy(ARMChallengeAuthenticationPolicy):
        def on_request(self, request: PipelineRequest[Any]) -> None:
            if is_loopback(request.http_request.url):
                request.context.options["enforce_https"] = False
            super().on_request(request)

    return LoopbackPolicy(credential, scope)


@contextmanager
def translated(what: str, *, service: str, remedies: Mapping[str, str]) -> Iterator[None]:
    """Turn an azure-core exception into one of ours; nothing else is touched.

    `what` completes "cannot ..."; `remedies` says what to do, by the service's error code or, less exactly,
    by the HTTP status as text: `{"KeyDisabled": ..., "403": ...}`.
    """
    try:
        yield
    except Exception as error:
        from azure.core.exceptions import AzureError  # loaded already, or there was no such error

        if not isinstance(error, AzureError):
            raise
        raise translate(error, what, service=service, remedies=remedies) from error


def translate(error: AzureError, what: str, *, service: str, remedies: Mapping[str, str]) -> ApiError:
    """One line without request bodies and tokens; the service's own message is kept, it names the cause."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

    if not isinstance(error, HttpResponseError):
        return UnavailableError(
            f"cannot {what}: no answer from {service} ({type(error).__name__}); "
            "check its address and the network"
        )
    if isinstance(error, ClientAuthenticationError) and error.response is None:
        return ForbiddenError(
            f"cannot {what}: this process has no usable Azure identity; "
            "give the app a managed identity, or sign in with `az login`"
        )
    status = error.status_code
    code, message = _code_and_message(error)
    facts: dict[str, Any] = {"status": status, "code": code, "request_id": _header(error, "x-ms-request-id")}
    line = f"cannot {what}: {code or 'HTTP error'} ({status or 'no status'})" + (
        f", {message}" if message else ""
    )
    if remedy := remedies.get(code or "", remedies.get(str(status))):
        line = f"{line}; {remedy}"
    if status == 429:
        return ThrottledError(
            f"{line}; it will be tried again", retry_after_seconds=_retry_after(error), **facts
        )
    if status is None or status >= 500:
        return UnavailableError(f"{line}; {service} is in trouble, it will be tried again", **facts)
    return _BY_STATUS.get(status, ApiError)(line, **facts)


def _code_and_message(error: HttpResponseError) -> tuple[str | None, str]:
    """The innermost code is the one that says why (Key Vault: `Forbidden` outside, `KeyDisabled` inside)."""
    if error.error is None:
        return None, ""
    code = error.error.code
    inner: Any = error.error.innererror
    while isinstance(inner, dict) and inner:
        code, inner = inner.get("code", code), inner.get("innererror")
    sentence = " ".join((error.error.message or "").split()).rstrip(".;")
    return code, sentence if len(sentence) <= 600 else sentence[:600] + "..."


def _header(error: HttpResponseError, name: str) -> str | None:
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    return headers.get(name)


def _retry_after(error: HttpResponseError) -> float:
    try:
        return max(0.0, float(_header(error, "Retry-After") or 30))
    except ValueError:
        return 30.0
