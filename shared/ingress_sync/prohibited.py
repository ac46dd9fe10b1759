"""AzureIngressProhibitedTarget: hosts and paths that Ingress objects must not take, as AGIC reads them.

A deny-list is not what protects the parts of others here (ownership is); it is honoured for those who move.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.model.ingress import ProhibitedTarget


class Prohibited:
    """The deny-list of a cluster."""

    def __init__(self, targets: Iterable[ProhibitedTarget] = ()) -> None:
        self._targets = [
            (one.spec.hostname.lower(), tuple(path.lower() for path in one.spec.paths or ()))
            for one in targets
        ]

    def covers(self, host: str, path: str) -> bool:
        """Whether a path of a host ("" is any) is on the list; case does not matter."""
        return bool(self._targets) and any(
            (not denied_host or denied_host == host)
            and (not paths or any(covers_path(denied, path) for denied in paths))
            for denied_host, paths in self._targets
        )


def covers_path(denied: str, path: str) -> bool:
    """`/x/*` covers `/x`, `/X/` and `/x/y/*`, not `/blah`; `/` only itself; `/*` everything, even ""."""
    wanted, given = denied.lower(), path.lower()
    if wanted in ("*", "/*"):
        return True
    if wanted.endswith("*"):
        start = wanted.rstrip("*").rstrip("/")
        bare = given.rstrip("*").rstrip("/")
        return bare == start or bare.startswith(start + "/")
    return given == wanted or (wanted != "/" and given.rstrip("/") == wanted.rstrip("/"))
