"""TLS Secrets: what may be said of them in an observation, and the PFX that a gateway takes.

Only this module sees private keys. A Secret enters an observation as `facts`: a digest of certificate and
key, names, the time of expiry, or what is wrong with it. The bytes are read again when a gateway is written,
and go from the Secret into the request and nowhere else: not into plans, snapshots, the journal or a log.
Called by `observe` and `act`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from shared.model.ingress import CertificateFacts

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

MAX_PFX_BYTES = 16 * 1024
"""What Application Gateway takes for one certificate."""

CERTIFICATE, KEY = "tls.crt", "tls.key"

KNOWN_MOST = 2000
_KNOWN: dict[str, CertificateFacts] = {}
"""Facts by digest, for passes that look at the same Secrets again; holds no key, and may be lost."""


class Pfx(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate as a gateway takes it: `data` is base64. Its repr shows neither data nor password."""

    data: str
    password: str

    def __repr__(self) -> str:
        return f"Pfx({len(self.data)} characters)"


class BadSecretError(Exception):
    """A Secret that no certificate can be made of; the text says what to change, and shows no data."""


def facts(secret: Mapping[str, Any]) -> CertificateFacts:
    """What a Secret (as the API returns it) contains; never raises for what is in it."""
    digest = _digest_of(secret)
    found = _KNOWN.get(digest)
    if found is None:
        if len(_KNOWN) >= KNOWN_MOST:
            _KNOWN.clear()
        found = _KNOWN[digest] = _facts(secret, digest)
    return found


def _facts(secret: Mapping[str, Any], digest: str) -> CertificateFacts:
    try:
        leaf, _, _ = _opened(secret)
    except BadSecretError as error:
        return CertificateFacts(digest=digest, problem=str(error))
    return CertificateFacts(
        digest=digest,
        not_after=leaf.not_valid_after_utc,
        dns_names=_dns_names(leaf),
        subject=leaf.subject.rfc4514_string(),
    )


def pfx(secret: Mapping[str, Any]) -> Pfx:
    """Certificate, chain and key of a Secret as PKCS #12, under a password that is used this once.

    BadSecretError when it cannot be made.
    """
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption
    from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

    leaf, chain, key = _opened(secret)
    password = secrets.token_urlsafe(24)
    data = serialize_key_and_certificates(
        b"kubekeeper",
        key,  # type: ignore[arg-type]  # DH keys, which PKCS #12 cannot hold, were refused by `_opened`
        leaf,
        chain or None,
        BestAvailableEncryption(password.encode()),
    )
    if len(data) > MAX_PFX_BYTES:
        raise BadSecretError(
            f"the certificate with its chain takes {len(data)} bytes, more than the {MAX_PFX_BYTES} that "
            "Application Gateway accepts; leave the root out of the chain"
        )
    return Pfx(data=base64.b64encode(data).decode(), password=password)


def _digest_of(secret: Mapping[str, Any]) -> str:
    """Of certificate and key as they stand in the Secret; a salt of our own keeps it from being looked up."""
    data = secret.get("data") or {}
    parts = [str(data.get(name) or "").encode() for name in (CERTIFICATE, KEY)]
    return hashlib.sha256(b"kubekeeper/tls\0" + b"\0".join(parts)).hexdigest()


def _opened(secret: Mapping[str, Any]) -> tuple[Certificate, list[Certificate], PrivateKeyTypes]:
    """Leaf, rest of the chain, key; BadSecretError unless they are usable together."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = secret.get("data") or {}
    certificate, key_text = _decoded(data, CERTIFICATE), _decoded(data, KEY)
    try:
        chain = x509.load_pem_x509_certificates(certificate)
    except ValueError as error:
        raise BadSecretError(f"'{CERTIFICATE}' is not a certificate in PEM; store one there") from error
    try:
        # Its public half is compared with the certificate's; checking primes takes 50 ms a key.
        key = load_pem_private_key(key_text, None, unsafe_skip_rsa_key_validation=True)
    except TypeError as error:
        raise BadSecretError(f"'{KEY}' is encrypted; store it without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadSecretError(f"'{KEY}' is not a private key in PEM; store one there") from error
    _check_pair(chain[0], key)
    return chain[0], chain[1:], key


def _decoded(data: Mapping[str, Any], name: str) -> bytes:
    text = data.get(name)
    if not isinstance(text, str) or not text:
        raise BadSecretError(f"it has no '{name}'; a TLS Secret needs '{CERTIFICATE}' and '{KEY}'")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSecretError(f"'{name}' is not base64") from error


def _check_pair(leaf: Certificate, key: PrivateKeyTypes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey):
        raise BadSecretError(f"'{KEY}' is neither an RSA nor an elliptic curve key; issue one of these")
    ours, theirs = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), leaf.public_key())
    )
    if ours != theirs:
        raise BadSecretError(f"'{KEY}' is not the key of the first certificate in '{CERTIFICATE}'")


def _dns_names(leaf: Certificate) -> tuple[str, ...]:
    """Names the certificate is for, in its own order."""
    from cryptography import x509

    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(names.get_values_for_type(x509.DNSName))
