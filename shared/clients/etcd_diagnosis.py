"""Why a connection to an etcd member fails, in one line an operator can act on.

gRPC reports almost every connection problem as `UNAVAILABLE: failed to connect to all addresses`. After
such a failure the client asks this module, which repeats the connection by hand: name, TCP, TLS without and
with verification. It also reads a member's clock. It only looks: no request reaches etcd, and the client's
key is used for nothing but the handshake.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

_TIMEOUT_SECONDS = 2.0

# OpenSSL's X509_V_ERR_* numbers, as ssl.SSLCertVerificationError.verify_code carries them.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
_HOSTNAME_MISMATCH = frozenset({62, 64})

_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING"})


@dataclass(frozen=True)
class Finding:
    """`code` is a CamelCase reason; `message` says what is wrong and what to do, without naming the
    endpoint.
    """

    code: str
    message: str


@dataclass(frozen=True)
class TlsMaterial:
    """What the client presents and expects; PEM bytes. Never printed."""

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None
    server_name: str | None

    def __repr__(self) -> str:
        return "TlsMaterial(...)"


def diagnose(host: str, port: int, *, is_tls: bool, tls: TlsMaterial, now: datetime) -> Finding | None:
    """The first thing wrong on the way to `host:port`, or None when the connection itself is fine."""
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS):
            pass
    except socket.gaierror:
        return Finding("NameNotFound", f"the name '{host}' cannot be resolved; check the endpoint and DNS")
    except ConnectionRefusedError:
        return Finding(
            "ConnectionRefused",
            "connection refused; check that the member runs and that host and port are right",
        )
    except OSError as error:
        reason = "no answer to the TCP connection" if isinstance(error, TimeoutError) else str(error.strerror)
        return Finding("Unreachable", f"{reason}; check routes, firewalls and network security groups")
    try:
        return _diagnose_tls(host, port, tls, now) if is_tls else _diagnose_plain(host, port)
    except TimeoutError:
        return Finding(
            "NoAnswer", "the port is open but nothing answers; the member may be paused or overloaded"
        )
    except OSError as error:
        return Finding(
            "ConnectionLost", f"the connection breaks off ({error.strerror or error}); look at etcd's log"
        )


def certificate_finding(pem: bytes, whose: str, remedy: str, now: datetime) -> Finding | None:
    """Expired, not yet valid or unreadable `pem`; `whose` is `client` or `server`."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return Finding("BadCertificate", f"the {whose} certificate is not a PEM certificate; {remedy}")
    return _validity(certificate, whose, remedy, now)


def read_date(host: str, port: int, *, is_tls: bool, tls: TlsMaterial) -> datetime | None:
    """The member's clock, to the second, as its HTTP side tells it; None when that does not answer.

    gRPC answers carry no time. Where etcd serves HTTP elsewhere (`--listen-client-http-urls`), the clock is
    unknown.
    """
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS) as raw:
            stream = (
                _verified(tls).wrap_socket(raw, server_hostname=tls.server_name or host) if is_tls else raw
            )
            stream.sendall(f"GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            response = HTTPResponse(stream)
            response.begin()
            date = response.getheader("Date")
            stream.close()
    except (OSError, HTTPException):
        return None
    return parsedate_to_datetime(date) if date else None


def _verified(tls: TlsMaterial) -> ssl.SSLContext:
    """As gRPC connects: the configured CA (else the system's), our certificate."""
    context = ssl.create_default_context(cadata=tls.ca.decode() if tls.ca else None)
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)  # gRPC is not that strict either
    return _with_certificate(context, tls)


def _validity(certificate: x509.Certificate, whose: str, remedy: str, now: datetime) -> Finding | None:
    if now > certificate.not_valid_after_utc:
        when = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        return Finding("CertificateExpired", f"the {whose} certificate expired on {when}; {remedy}")
    if now < certificate.not_valid_before_utc:
        when = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return Finding(
            "CertificateNotYetValid",
            f"the {whose} certificate is valid only from {when}; check the clocks or {remedy}",
        )
    return None


def _diagnose_plain(host: str, port: int) -> Finding | None:
    try:
        _handshake(host, port, _unverified(), None)
    except ssl.SSLError as error:
        if "ALERT" not in str(error.reason):  # an alert is TLS too: it demands a client certificate
            return None
    except TimeoutError:
        raise
    except OSError:
        return None
    return Finding("NeedsTls", "the member speaks TLS; write the endpoint as https:// and set etcd.tls")


