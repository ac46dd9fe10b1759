"""Who asks, and whether they may: bearer tokens, and RBAC read from the role objects in the store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.kube import kinds
from sandbox.kube.errors import RefusalError
from sandbox.kube.kinds import Kind
from sandbox.kube.store import Document, Selection, Store

ADMINISTRATORS = "system:masters"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_GROUP = "rbac.authorization.k8s.io"
_BINDINGS = (kinds.named("rolebindings", _GROUP), kinds.named("clusterrolebindings", _GROUP))
_ROLES = {"Role": kinds.named("roles", _GROUP), "ClusterRole": kinds.named("clusterroles", _GROUP)}


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...]


class Tokens:
    """The users of a cluster, known by their tokens."""

    def __init__(self) -> None:
        self._users: dict[str, User] = {}
        self._tokens: dict[User, str] = {}

    def issue(self, name: str, groups: tuple[str, ...]) -> str:
        """The user's token; the same each time."""
        user = User(name, groups)
        if user not in self._tokens:
            self._tokens[user] = secrets.token_urlsafe(24)
            self._users[self._tokens[user]] = user
        return self._tokens[user]

    def user(self, authorization: str) -> User:
        """Who an Authorization header stands for; 401 for nobody."""
        user = self._users.get(authorization.removeprefix("Bearer ").strip())
        if user is None:
            raise RefusalError(401, "Unauthorized", "Unauthorized")
        return user


@dataclass(frozen=True)
class Attempt:
    """What RBAC is asked about. `resource` carries its subresource: `pods/eviction`."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


def check(store: Store, user: User, attempt: Attempt) -> None:
    """403 in the real server's words, unless the user may."""
    if may(store, user, attempt):
        return
    subject = f'{attempt.resource} "{attempt.name}"' if attempt.name else attempt.resource
    if attempt.group:
        plural, _, rest = subject.partition(" ")
        subject = f"{plural}.{attempt.group}" + (f" {rest}" if rest else "")
    where = f'in the namespace "{attempt.namespace}"' if attempt.namespace else "at the cluster scope"
    message = (
        f'{subject} is forbidden: User "{user.name}" cannot {attempt.verb} resource "{attempt.resource}" '
        f'in API group "{attempt.group}" {where}'
    )
    details: Document = {"kind": attempt.resource.partition("/")[0]}
    details |= {"name": attempt.name} if attempt.name else {}
    details |= {"group": attempt.group} if attempt.group else {}
    raise RefusalError(403, "Forbidden", message, details)


def may(store: Store, user: User, attempt: Attempt) -> bool:
    """Whether any role bound to the user or its groups allows it."""
    if ADMINISTRATORS in user.groups:
        return True
    return any(_allows(rule, attempt) for rule in _rules(store, user, attempt.namespace))


def review(store: Store, user: User, question: Document) -> Document:
    """A SelfSubjectAccessReview, answered."""
    asked = (question.get("spec") or {}).get("resourceAttributes") or {}
    subresource = asked.get("subresource")
    resource = asked.get("resource", "") + (f"/{subresource}" if subresource else "")
    attempt = Attempt(
        asked.get("verb", ""),
        asked.get("group", ""),
        resource,
        asked.get("namespace", ""),
        asked.get("name", ""),
    )
    head = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {}}
    return {**head, "spec": question.get("spec") or {}, "status": {"allowed": may(store, user, attempt)}}


def _rules(store: Store, user: User, namespace: str) -> Iterator[Document]:
    for kind in _BINDINGS:
        if kind.is_namespaced and not namespace:
            continue
        for record in store.select(kind, Selection(namespace if kind.is_namespaced else "")):
            binding = record.decode()
            if any(_is(subject, user, namespace) for subject in binding.get("subjects") or ()):
                yield from _role_rules(store, binding["roleRef"], kind, namespace)


def _role_rules(store: Store, reference: Document, binding: Kind, namespace: str) -> list[Document]:
    kind = _ROLES[reference["kind"]]
    record = store.get(kind, (namespace if kind.is_namespaced else "", reference["name"]))
    return (
        (record.decode().get("rules") or [])
        if record and (binding.is_namespaced or kind.plural != "roles")
        else []
    )


def _is(subject: Document, user: User, namespace: str) -> bool:
    if subject["kind"] == "Group":
        return subject["name"] in user.groups
    name = subject["name"]
    if subject["kind"] == "ServiceAccount":
        name = f"system:serviceaccount:{subject.get('namespace', namespace)}:{name}"
    return bool(name == user.name)


def _allows(rule: Document, attempt: Attempt) -> bool:
    resources = rule.get("resources") or ()
    plural, _, subresource = attempt.resource.partition("/")
    named = (
        attempt.resource in resources or "*" in resources or (subresource and f"*/{subresource}" in resources)
    )
    names = rule.get("resourceNames")
    return bool(
        named
        and {attempt.verb, "*"}.intersection(rule.get("verbs") or ())
        and {attempt.group, "*"}.intersection(rule.get("apiGroups") or ())
        and (not names or attempt.name in names)
        and plural
    )
