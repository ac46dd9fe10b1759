"""The limits an operator may set for etcd backups of one cluster; pure values with defaults.

Every field is a key under `etcdBackup` in kubekeeper.yaml (camelCase). Durations are strings (`6h`), parsed
by `shared.model.duration`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from shared.model.duration import Duration

Count = Annotated[int, msgspec.Meta(ge=0)]


class Retention(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """How many backups to keep: the newest of each of the last N hours, days, weeks, months that have one."""

    hourly: Count = 24
    """Hours that keep their newest backup."""
    daily: Count = 7
    """Days (UTC) that keep their newest backup."""
    weekly: Count = 5
    """ISO weeks that keep their newest backup."""
    monthly: Count = 12
    """Months that keep their newest backup."""


class Encryption(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """AES-256-GCM, a data key per backup, wrapped by exactly one of two keys. Losing it loses the backups."""

    key_vault_key: str | None = None
    """Key identifier, `https://VAULT.vault.azure.net/keys/NAME/VERSION`."""
    key_file: str | None = None
    """`file:/path` or `setting:NAME` of a 32-byte key, base64."""


class EtcdBackupPolicy(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What an operator decides about backups of one cluster."""

    enabled: bool = True
    """`false` stops everything here for this cluster; to rest for a while, use the operation `pause`."""
    schedule: str = "0 * * * *"
    """Cron, five fields, UTC: when a backup is due."""
    objective: Duration = "2h"
    """Alarm `EtcdBackup.Missed` when no verified backup is younger than this."""
    full_every: Duration = "1d"
    """Take a full instead of an incremental when the last full is older than this."""
    max_chain: Annotated[int, msgspec.Meta(ge=0, le=200)] = 30
    """Incrementals after one full before the next full; 0 turns incrementals off."""
    max_raft_lag: Annotated[int, msgspec.Meta(ge=0)] = 5000
    """A member whose applied raft index trails the highest seen by more than this is not a source."""
    stall_timeout: Duration = "60s"
    """A snapshot stream without progress for this long is ended."""
    total_timeout: Duration = "20m"
    """A snapshot stream may take this long altogether."""
    drill_schedule: str | None = None
    """Cron, five fields, UTC: when to restore the newest backup into a throw-away etcd; none by default."""
    container: str = "etcd-backups"
    """Blob container, in the function app's storage account, that holds the backups."""
    retention: Retention = Retention()
    """How many backups to keep."""
    encryption: Encryption | None = None
    """Encrypt backups before they leave the app; off by default (Azure encrypts at rest by itself)."""
