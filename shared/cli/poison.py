"""`keeper poison`: messages that failed for good; look at them, send them again, drop them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.console import ago, print_json, print_line, print_note, print_table, when
from shared.cli.session import JsonOption, Session, session
from shared.errors import NotFoundError, SettingsError
from shared.model.wording import counted

if TYPE_CHECKING:
    from shared.runtime.poison import PoisonMessage

app = typer.Typer(help="Messages that failed for good.", no_args_is_help=True)

SHORT_ID = 8  # of a UUID; enough to tell a screenful of messages apart

QueueOption = Annotated[
    str | None, typer.Option("--queue", "-q", help="Only messages of this work queue, such as operations.")
]
IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Ids, or their beginnings, as 'list' prints them."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Every message, or every one of --queue.")]


@app.command("list")
def list_messages(context: typer.Context, queue: QueueOption = None, as_json: JsonOption = False) -> None:
    """Every message that failed for good, oldest first, with the reason."""
    from shared.runtime import poison

    here = session(context)
    found = poison.messages(here.clients, queue)
    if as_json:
        print_json({"messages": found})
        return
    if not found:
        print_note("no message failed for good")
        return
    now = here.clients.now()
    print_table(
        ("id", "queue", "failed", "tries", "reason"),
        (
            (
                m.id[:SHORT_ID],
                m.queue,
                f"{ago(m.inserted_at, now)} ago",
                m.attempts or "",
                m.reason or "not known",
            )
            for m in found
        ),
        right=("tries",),
    )


@app.command("show")
def show(
    context: typer.Context,
    message_id: Annotated[str, typer.Argument(metavar="ID", help="Id or its beginning.")],
    queue: QueueOption = None,
    as_json: JsonOption = False,
) -> None:
    """One message: what it says and why it failed."""
    (message,) = _find(session(context), [message_id], queue)
    if as_json:
        print_json(message)
        return
    print_line(f"id      {message.id}")
    print_line(f"queue   {message.queue}")
    print_line(f"failed  {when(message.inserted_at)} UTC, tries {message.attempts or 'not known'}")
    print_line(f"reason  {message.reason or 'not known'}")
    print_line()
    print_line(_readable(message.text))


@app.command("replay")
def replay(
    context: typer.Context,
    ids: IdsArgument = None,
    queue: QueueOption = None,
    everything: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send messages to their work queue again; do it once what made them fail is mended."""
    from shared.runtime import poison

    here = session(context)
    sent = sum(poison.replay(here.clients, *chosen) for chosen in _chosen(here, ids, queue, everything))
    if as_json:
        print_json({"sent": sent})
        return
    print_line(f"sent {counted(sent, 'message')} again")


@app.command("drop")
def drop(
    context: typer.Context,
    ids: IdsArgument = None,
    queue: QueueOption = None,
    everything: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete messages for ever."""
    from shared.runtime import poison

    here = session(context)
    dropped = sum(poison.drop(here.clients, *chosen) for chosen in _chosen(here, ids, queue, everything))
    if as_json:
        print_json({"dropped": dropped})
        return
    print_line(f"dropped {counted(dropped, 'message')}")


def _chosen(
    here: Session, ids: list[str] | None, queue: str | None, everything: bool
) -> list[tuple[str, list[str] | None]]:
    """(work queue, ids; None for all) of the messages meant."""
    from shared.runtime import poison

    if bool(ids) == everything:
        raise SettingsError("name the messages by their ids, or all of them with --all")
    if everything:
        return [(name, None) for name in ([queue] if queue else poison.queues(here.clients))]
    found = _find(here, ids or [], queue)
    return [(name, [m.id for m in found if m.queue == name]) for name in sorted({m.queue for m in found})]


def _find(here: Session, ids: list[str], queue: str | None) -> list[PoisonMessage]:
    from shared.runtime import poison

    messages = poison.messages(here.clients, queue)
    found = []
    for wanted in ids:
        matching = [message for message in messages if message.id.startswith(wanted)]
        if not matching:
            raise NotFoundError(f"no message '{wanted}' failed for good; see: keeper poison list")
        if len(matching) > 1:
            raise SettingsError(f"'{wanted}' is the beginning of {len(matching)} ids; give more of it")
        found += matching
    return found


def _readable(text: str) -> str:
    """Indented where it is JSON (also within base64), otherwise as it is."""
    from shared.errors import MessageError
    from shared.runtime.message import decode

    try:
        return json.dumps(decode(text.encode(), dict), indent=2, ensure_ascii=False)
    except MessageError:
        return text
