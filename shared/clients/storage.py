"""How the blob, queue and table clients reach the storage account, and what its errors become.

Owns the reading of the connection settings (`AzureWebJobsStorage` as a connection string, or identity-based
`AzureWebJobsStorage__accountName` and its relatives, as the Functions host itself reads them), time-outs and
retries, and the one translation of azure-core exceptions into `shared.errors`. SDKs are imported when first
used: importing this module costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from shared.errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    SettingsError,
    ThrottledError,
    UnavailableError,
)

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.exceptions import AzureError, HttpResponseError

CONNECTION = "AzureWebJobsStorage"
"""The setting (or prefix of settings) of the function app's own storage account."""

# A run is seconds long and its message is redelivered anyway: three quick retries, not the SDK's minute.
RETRIES = 3
TIMEOUTS: Mapping[str, int] = {"connection_timeout": 5, "read_timeout": 60}

_UNAVAILABLE_CODES = frozenset({"ServerBusy", "OperationTimedOut", "InternalError"})

ServiceT = TypeVar("ServiceT")


def connect(
    environ: Mapping[str, str],
    service: str,
    from_string: Callable[..., ServiceT],
    from_url: Callable[..., ServiceT],
    *,
    options: Mapping[str, Any],
    connection: str = CONNECTION,
) -> ServiceT:
    """A service client for `service` (`blob`, `queue` or `table`) of the account that `connection` names.

    SettingsError when neither form of the connection is set or the connection string is malformed.
    """
    text = environ.get(connection)
    if text:
        try:
            return from_string(text, **options)
        except ValueError as error:
            # The SDK's own text may quote the connection string, so it is not repeated.
            raise SettingsError(
                f"app setting '{connection}' is not a storage connection string; copy it again"
            ) from error
    url = environ.get(f"{connection}__{service}ServiceUri")
    account = environ.get(f"{connection}__accountName")
    if not url and account:
        url = f"https://{account}.{service}.core.windows.net"
    if not url:
        raise SettingsError(
            f"no storage account is configured; set '{connection}' (connection string) or "
            f"'{connection}__accountName' (managed identity)"
        )
    return from_url(url, credential=credential(environ, connection), **options)


def credential(environ: Mapping[str, str], connection: str = CONNECTION) -> TokenCredential:
    """The Entra credential the settings `<connection>__credential` and `__clientId` ask for.

    `managedidentity` means exactly that; otherwise the usual chain, which serves developers too.
    """
    client_id = environ.get(f"{connection}__clientId")
    if environ.get(f"{connection}__credential", "").lower() == "managedidentity":
        from azure.identity import ManagedIdentityCredential

        return ManagedIdentityCredential(client_id=client_id) if client_id else ManagedIdentityCredential()
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential(managed_identity_client_id=client_id)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn an azure-core exception into ours; `what` completes the sentence "cannot ...".

    Costs one context manager per request; nothing but azure-core exceptions is touched.
    """
    try:
        yield
    except Exception as error:
        azure_error = _azure_error(error)
        if azure_error is None:
            raise
        raise translate(azure_error, what) from error


def _azure_error(error: Exception) -> AzureError | None:
    # azure.core is certainly loaded by now if the SDK raised; asking sys.modules keeps this import out of the
    # start-up path of code that never fails.
    from azure.core.exceptions import AzureError

    return error if isinstance(error, AzureError) else None


def translate(error: AzureError, what: str) -> ApiError:
    """The error of ours for an azure-core exception: one line, without request bodies or signatures."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

    if not isinstance(error, HttpResponseError):
        return UnavailableError(
            f"cannot {what}: no answer from the storage account ({type(error).__name__}); "
            "check its address, firewall and that it is running"
        )
    status, code, request_id = _facts(error)
    if status is None and isinstance(error, ClientAuthenticationError):
        # Its text is a page long and quotes requests; Entra ID's code says what is wrong.
        found = re.search(r"AADSTS\d+", str(error))
        why = found[0] if found else "no usable identity"
        return ForbiddenError(
            f"cannot {what}: no token from Entra ID ({why}); check the managed identity or its federated "
            "credential, client id and secret",
            code=found[0] if found else None,
        )
    line = f"cannot {what}: {code or 'HTTP error'} ({status or 'no status'})"
    if status in (401, 403):
        kind: type[ApiError] = ForbiddenError
        line += "; check the connection string, or the roles of the identity"
    elif status == 429 or code == "ServerBusy":
        return ThrottledError(
            line, retry_after_seconds=_retry_after(error), status=status, code=code, request_id=request_id
        )
    elif status is None or status >= 500 or code in _UNAVAILABLE_CODES:
        kind = UnavailableError
        line += "; the service is in trouble, try again later"
    elif code == "PopReceiptMismatch":  # a 400, but it says that somebody else has the message now
        kind = ConflictError
    else:
        kind = {404: NotFoundError, 409: ConflictError, 412: ConflictError}.get(status, ApiError)
    return kind(line, status=status, code=code, request_id=request_id)


def _facts(error: HttpResponseError) -> tuple[int | None, str | None, str | None]:
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    code = getattr(error, "error_code", None) or headers.get("x-ms-error-code")
    text = str(getattr(code, "value", code)) if code else None
    return error.status_code, text, headers.get("x-ms-request-id")


def _retry_after(error: HttpResponseError) -> float:
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    try:
        return float(headers.get("Retry-After", "30"))
    except ValueError:
        return 30.0
