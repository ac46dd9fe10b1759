"""Names of parts: a prefix that tells whose they are, a kind, something readable, and a digest.

The same thing always has the same name. Names have at most 80 characters of letters, digits, `_`, `-`, `.`,
end in a letter or digit, and do not depend on case.
"""

from __future__ import annotations

import hashlib
import re

MAX_NAME = 80
_OTHER = re.compile(r"[^a-z0-9-]+")


def prefix_of(cluster: str, configured: str | None) -> str:
    """What every name of this cluster's parts begins with; no cluster's is the beginning of another's."""
    if configured:
        return configured if configured.endswith(("_", "-")) else configured + "_"
    short = cluster if len(cluster) <= 20 else f"{cluster[:13]}-{digest(cluster, 6)}"
    return f"kk_{short}_"


def digest(text: str, length: int = 8) -> str:
    """The beginning of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def readable(text: str, most: int = 30) -> str:
    """A text as far as a name can show it."""
    return _OTHER.sub("-", text.lower().replace("*", "wild"))[:most].strip("-") or "any"


class Names:
    """Names of one cluster's parts."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def of(self, kind: str, shown: str, identity: str) -> str:
        """`<prefix><kind>_<shown>_<digest of identity>`."""
        room = MAX_NAME - len(self.prefix) - len(kind) - 11
        return f"{self.prefix}{kind}_{readable(shown, min(room, 40))}_{digest(identity)}"

    def port(self, number: int) -> str:
        return f"{self.prefix}port_{number}"

    def certificate(self, certificate_digest: str) -> str:
        """Content-addressed: a certificate that changes is another one."""
        return f"{self.prefix}cert_{digest(certificate_digest, 24)}"
