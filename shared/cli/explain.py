"""`keeper explain`: what became of an operation, or the evidence that one action rests on.

An id is that of an operation, as `keeper run` printed it, or that of a piece of evidence (`ev-...`), as the
journal, Kubernetes Events and outgoing events name it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.console import print_json, print_line, when
from shared.cli.session import JsonOption, Session, session

if TYPE_CHECKING:
    from shared.runtime.journal import Entry
    from shared.runtime.operation import OperationRecord

EVIDENCE = "ev-"
"""How the ids of proofs begin; see `shared.runtime.evidence`."""
_QUIET = frozenset({"event", "final"})


def register(app: typer.Typer) -> None:
    """Add the command to `keeper`."""
    app.command("explain")(explain)


def explain(
    context: typer.Context,
    operation_id: Annotated[
        str,
        typer.Argument(
            metavar="OPERATION-ID", help="As 'keeper run' printed it, or the id of evidence (ev-...)."
        ),
    ],
    as_json: JsonOption = False,
) -> int:
    """What became of an operation, and the evidence behind each of its actions."""
    here = session(context)
    if operation_id.startswith(EVIDENCE):
        return _explain_evidence(here, operation_id, as_json=as_json)
    return _explain_operation(here, operation_id, as_json=as_json)


def _explain_operation(here: Session, operation_id: str, *, as_json: bool) -> int:
    from shared.errors import NotFoundError
    from shared.operations.dispatch import get_operation

    record = get_operation(here.clients, operation_id)
    entries = here.clients.journal.of_operation(operation_id)
    if record is None and not entries:
        raise NotFoundError(
            f"no operation '{operation_id}' has been taken off the queue; "
            "check the id, or that the app runs and 'keeper poison list' is empty"
        )
    if as_json:
        print_json({"operation": record, "entries": entries})
    else:
        _print_operation(record, entries)
    return 0


def _print_operation(record: OperationRecord | None, entries: list[Entry]) -> None:
    if record:
        parameters = " ".join(f"{key}={value}" for key, value in record.parameters.items())
        print_line(f"{record.operation} of {record.cluster} {parameters}".rstrip())
        print_line(f"  state     {record.state}, attempts {record.attempts}")
        print_line(f"  accepted  {when(record.accepted_at)} UTC, last change {when(record.updated_at)} UTC")
        for name, text in (("progress", record.progress), ("message", record.message)):
            if text:
                print_line(f"  {name:<9} {text}")
    for entry in reversed(entries):
        print_line()
        print_line(f"{when(entry.at)} {entry.status} {entry.action or entry.kind} {entry.target}".rstrip())
        print_line(f"  {entry.reason}: {entry.message}" if entry.reason else f"  {entry.message}")
        for line in entry.evidence:
            print_line(f"  evidence: {line}")
        for key, value in entry.data.items():
            if value not in (None, "", [], {}) and key not in _QUIET:
                print_line(f"  {key}: {_readable(value)}")


def _readable(value: Any) -> str:
    """A fact of the journal: plain values as they are, others as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def _explain_evidence(here: Session, identity: str, *, as_json: bool) -> int:
    """One proof, checked again on the spot; exit code 1 when it does not hold."""
    from shared.disk_release.proof import lines, read_certificate, verify
    from shared.runtime.claim import CONTAINER
    from shared.runtime.evidence import read_evidence

    names = [cluster.name for cluster in here.settings.clusters]
    data = read_evidence(here.clients.blobs(CONTAINER), names, "disk-release", identity)
    certificate = read_certificate(data)
    if as_json:
        print_json(json.loads(data))
    else:
        for line in lines(certificate):
            print_line(line)
    return 0 if verify(certificate).is_sound else 1
