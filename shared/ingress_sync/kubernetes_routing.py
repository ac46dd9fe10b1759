"""What Kubernetes says becomes of a request, told from the objects alone.

An interpreter of the Ingress API's semantics, independent of the compiler:

* of the hosts that objects name, an exact one beats a wildcard (which stands for exactly one label) beats
  none; once a host is chosen, only its paths count;
* the longest path that matches wins, Exact before Prefix; Exact is the very path, Prefix goes by segments;
* ImplementationSpecific is what AGIC's documentation says: as written, with `*` at the end for anything;
* a default backend comes after every rule of its host; of two that ask for the same, the object that is
  first by namespace and name has it.

A service's targets are its ready endpoints, or those that still serve when none is ready. Pure; called by
`proof`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import msgspec

from shared.ingress_sync.gateway_routing import NOTHING, Answer, host_pattern


class Statement(msgspec.Struct, frozen=True, gc=False):
    """One thing that one object says: this path of this host goes there.

    `answer` is the backend as an answer (targets, port and how), or a redirect.
    """

    owner: str
    path: str
    path_type: str
    answer: Answer
    is_default: bool = False


class HostRules:
    """All statements about one host, in the order of objects."""

    def __init__(self, statements: Iterable[Statement], *, within_segment: bool = False) -> None:
        self.statements = list(statements)
        self._within_segment = within_segment
        self._exact: dict[str, Statement] = {}
        self._written: dict[str, Statement] = {}
        self._segments: dict[str, Statement] = {}
        self._starts: list[tuple[str, Statement]] = []
        self._everything: Statement | None = None
        self._fallback: Statement | None = None
        self._folded: dict[bool, HostRules] = {}
        for statement in self.statements:
            self._add(statement)
        self._starts.sort(key=lambda one: (-len(one[0]), one[1].path_type != "Prefix"))

    def _add(self, statement: Statement) -> None:
        path, kind = statement.path, statement.path_type
        if statement.is_default:
            self._fallback = self._fallback or statement
        elif kind == "Exact":
            self._exact.setdefault(path.rstrip("*"), statement)
        elif path.rstrip("*").strip("/") == "":
            if self._everything is None or (kind == "Prefix" and self._everything.path_type != "Prefix"):
                self._everything = statement
        elif path.endswith("*") or (kind == "Prefix" and self._within_segment):
            start = path.rstrip("*") if path.endswith("*") else path.rstrip("/")
            if not any(known == start and one.path_type == kind for known, one in self._starts):
                self._starts.append((start, statement))
        elif kind == "Prefix":
            self._segments.setdefault(path.rstrip("/"), statement)
        else:
            self._written.setdefault(path, statement)

    def find(self, path: str) -> Statement | None:
        """The statement that a path falls under."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact
        segment, length = None, 0
        candidate = path if self._segments else ""
        while candidate:
            segment = self._segments.get(candidate)
            if segment is not None:
                length = len(candidate)
                break
            candidate = candidate[: candidate.rfind("/")]
        # A path that is written is as long as a path can be; a prefix of the very same path comes first.
        written = self._written.get(path)
        if written is not None and length < len(path):
            return written
        for start, statement in self._starts:
            if path.startswith(start):
                # `/a/` of a prefix is longer than `/a` with a star, and as long as `/a/` with one.
                if segment is None or len(start) > length + (len(path) > length):
                    return statement
                break
        return segment or self._everything or self._fallback

    def folded(self, *, root: bool) -> HostRules:
        """The same rules as the platform can have them: paths in lower case, with `root` an Exact `/` as a
        Prefix that comes after every other.
        """
        known = self._folded.get(root)
        if known is None:
            said = [
                msgspec.structs.replace(one, path=one.path.lower())
                for one in self.statements
                if not (root and _is_exact_root(one))
            ]
            if root and not any(one.is_default for one in said):
                roots = [one for one in self.statements if _is_exact_root(one)]
                said += [msgspec.structs.replace(one, path="/", is_default=True) for one in roots]
            known = self._folded[root] = HostRules(said, within_segment=self._within_segment)
        return known


class KubernetesRouting:
    """The hosts of one frontend, port and protocol."""

    def __init__(self) -> None:
        self.hosts: dict[str, HostRules] = {}

    def find(self, host: str) -> HostRules | None:
        """The rules that a host falls under; None when nobody speaks of it."""
        name = self.match(host)
        return None if name is None else self.hosts[name]

    def match(self, host: str) -> str | None:
        """The host as objects name it ("" is any) that a request's host falls under."""
        folded = host.lower()
        if folded in self.hosts:
            return folded
        label, _, rest = folded.partition(".")
        if label and rest and f"*.{rest}" in self.hosts:
            return f"*.{rest}"
        odd = next((name for name in self.odd if _matches(name, folded)), None)
        return odd if odd is not None else "" if "" in self.hosts else None

    @cached_property
    def odd(self) -> list[str]:
        """Hosts with AGIC's own wildcards (`?`, or `*` elsewhere), the most specific first."""
        found = [name for name in self.hosts if "?" in name or "*" in name.removeprefix("*.")]
        return sorted(found, key=lambda name: (-name.count("."), name))

    def answer(self, host: str, path: str) -> Answer:
        """What becomes of a request, and nothing when nobody speaks of it."""
        rules = self.find(host)
        found = rules.find(path) if rules else None
        return found.answer if found else NOTHING


def _matches(pattern: str, host: str) -> bool:
    return host_pattern(pattern).fullmatch(host) is not None


def _is_exact_root(statement: Statement) -> bool:
    return statement.path_type == "Exact" and statement.path.rstrip("*").strip("/") == ""
