"""`keeper`: the commands, and the one place where errors become a line on stderr and an exit code.

Exit codes: 0 done, 1 it ran and the answer is bad, 2 wrong usage or configuration, 3 a dependency cannot be
reached. Anything else is a bug and shows its traceback. Modules of commands import SDKs only when a command
runs, so that `keeper --help` and shell completion stay quick.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from shared.cli import backup, config, doctor, explain, operations, plan, poison
from shared.cli.session import Session
from shared.errors import (
    ApiError,
    AutomationError,
    ConflictError,
    MessageError,
    NotFoundError,
    SettingsError,
)

BAD_ANSWER, WRONG_USAGE, UNREACHABLE = 1, 2, 3

app = typer.Typer(
    name="keeper",
    help="Plans, runs and inspects Kubekeeper's automations.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plan.register(app)
operations.register(app)
explain.register(app)
doctor.register(app)
app.add_typer(backup.app, name="backup")
app.add_typer(poison.app, name="poison")
app.add_typer(config.app, name="config")


@app.callback()
def keeper(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            "--config", metavar="PATH|URL", help="kubekeeper.yaml to use instead of KUBEKEEPER_CONFIG."
        ),
    ] = None,
    settings: Annotated[
        str | None,
        typer.Option(
            "--settings",
            metavar="FILE",
            envvar="KEEPER_SETTINGS",
            help="local.settings.json with app settings; those of the environment win.",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr, without secrets.")] = False,
) -> None:
    """Plans, runs and inspects Kubekeeper's automations.

    Exit codes: 0 done, 1 the answer is bad, 2 wrong usage or configuration, 3 a dependency is out of reach.
    """
    context.obj = Session.open(config=config, settings_file=settings, verbose=verbose)


def main() -> None:
    """The console script."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; prints errors on stderr, one line each."""
    command = typer.main.get_command(app)
    try:
        code = int(command.main(args=arguments, prog_name="keeper", standalone_mode=False) or 0)
        sys.stdout.flush()
    except AutomationError as error:
        return _fail(str(error), exit_code(error))
    except BrokenPipeError:
        # Whoever read us, `head` perhaps, has seen enough; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_ANSWER  # as typer itself answers when it is the first to notice
    except OSError as error:
        return _fail(_os_problem(error), _os_exit_code(error))
    except KeyboardInterrupt:
        return _fail("interrupted; what was already sent goes on without this command", 130)
    except Exception as error:
        # typer moved its own usage errors between packages; all of them can format themselves.
        if not hasattr(error, "format_message"):
            raise
        return _fail(_usage(error), WRONG_USAGE)
    return code


def exit_code(error: AutomationError) -> int:
    """The exit code an error stands for."""
    if isinstance(error, SettingsError | MessageError | NotFoundError):
        return WRONG_USAGE
    if isinstance(error, ApiError) and not isinstance(error, ConflictError):
        return UNREACHABLE
    return BAD_ANSWER


def _fail(line: str, code: int) -> int:
    from shared.log import redact

    print(f"keeper: {redact(' '.join(line.split()))}", file=sys.stderr)  # noqa: T201
    return code


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    line = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    path = context.command_path if context else "keeper"
    return f"{line.rstrip('.')}; see '{path} --help'"


_OS_REMEDIES = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EACCES: "choose a place this user may write to",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file in it instead",
    errno.EEXIST: "choose another name",
}


def _os_problem(error: OSError) -> str:
    remedy = _OS_REMEDIES.get(error.errno or 0, "check the path and the disk")
    return f"'{error.filename or 'output'}': {error.strerror or error}; {remedy}"


def _os_exit_code(error: OSError) -> int:
    return BAD_ANSWER if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else WRONG_USAGE
