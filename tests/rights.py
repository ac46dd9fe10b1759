"""What each automation needs to be allowed, derived from the requests it really makes in tests.

Every test run notes which right each request of the product's two clients takes, and for which automation:
tests/conftest.py calls `install` and `save`. Then

    python tests/rights.py check DIRECTORY    # exit 1 when infra/ allows too little or too much
    python tests/rights.py write DIRECTORY    # writes infra/actions.json and infra/kubernetes/roles/*.yaml

compare or write what is deployed. The notes of one whole `make test` are what counts; a part of the tests
shows a part of the rights.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHECKOUT = Path(__file__).resolve().parents[1]
NOTES = CHECKOUT / "build" / "rights"
ACTIONS = CHECKOUT / "infra" / "actions.json"
MANIFESTS = CHECKOUT / "infra" / "kubernetes" / "roles"
PACKAGES = {
    "autoscaling": "autoscaling",
    "disk_release": "disk-release",
    "ingress_sync": "ingress-sync",
    "nodes": "autoscaling",
}
LINKED = {
    "Microsoft.Compute/virtualMachines/write": ["Microsoft.Network/networkInterfaces/join/action"],
    "Microsoft.Compute/virtualMachineScaleSets/write": [
        "Microsoft.Network/virtualNetworks/subnets/join/action"
    ],
    "Microsoft.Network/networkInterfaces/write": ["Microsoft.Network/virtualNetworks/subnets/join/action"],
    "Microsoft.Network/applicationGateways/write": [
        "Microsoft.Network/virtualNetworks/subnets/join/action",
        "Microsoft.Network/publicIPAddresses/join/action",
        "Microsoft.Network/applicationGatewayWebApplicationFirewallPolicies/join/action",
        "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
    ],
}
"""What Azure asks for besides, on whatever a written document refers to; no request shows it."""
KUBE_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
ARM_VERBS = {"GET": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}
AKS = "Microsoft.ContainerService/"

Note = tuple[str, str, str]
"""Automation, where the right is given (kube, group, subscription), the right."""
_seen: set[Note] = set()


# --- what a request takes ---


def kube_right(method: str, url: str) -> str | None:
    """`group resource verb`, such as `policy poddisruptionbudgets list`; None for what needs no right."""
    parts = urlsplit(url)
    words = [word for word in parts.path.split("/") if word]
    if len(words) < 2 or words[0] not in ("api", "apis"):
        return None
    group, rest = ("", words[2:]) if words[0] == "api" else (words[1], words[3:])
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    resource, name, below = (*rest, "", "", "")[:3]
    verb = KUBE_VERBS.get(method) or ("get" if name else "list")
    if method == "GET" and parse_qs(parts.query).get("watch"):
        verb = "watch"
    return f"{group or '-'} {resource}{'/' + below if below else ''} {verb}"


def arm_right(method: str, url: str) -> tuple[str, str]:
    """(scope, action): `("group", "Microsoft.Compute/virtualMachines/powerOff/action")`."""
    path = urlsplit(url).path
    scope = "group" if "/resourcegroups/" in path.lower() else "subscription"
    _, found, rest = path.rpartition("/providers/")
    if not found:
        base = "Microsoft.Resources/subscriptions" + ("/resourceGroups" if scope == "group" else "")
        return scope, f"{base}/resources/read" if path.endswith("/resources") else f"{base}/read"
    namespace, *words = rest.split("/")
    types, names = words[0::2], words[1::2]
    if len(types) > len(names) and method == "POST":
        return scope, "/".join((namespace, *types[:-1], types[-1], "action"))
    return scope, "/".join((namespace, *types, ARM_VERBS[method]))


# --- taking notes ---


def install() -> None:
    """Let both clients note what they send from now on, in this process."""
    from shared.clients.arm import Arm
    from shared.clients.kube import KubeClient

    KubeClient._send = _noting(KubeClient._send, _note_kube)  # type: ignore[method-assign]
    Arm._send = _noting(Arm._send, _note_arm)  # type: ignore[method-assign]


def save(worker: str) -> None:
    """The notes of this process, beside those of others."""
    NOTES.mkdir(parents=True, exist_ok=True)
    (NOTES / f"{worker}.json").write_text(json.dumps(sorted(_seen)))


def _noting(send: Callable[..., Any], note: Callable[[Any, tuple[Any, ...]], None]) -> Callable[..., Any]:
    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        note(self, arguments)
        return send(self, *arguments, **options)

    return noted


def _note_kube(client: Any, arguments: tuple[Any, ...]) -> None:
    method, path, query = (*arguments, {})[:3]
    watch = "?watch=1" if isinstance(query, dict) and query.get("watch") else ""
    right = kube_right(method, path + watch)
    if right and (automation := _automation()):
        _seen.add((automation, "kube", right))


def _note_arm(client: Any, arguments: tuple[Any, ...]) -> None:
    if automation := _automation():
        scope, action = arm_right(arguments[0], arguments[1])
        _seen.add((automation, scope, action))


def _automation() -> str | None:
    """The automation on whose behalf the request is made: the outermost of its frames says so."""
    frame = sys._getframe(2)
    found = None
    while frame is not None:
        found = _automation_of(frame.f_code.co_filename) or found
        frame = frame.f_back  # type: ignore[assignment]
    return found


@cache  # a request has some fifty frames, of always the same files
def _automation_of(filename: str) -> str | None:
    match = re.search(r"/shared/(\w+)/\w+\.py$|/shared/(\w+)/\w+/\w+\.py$", filename)
    return PACKAGES.get(match[1] or match[2]) if match else None


# --- what is deployed ---


def read_notes(directory: Path) -> set[Note]:
    """Of all processes; actions that differ in case only are one, as they are to Azure."""
    notes = {(a, k, r) for file in directory.glob("*.json") for a, k, r in json.loads(file.read_text())}
    spelled: dict[str, str] = {}
    for word in sorted(word for _, _, right in notes for word in right.split("/")):
        spelled.setdefault(word.lower(), word)  # capitals sort first, and ids in documents have them
    return {
        (automation, kind, "/".join(spelled[word.lower()] for word in right.split("/")))
        for automation, kind, right in notes
    }


def actions_of(notes: Iterable[Note]) -> dict[str, dict[str, list[str]]]:
    """As infra/actions.json: roles by name, and by the scope they are given at."""
    roles: dict[str, dict[str, set[str]]] = defaultdict(lambda: {"group": set(), "subscription": set()})
    for automation, scope, action in notes:
        if scope != "kube":
            name = f"{automation}-aks" if action.startswith(AKS) else automation
            roles[name][scope] |= {action, *LINKED.get(action, ())}
    return {name: {s: sorted(found) for s, found in roles[name].items()} for name in sorted(roles)}


def manifests_of(notes: Iterable[Note]) -> dict[str, str]:
    """As infra/kubernetes: file name to ClusterRole, one for each automation."""
    rules: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    for automation, kind, right in notes:
        if kind == "kube":
            group, resource, verb = right.split()
            rules[automation][group.replace("-", "", 1) if group == "-" else group, resource].add(verb)
    return {f"{name}.yaml": _cluster_role(name, found) for name, found in sorted(rules.items())}


def _cluster_role(automation: str, rules: dict[tuple[str, str], set[str]]) -> str:
    lines = [
        "# Written by tests/rights.py from the requests that the tests recorded. Do not edit.",
        "apiVersion: rbac.authorization.k8s.io/v1",
        "kind: ClusterRole",
        "metadata:",
        f"  name: kubekeeper-{automation}",
        "rules:",
    ]
    for (group, resource), verbs in sorted(rules.items()):
        lines += [
            f'  - apiGroups: ["{group}"]',
            f'    resources: ["{resource}"]',
            f"    verbs: [{', '.join(sorted(verbs))}]",
        ]
    return "\n".join(lines) + "\n"


def wanted(notes: set[Note]) -> dict[Path, str]:
    """Every file that follows from the notes."""
    files = {ACTIONS: json.dumps(actions_of(notes), indent=2) + "\n"}
    return files | {MANIFESTS / name: text for name, text in manifests_of(notes).items()}


def main(arguments: list[str]) -> int:
    command, directory = arguments[0], Path(arguments[1]) if len(arguments) > 1 else NOTES
    files = wanted(read_notes(directory))
    if command == "write":
        MANIFESTS.mkdir(exist_ok=True)
        for path, text in files.items():
            path.write_text(text)
        return 0
    wrong = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in wrong:
        sys.stdout.write(f"{path.relative_to(CHECKOUT)} does not say what the tests needed; ")
        sys.stdout.write("look at the difference after: make rights\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
