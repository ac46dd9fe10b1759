"""Configuration of the fleet (`kubekeeper.yaml`) and app settings, as typed and validated values.

Owns the shape of both and the error lines for what is wrong in them. Reads files and the environment only through
`load_settings`; secrets are resolved by `resolve_secret` when a client needs them and never stored in these values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shared.errors import SettingsError
from shared.etcd_backup.policy import EtcdBackupPolicy

Automation = Literal["autoscaling", "etcd-backup", "disk-release", "ingress-sync"]
SecretRef = Annotated[str, msgspec.Meta(pattern=r"^(file:|setting:).+")]
"""`file:/path` or `setting:NAME` (an app setting, which may be a Key Vault reference); never the secret itself."""


class EtcdTls(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """PEM documents for mTLS to etcd."""

    ca: SecretRef
    certificate: SecretRef | None = None
    key: SecretRef | None = None
    server_name: str | None = None
    """Name to expect in the server's certificate when it is not the host of the endpoint."""


class EtcdConnection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """How to reach a cluster's etcd members."""

    endpoints: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """`https://10.0.0.4:2379` per member (http only where etcd has no TLS)."""
    tls: EtcdTls | None = None
    user: str | None = None
    password: SecretRef | None = None


class Cluster(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One Kubernetes cluster of the fleet."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    etcd: EtcdConnection | None = None
    etcd_backup: EtcdBackupPolicy | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The whole of kubekeeper.yaml."""

    clusters: Annotated[tuple[Cluster, ...], msgspec.Meta(min_length=1)]

    def cluster(self, name: str) -> Cluster:
        """The named cluster; SettingsError names the ones that exist."""
        for cluster in self.clusters:
            if cluster.name == name:
                return cluster
        known = ", ".join(c.name for c in self.clusters)
        raise SettingsError(f"unknown cluster '{name}'; the configuration has: {known}")


def parse_settings(text: str | bytes, source: str) -> Settings:
    """YAML (or JSON) text to Settings; SettingsError names `source`, the key and what is expected there."""
    raise NotImplementedError  # filled by the owner of settings


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the path or blob URL in KUBEKEEPER_CONFIG."""
    raise NotImplementedError


def resolve_secret(reference: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text behind `file:` or `setting:`; SettingsError says which file or setting is missing, never its content."""
    kind, _, name = reference.partition(":")
    if kind == "setting":
        if name not in environ:
            raise SettingsError(f"app setting '{name}' is not set, but the configuration refers to it")
        return environ[name]
    try:
        return Path(name).read_text()
    except OSError as error:
        raise SettingsError(f"cannot read '{name}', which the configuration refers to: {error.strerror}") from error
