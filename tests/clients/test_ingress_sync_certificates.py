"""TLS Secrets: what is said of them without showing the key, and the PFX a gateway gets."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import pkcs12

from sandbox.certificates import Authority
from shared.ingress_sync.certificates import BadSecretError, facts, pfx

AUTHORITY = Authority("Test CA")
ISSUED = AUTHORITY.issue("web", names=("a.example", "*.b.example"))


def secret(certificate: str | None = ISSUED.certificate, key: str | None = ISSUED.key) -> dict[str, Any]:
    data = {"tls.crt": certificate, "tls.key": key}
    encoded = {
        name: base64.b64encode(text.encode()).decode() for name, text in data.items() if text is not None
    }
    return {"metadata": {"name": "tls", "namespace": "shop"}, "type": "kubernetes.io/tls", "data": encoded}


def test_facts_name_hosts_and_expiry_and_never_hold_the_key() -> None:
    expiry = datetime(2027, 3, 1, tzinfo=UTC)
    issued = AUTHORITY.issue("web", names=("a.example", "*.b.example"), not_after=expiry)
    found = facts(secret(issued.certificate, issued.key))
    assert (found.problem, found.dns_names, found.not_after) == ("", ("a.example", "*.b.example"), expiry)
    key_lines = [line for line in issued.key.splitlines() if "PRIVATE" not in line]
    assert not any(line in repr(found) for line in key_lines)


def test_digest_changes_with_the_certificate_only() -> None:
    one, again = facts(secret()), facts({**secret(), "metadata": {"name": "other", "namespace": "x"}})
    renewed = AUTHORITY.issue("web", names=("a.example",))
    assert one.digest == again.digest
    assert facts(secret(renewed.certificate, renewed.key)).digest != one.digest


def test_pfx_holds_leaf_chain_and_key_and_its_repr_shows_neither() -> None:
    made = pfx(secret(ISSUED.certificate + AUTHORITY.pem))
    key, leaf, chain = pkcs12.load_key_and_certificates(base64.b64decode(made.data), made.password.encode())
    assert key is not None and leaf is not None
    assert leaf.public_bytes(serialization.Encoding.PEM).decode() == ISSUED.certificate
    assert [c.public_bytes(serialization.Encoding.PEM).decode() for c in chain] == [AUTHORITY.pem]
    assert made.password not in repr(made) and made.data not in repr(made)
    assert pfx(secret()).password != made.password


def encrypted_key() -> str:
    key = serialization.load_pem_private_key(ISSUED.key.encode(), None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    ).decode()


def ed25519_key() -> str:
    return (
        ed25519.Ed25519PrivateKey.generate()
        .private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        .decode()
    )


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (secret(certificate=None), "it has no 'tls.crt'"),
        (secret(key=None), "it has no 'tls.key'"),
        (secret(certificate="not PEM"), "'tls.crt' is not a certificate in PEM"),
        (secret(key="not PEM"), "'tls.key' is not a private key in PEM"),
        (secret(key=AUTHORITY.issue("other").key), "'tls.key' is not the key of the first certificate"),
        (secret(key=encrypted_key()), "'tls.key' is encrypted"),
        (secret(key=ed25519_key()), "neither an RSA nor an elliptic curve key"),
        ({"metadata": {}, "data": {"tls.crt": "%", "tls.key": "%"}}, "is not base64"),
        ({"metadata": {}}, "it has no 'tls.crt'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_secret_is_said_without_showing_it(bad: dict[str, Any], says: str) -> None:
    found = facts(bad)
    assert says in found.problem
    with pytest.raises(BadSecretError) as raised:
        pfx(bad)
    for value in (bad.get("data") or {}).values():
        assert len(value) < 3 or (value not in str(raised.value) and value not in repr(found))


def test_a_chain_too_long_for_a_gateway_is_refused_with_its_size() -> None:
    chain = ISSUED.certificate + AUTHORITY.pem * 40
    with pytest.raises(BadSecretError, match=r"takes \d+ bytes, more than the 16384"):
        pfx(secret(chain))


def test_an_expired_certificate_still_has_facts() -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    issued = AUTHORITY.issue("web", names=("a.example",), not_before=past - timedelta(days=1), not_after=past)
    assert facts(secret(issued.certificate, issued.key)).not_after == past.replace(microsecond=0)
