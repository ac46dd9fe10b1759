"""Every etcd version at hand: what `sandbox.tools` finds, and what `.ci/etcd/build` put into its cache.

For the compatibility table only. Everything else runs on `sandbox.tools.etcd()`, so that a machine's cache
does not change what its tests and its demo run on.
"""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.tools import Etcd, etcd_installations


def cache_directory() -> Path:
    """One folder per version; the same place that `.ci/etcd/build` names."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kubekeeper" / "etcd"


def etcd_versions() -> tuple[Etcd, ...]:
    """One installation of each version, oldest first; empty when there is none."""
    found = {installation.version: installation for installation in (*_cached(), *etcd_installations())}
    return tuple(found[version] for version in sorted(found))


def _cached() -> list[Etcd]:
    cached = []
    for directory in sorted(cache_directory().glob("3.*.*")):
        parts = directory.name.split(".")
        etcd, etcdctl, etcdutl = (directory / name for name in ("etcd", "etcdctl", "etcdutl"))
        if etcd.exists() and etcdctl.exists() and all(part.isdigit() for part in parts):
            version = tuple(int(part) for part in parts)
            cached.append(Etcd(etcd, etcdctl, etcdutl if etcdutl.exists() else None, version))
    return cached
