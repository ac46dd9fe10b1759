"""Identities of a real control plane that may do what infra/ allows, and proof of what they may not."""

from __future__ import annotations

import base64
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from manifests import KUBERNETES, Document, Rights

from sandbox.controlplane import ControlPlane
from sandbox.kube_client import KubeClient

AUTOMATIONS = sorted(
    path.stem for path in (KUBERNETES / "roles").glob("*.yaml") if path.stem != "kustomization"
)
"""Those that have a role in a cluster."""
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
SECRET = "/api/v1/namespaces/kubekeeper/secrets/kubekeeper-token"
EVERYBODY: Rights = {
    ("authentication.k8s.io", "selfsubjectreviews", "create"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
}
"""What Kubernetes lets every user do: ask who it is and what it may."""
METHODS = {
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
    "deletecollection": "DELETE",
}
NOBODY = "no-such-object"


def kubectl(plane: ControlPlane, *arguments: str | Path) -> str:
    """As administrator; the test fails with what it says on stderr."""
    command = [plane.kubectl, "--kubeconfig", plane.kubeconfig(), *arguments]
    home = {"HOME": str(plane.directory), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=home)
    assert done.returncode == 0, done.stderr
    return done.stdout


def connection_of_app(plane: ControlPlane, automation: str) -> Document:
    """`kubernetes` of the configuration: the account of infra/kubernetes/service-account, bound to the role
    of that automation alone, as its bindings.yaml advises.
    """
    kubectl(plane, "apply", "-k", KUBERNETES / "service-account")
    admin = plane.client()
    for other in set(AUTOMATIONS) - {automation}:
        admin.delete(f"{BINDINGS}/kubekeeper-{other}")
    data = _until_there(admin)
    files = {"ca": plane.directory / "app-ca.pem", "token": plane.directory / "app-token"}
    for name, file in files.items():
        file.touch(mode=0o600)
        file.write_bytes(base64.b64decode(data["ca.crt" if name == "ca" else name]))
    return {"server": plane.server, **{name: f"file:{file}" for name, file in files.items()}}


def _until_there(admin: KubeClient) -> Document:
    deadline = time.monotonic() + 30
    while not (data := admin.get(SECRET).get("data") or {}).get("token"):
        assert time.monotonic() < deadline, "no token in the Secret"
        time.sleep(0.1)
    return data


def client_with(plane: ControlPlane, token: str) -> KubeClient:
    return KubeClient(plane.server, ca=plane.directory / "ca.pem", token=token)


def allowed(client: KubeClient) -> Rights:
    """Every right that the API server does not refuse, by trying each verb on each resource it serves.

    What is allowed does nothing either: it is asked for an object that there is not, or as a dry run.
    """
    found = set()
    for group, path, resource in _served(client):
        for verb in resource["verbs"]:
            if _try(client, path, resource, verb) != 403:
                found.add((group, resource["name"], verb))
    return found


def served(client: KubeClient) -> set[tuple[str, str]]:
    """(group, resource) of all that the API server has."""
    return {(group, resource["name"]) for group, _, resource in _served(client)}


def _served(client: KubeClient) -> Iterator[tuple[str, str, Document]]:
    places = [("", "/api/v1")]
    places += [
        (group["name"], f"/apis/{group['preferredVersion']['groupVersion']}")
        for group in client.get("/apis")["groups"]
    ]
    for group, path in places:
        for resource in client.get(path)["resources"]:
            yield group, path, resource


def _try(client: KubeClient, path: str, resource: Document, verb: str) -> int:
    """The status of one attempt, cluster-wide where it can be."""
    plural, _, below = resource["name"].partition("/")
    is_of_one = below or verb in ("get", "update", "patch", "delete")
    if resource["namespaced"] and (is_of_one or verb in ("create", "deletecollection")):
        path = f"{path}/namespaces/default"
    path = f"{path}/{plural}" + (f"/{NOBODY}" if is_of_one else "") + (f"/{below}" if below else "")
    query: dict[str, str | int] = {}
    if verb == "watch":
        query = {"watch": "true", "timeoutSeconds": 1}
    elif verb == "list":
        query = {"limit": 1}
    elif verb != "get":
        query = {"dryRun": "All", "fieldSelector": f"metadata.name={NOBODY}"}
    kind = "application/merge-patch+json" if verb == "patch" else "application/json"
    body = {} if verb in ("create", "update", "patch") else None
    method = METHODS.get(verb, "GET")
    answer = client.send(method, path, query=query, body=body, content_type=kind, stream=verb == "watch")
    status = answer.status
    answer.close()
    return status
