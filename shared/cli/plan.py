"""`keeper plan` and `keeper snapshot`: what an automation would do and why, and the observation it rests on.

With `--from` a plan is made purely from a snapshot file: no network, no settings, no clock.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.console import print_json, print_line, print_note, when, write_file
from shared.cli.session import ClusterOption, JsonOption, Session, session
from shared.errors import SettingsError

if TYPE_CHECKING:
    from shared.model.plan import Plan
    from shared.runtime.automation import Automation
    from shared.settings import Cluster


def register(app: typer.Typer) -> None:
    """Add the commands to `keeper`."""
    app.command("plan")(plan)
    app.command("snapshot")(snapshot)


def _complete_automation(incomplete: str) -> list[str]:
    from shared.runtime.automation import AUTOMATIONS

    return [name for name in AUTOMATIONS if name.startswith(incomplete)]


LONGEST = 300
"""Characters of a parameter on the screen."""

AutomationArgument = Annotated[
    str,
    typer.Argument(metavar="AUTOMATION", autocompletion=_complete_automation, help="Such as etcd-backup."),
]


def plan(
    context: typer.Context,
    automation: AutomationArgument,
    cluster: ClusterOption = None,
    snapshot_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="SNAPSHOT", help="Decide purely from this file; no network."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Decide without acting: actions in order with their evidence, and everything left alone."""
    from shared.runtime.automation import find

    found = find(automation)
    if snapshot_file:
        plans = [_plan(found, _read(found, snapshot_file, cluster))]
    else:
        here = session(context)
        plans = [_plan(found, _observe(here, found, one)) for one in _configured(here, found, cluster)]
    if as_json:
        documents = [plan.document() for plan in plans]
        print_json(documents[0] if cluster or snapshot_file or len(documents) == 1 else documents)
        return
    for number, made in enumerate(plans):
        if number:
            print_line()
        _print_plan(made)


def snapshot(
    context: typer.Context,
    automation: AutomationArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="File to write; - for stdout.")
    ],
    cluster: ClusterOption = None,
) -> None:
    """Record an observation, for `keeper plan --from`. It holds no secrets."""
    from shared.runtime.automation import find, load

    found = find(automation)
    here = session(context)
    data: bytes = load(f"{found.package}.observation:save")(_observe(here, found, here.cluster(cluster)))
    if str(output) == "-":
        print_line(data.decode().rstrip("\n"), whole=True)
        return
    write_file(output, data)
    print_note(f"wrote {output}; decide from it with: keeper plan {automation} --from {output}")


def _configured(here: Session, automation: Automation, cluster: str | None) -> tuple[Cluster, ...]:
    from shared.runtime import automation as automations

    if cluster:
        one = here.cluster(cluster)
        automations.require_configured(automation, one)
        return (one,)
    clusters = automations.configured(automation, here.settings)
    if not clusters:
        raise SettingsError(f"no cluster is configured for {automation.name}; add it to the configuration")
    return clusters


def _read(automation: Automation, file: Path, cluster: str | None) -> Any:
    """The automation's own Observation in a file."""
    from shared.runtime.automation import load

    try:
        observation = load(f"{automation.package}.observation:load")(file.read_bytes(), str(file))
    except OSError as error:
        raise SettingsError(f"cannot read '{file}': {error.strerror}; check --from") from error
    if cluster and cluster != observation.cluster:
        raise SettingsError(f"'{file}' was recorded for cluster '{observation.cluster}', not '{cluster}'")
    return observation


def _plan(automation: Automation, observation: Any) -> Plan:
    from shared.runtime.automation import load

    plan: Plan = load(f"{automation.package}.decide:decide")(observation, observation.policy, observation.now)
    return plan


def _observe(here: Session, automation: Automation, cluster: Cluster) -> Any:
    """The automation's own Observation of the cluster as it is now; changes nothing."""
    from msgspec import to_builtins

    from shared.runtime.automation import load, require_configured

    require_configured(automation, cluster)
    document = here.clients.claims.state(cluster.name, automation.name)
    state = document.automation | ({"paused": to_builtins(document.paused)} if document.paused else {})
    return load(f"{automation.package}.reconcile:look")(cluster, here.clients, state, here.clients.now())


def _print_plan(plan: Plan) -> None:
    document = plan.document()
    print_line(f"{plan.automation} of {plan.cluster} at {when(plan.now)} UTC, plan {document['digest'][:12]}")
    if not plan.actions:
        print_line("  nothing to do")
    for number, action in enumerate(plan.actions, start=1):
        print_line(f"  {number}. {action.kind} {action.target}")
        print_line(f"     {action.reason}: {action.message}")
        said = {key: value for key, value in action.parameters.items() if value not in (None, "")}
        shown = {key: _shown(value) for key, value in said.items()}
        for key, text in shown.items():
            if text is not None:
                print_line(f"     {key}: {text}")
        rest = [key for key, text in shown.items() if text is None]
        if rest:
            print_line(f"     in --json only: {', '.join(rest)}")
        for line in action.evidence:
            print_line(f"     evidence: {line}")
        for line in action.preconditions:
            print_line(f"     only if: {line}")
    for left in plan.left_alone:
        print_line(f"  left alone: {left.subject} ({left.reason}): {left.message}")


def _shown(value: Any) -> str | None:
    """A parameter as people read it; None for one that is more than a line, such as a whole document."""
    if isinstance(value, dict):
        return None
    if isinstance(value, list | tuple):
        text = ", ".join(map(str, value)) or "none"
        is_flat = not any(isinstance(one, dict | list | tuple) for one in value)
        return text if is_flat and len(text) <= LONGEST else None
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters; --json has all)"
