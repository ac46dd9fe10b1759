"""Which backups can be restored: a full, or a delta whose ancestors are all there and not bad. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from shared.model.backup import BackupRecord, Kind, VerdictState


class Lineage:
    """The backups of one cluster, joined to their parents."""

    def __init__(self, records: Iterable[BackupRecord]) -> None:
        self.records = tuple(sorted(records, key=lambda r: (r.started_at, r.revision, r.name)))
        """Oldest first."""
        self._by_name = {record.name: record for record in self.records}
        self._problems = {record.name: self._find_problem(record) for record in self.records}

    def ancestors(self, record: BackupRecord) -> tuple[BackupRecord, ...]:
        """The parent, its parent and so on, as far as they exist."""
        found: dict[str, BackupRecord] = {}
        name = record.parent
        while name in self._by_name and name not in found and name != record.name:
            found[name] = self._by_name[name]
            name = found[name].parent
        return tuple(found.values())

    def problem(self, record: BackupRecord) -> tuple[str, str] | None:
        """Why it cannot be restored, as (reason, message); None when nothing is known against it."""
        return self._problems[record.name]

    def is_restorable(self, record: BackupRecord) -> bool:
        """Nothing is known against it or any ancestor."""
        return self._problems[record.name] is None

    def is_proven(self, record: BackupRecord) -> bool:
        """Restorable, and its own verdict is *verified* (which reads the whole chain)."""
        return record.verdict is VerdictState.VERIFIED and self.is_restorable(record)

    def newest_proven(self, until: datetime) -> BackupRecord | None:
        """The newest proven backup that was not started after `until`."""
        return next((r for r in reversed(self.records) if self.is_proven(r) and r.started_at <= until), None)

    def full_of(self, record: BackupRecord) -> BackupRecord | None:
        """The full at the root of the chain."""
        chain = (record, *self.ancestors(record))
        return chain[-1] if chain[-1].kind is Kind.FULL else None

    def _find_problem(self, record: BackupRecord) -> tuple[str, str] | None:
        chain = (record, *self.ancestors(record))
        for link in chain:
            who = "it" if link is record else f"its ancestor {link.name}"
            if link.verdict is VerdictState.BAD:
                return (
                    "Bad" if link is record else "ParentBad",
                    f"{who} is bad ({link.verdict_reason or 'unknown'})",
                )
            if not link.data_present:
                return ("DataMissing" if link is record else "ParentMissing", f"{who} has lost its data blob")
        if chain[-1].kind is not Kind.FULL:
            return ("ParentMissing", f"its ancestor {chain[-1].parent or 'of no name'} does not exist")
        return None
