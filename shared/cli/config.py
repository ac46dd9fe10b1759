"""`keeper config`: check kubekeeper.yaml and print its JSON Schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.cli.console import print_json, print_line, write_file
from shared.cli.session import JsonOption

app = typer.Typer(help="Check the configuration, print its schema.", no_args_is_help=True)


@app.command("check")
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="kubekeeper.yaml, or - for standard input.")],
    as_json: JsonOption = False,
) -> None:
    """Validate a configuration; no network, no secrets needed."""
    import sys

    from shared.errors import SettingsError
    from shared.runtime.automation import AUTOMATIONS
    from shared.settings import Settings, parse_settings

    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read '{file}': {error.strerror}") from error
    settings: Settings = parse_settings(text, "standard input" if file == "-" else file)
    if as_json:
        print_json({"file": file, "valid": True, "clusters": [one.name for one in settings.clusters]})
        return
    print_line(f"{file}: valid")
    for cluster in settings.clusters:
        on = [name for name, automation in AUTOMATIONS.items() if automation.is_configured(cluster)]
        print_line(f"  {cluster.name}: {', '.join(on) or 'no automation is turned on'}")


@app.command("schema")
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead.")] = None,
) -> None:
    """Print the JSON Schema of kubekeeper.yaml, for editors."""
    from shared.cli.schema import schema_text

    if output:
        write_file(output, schema_text().encode())
        print_line(f"wrote {output}")
    else:
        print_line(schema_text().rstrip("\n"))