def _diagnose_tls(host: str, port: int, tls: TlsMaterial, now: datetime) -> Finding | None:
    from cryptography import x509

    server: x509.Certificate | None = None
    try:
        server = x509.load_der_x509_certificate(_handshake(host, port, _unverified(tls), tls.server_name))
    except _PairError:
        return Finding(
            "BadCertificate", "etcd.tls.certificate and etcd.tls.key do not belong together; replace both"
        )
    except ssl.SSLError as error:
        if error.reason in _NO_TLS:
            return Finding("NotTls", "the member does not speak TLS; write the endpoint as http://")
        # Otherwise the member refuses us, and TLS 1.2 then hides its certificate.
    finding = _validity(server, "server", "renew it on the member", now) if server else None
    if finding:
        return finding
    return _verify(host, port, tls, server) or _client_certificate(host, port, tls, now)


def _verify(host: str, port: int, tls: TlsMaterial, server: x509.Certificate | None) -> Finding | None:
    """What Python's own verification says against the configured CA and the expected name."""
    try:
        context = _verified(tls)
    except ssl.SSLError:
        return Finding(
            "BadCertificate", "etcd.tls.ca is not a PEM certificate; give the CA that signed etcd's"
        )
    try:
        _handshake(host, port, context, tls.server_name or host)
    except ssl.SSLCertVerificationError as error:
        return _verification(error, tls.server_name or host, server)
    except ssl.SSLError:
        return None  # the server passed, so it is our side that was refused
    return None


def _verification(error: ssl.SSLCertVerificationError, name: str, server: x509.Certificate | None) -> Finding:
    if error.verify_code in _HOSTNAME_MISMATCH:
        names = f"is for {', '.join(_names(server)) or 'no name'}, not" if server else "is not"
        return Finding(
            "HostnameMismatch",
            f"the server certificate {names} for '{name}'; correct the endpoint or set etcd.tls.serverName",
        )
    if error.verify_code in _UNKNOWN_AUTHORITY:
        issuer = f" ({server.issuer.rfc4514_string() or 'unnamed'})" if server else ""
        return Finding(
            "UnknownAuthority",
            f"the server certificate is signed by an unknown authority{issuer}; "
            "set etcd.tls.ca to the CA that signed etcd's certificates",
        )
    if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
        whose = "a CA certificate (etcd.tls.ca)" if server else "the server certificate or its CA's"
        return Finding("CertificateExpired", f"{whose} is out of its validity; renew it")
    return Finding(
        "CertificateRefused", f"the server certificate is refused: {error.verify_message}; replace it"
    )


def _client_certificate(host: str, port: int, tls: TlsMaterial, now: datetime) -> Finding | None:
    """The server is fine, so look at our side: expired, or demanded and absent, or refused."""
    if tls.certificate:
        finding = certificate_finding(tls.certificate, "client", "renew etcd.tls.certificate", now)
        if finding:
            return finding
    if _is_accepted(host, port, tls):
        return None
    if not tls.certificate:
        return Finding(
            "ClientCertificateMissing",
            "the member demands a client certificate; set etcd.tls.certificate and etcd.tls.key",
        )
    return Finding(
        "ClientCertificateRefused",
        "the member refuses the client certificate; use one signed by the CA etcd trusts (--trusted-ca-file)",
    )


def _is_accepted(host: str, port: int, tls: TlsMaterial) -> bool:
    """Whether the member talks on. In TLS 1.3 it refuses a client only after the handshake, at the first
    read.
    """
    try:
        with (
            socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS) as raw,
            _unverified(tls).wrap_socket(raw, server_hostname=tls.server_name) as connection,
        ):
            connection.settimeout(1.0)
            connection.recv(1)
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def _handshake(host: str, port: int, context: ssl.SSLContext, server_name: str | None) -> bytes:
    """The server's certificate, DER."""
    with (
        socket.create_connection((host, port), timeout=_TIMEOUT_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=server_name) as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""


def _unverified(tls: TlsMaterial | None = None) -> ssl.SSLContext:
    """For looking at a certificate that verification would refuse; nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _with_certificate(context, tls) if tls else context


def _with_certificate(context: ssl.SSLContext, tls: TlsMaterial) -> ssl.SSLContext:
    if tls.certificate and tls.key:
        with _file_of(tls.certificate + b"\n" + tls.key) as path:
            try:
                context.load_cert_chain(path)
            except ssl.SSLError as error:
                raise _PairError from error
    return context


class _PairError(ssl.SSLError):
    """Certificate and key cannot be used together."""


@contextmanager
def _file_of(secret: bytes) -> Iterator[str]:
    """A path to the bytes, for the one function of `ssl` that takes only paths; in memory where the system
    can.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("kubekeeper")
        try:
            os.write(descriptor, secret)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile() as file:  # readable by this user alone
        file.write(secret)
        file.flush()
        yield file.name


def _names(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def utc_now() -> datetime:
    """The clock certificates are judged by."""
    return datetime.now(UTC)
