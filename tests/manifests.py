"""The Kubernetes manifests under infra/, as text, as kustomize builds them, and as one edits them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sandbox.tools import CHECKOUT

FORWARDER = CHECKOUT / "infra/forwarder"
KUBERNETES = CHECKOUT / "infra/kubernetes"
OVERLAYS = [
    FORWARDER / "event-grid",
    FORWARDER / "event-grid-key",
    FORWARDER / "queues",
    KUBERNETES / "service-account",
    KUBERNETES / "entra",
]
"""What is meant to be applied."""
Document = dict[str, Any]
Rights = set[tuple[str, str, str]]
"""(API group, resource, verb); or ("", path, verb) of paths that are no resources."""


def kubectl() -> str | None:
    """The one of the control plane's version, or any."""
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", "/nonexistent"), "kubectl")
    return str(assets) if assets.exists() else shutil.which("kubectl")


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def build(folder: Path) -> list[Document]:
    """What `kubectl kustomize` makes of it."""
    command = kubectl()
    assert command is not None
    done = subprocess.run([command, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def edited(overlay: Path, folder: Path, words: Mapping[str, str], *, tls_secrets: bool = False) -> Path:
    """A copy of the manifests in `folder` in which the words in capitals are replaced; the overlay in it."""
    copy = folder / overlay.parent.name
    shutil.copytree(overlay.parent, copy, dirs_exist_ok=True)
    file = copy / overlay.name / "kustomization.yaml"
    text = file.read_text()
    for word, value in words.items():
        assert word in text, f"{word} is not in {overlay.name}"
        text = text.replace(word, value)
    if tls_secrets:
        text = text.replace("# - ../tls-secrets", "- ../tls-secrets")
        text = text.replace("# components: [../tls-secrets]", "components: [../tls-secrets]")
    file.write_text(text)
    return copy / overlay.name


def role(path: Path) -> Document:
    """The ClusterRole of a file."""
    (found,) = [one for one in documents(path.read_text()) if one["kind"] == "ClusterRole"]
    return found


def rights_of(role: Document) -> Rights:
    """All that a role allows."""
    return set(_rights(role["rules"]))


def _rights(rules: list[Document]) -> Iterator[tuple[str, str, str]]:
    for rule in rules:
        assert not {"resourceNames"} & set(rule)
        for verb in rule["verbs"]:
            for path in rule.get("nonResourceURLs", ()):
                yield "", path, verb
            for group in rule.get("apiGroups", ()):
                for resource in rule["resources"]:
                    yield group, resource, verb
