"""`keeper run` and `status`: send one-off operations, and see what was done."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.console import ago, print_json, print_line, print_note, print_table, progress, when
from shared.cli.session import ClusterOption, JsonOption, Session, session
from shared.errors import SettingsError, UnavailableError
from shared.model.wording import counted

if TYPE_CHECKING:
    from shared.operations.catalogue import Operation
    from shared.runtime.journal import Summary
    from shared.runtime.operation import OperationRecord

POLL_SECONDS = 0.5
NOBODY_TOOK_IT = timedelta(seconds=30)
"""An idle queue is looked at once a minute at worst; after half of that it is worth saying so."""


def register(app: typer.Typer) -> None:
    """Add the commands to `keeper`."""
    app.command("run")(run)
    app.command("status")(status)


def _complete_operation(incomplete: str) -> list[tuple[str, str]]:
    from shared.operations.catalogue import OPERATIONS

    return [(o.name, o.summary) for o in OPERATIONS.values() if o.name.startswith(incomplete)]


def _complete_assignment(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Parameters of the operation that was named before, with the `=` that follows."""
    import msgspec

    from shared.operations.catalogue import OPERATIONS

    # An option that still lacks its value ends parsing: what stood before it is among the rest.
    words = [*context.args, str(context.params.get("operation"))]
    operation = next((OPERATIONS[word] for word in words if word in OPERATIONS), None)
    if operation is None:
        return []
    names = [field.encode_name for field in msgspec.structs.fields(operation.parameters)]
    return [(f"{name}=", "") for name in names if name.startswith(incomplete)]


def run(  # noqa: PLR0917  typer reads the options from the signature
    context: typer.Context,
    operation: Annotated[
        str,
        typer.Argument(
            metavar="OPERATION",
            autocompletion=_complete_operation,
            help="Such as backup, verify-backup, restore-drill, etcd-health, pause.",
        ),
    ],
    cluster: ClusterOption = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            autocompletion=_complete_assignment,
            help="A parameter; may be repeated.",
        ),
    ] = None,
    operation_id: Annotated[
        str | None, typer.Option("--id", help="Id of the operation; the same id twice runs once.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Follow it to its outcome.")] = False,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", help="How long to follow it; by default as long as it may well take."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Send a one-off operation to the app's queue; with --wait, follow it to its outcome."""
    from shared.model.duration import parse_duration
    from shared.operations.catalogue import find
    from shared.operations.dispatch import submit

    known = find(operation)
    try:
        limit = parse_duration(timeout or known.patience)
    except ValueError as error:
        raise SettingsError(f"--timeout: {error}") from error
    here = session(context)
    given = _parameters(known, assignments or [])
    name = here.cluster(cluster).name
    identity = submit(here.clients, operation, name, given, operation_id)
    if not wait:
        if as_json:
            print_json({"id": identity, "operation": operation, "cluster": name, "parameters": given})
        else:
            print_line(f"sent {operation} for {name}; follow it with: keeper explain {identity}")
        return 0
    print_note(f"sent {operation} for {name}, id {identity}")
    record = _follow(here, identity, limit)
    if as_json:
        print_json(record)
    else:
        print_line(f"{record.state}: {record.message}")
    return 0 if record.state == "Succeeded" else 1


def _parameters(operation: Operation, assignments: list[str]) -> dict[str, Any]:
    """`key=value` pairs as the operation's parameters, values read as the type each has there."""
    import msgspec

    from shared.operations.catalogue import read_parameters

    given: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise SettingsError(f"--set {assignment}: expected KEY=VALUE")
        if key in given:
            raise SettingsError(f"--set {key}: given twice")
        given[key] = value
    try:
        typed = msgspec.to_builtins(msgspec.convert(given, operation.parameters, strict=False))
    except msgspec.ValidationError:
        read_parameters(operation, given)  # raises, naming the parameter and those there are
        raise
    return {key: typed[key] for key in given}


def _follow(here: Session, identity: str, limit: timedelta) -> OperationRecord:
    """Poll the operation's record until it is over, telling its progress; UnavailableError after `limit`."""
    from shared.operations.dispatch import get_operation

    began = time.monotonic()
    with progress() as show:
        while True:
            record = get_operation(here.clients, identity)
            if record and record.is_over:
                return record
            waited = time.monotonic() - began
            if record:
                line = record.progress or record.message or record.state.lower()
            elif waited > NOBODY_TOOK_IT.total_seconds():
                line = "no function app has taken the message yet; is it running? (still waiting)"
            else:
                line = "waiting for the app to take the message"
            show(line, waited)
            if waited > limit.total_seconds():
                break
            time.sleep(POLL_SECONDS)
    what = f"is still {record.state.lower()}" if record else "was not taken off the queue by any app"
    raise UnavailableError(
        f"operation {identity} {what}; it is not lost: look again with 'keeper explain {identity}'"
    )


def status(
    context: typer.Context,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
) -> None:
    """What every automation last saw, did and left alone."""
    from shared.status.collect import collect

    here = session(context)
    document = collect(here.clients, here.clusters(cluster))
    if as_json:
        print_json(document)
        return
    now = document.now
    print_table(
        ("cluster", "automation", "state", "last pass", "did", "left alone"),
        (
            (
                row.cluster,
                row.automation,
                row.state,
                f"{ago(row.last_pass, now)} ago" if row.last_pass else "never",
                len(row.summary.actions) if row.summary else "",
                len(row.summary.left_alone) if row.summary else "",
            )
            for row in document.rows
        ),
        right=("did", "left alone"),
    )
    for row in document.rows:
        if row.summary:
            _print_summary(row.summary)
    if document.poison:
        print_line()
        for queue, count in document.poison.items():
            print_line(f"{queue}: {counted(count, 'message')} failed for good; look with: keeper poison list")


def _print_summary(summary: Summary) -> None:
    if not summary.actions and not summary.left_alone:
        return
    print_line()
    print_line(f"{summary.cluster} {summary.automation}, {when(summary.at)} UTC")
    for action in summary.actions:
        print_line(f"  {action['status']} {action['kind']} {action['target']}: {action['message']}")
    for left in summary.left_alone:
        print_line(f"  left alone {left['subject']} ({left['reason']}): {left['message']}")
