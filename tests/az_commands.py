"""Writes tests/data/az_commands.json: the options of each `az` command that the documentation uses.

From the help of the real Azure CLI, which is far too large to be installed for the tests:

    python -m venv /tmp/az && /tmp/az/bin/pip install azure-cli
    PYTHONPATH=.:tests .venv/bin/python tests/az_commands.py /tmp/az/bin/az
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

from pages import ROOT, command_lines

DATA = ROOT / "tests/data/az_commands.json"


def used() -> list[str]:
    """The commands of all pages, without their options."""
    lines = [line.removeprefix("az ") for _, line in command_lines() if line.startswith("az ")]
    return sorted({re.split(r" -", line)[0].strip() for line in lines})


def options(help_text: str) -> dict[str, Any]:
    """What the help of one command says: names of each option, and those of the ones that are required."""
    arguments = help_text.partition("\nArguments\n")[2]
    found, required = [], []
    for match in re.finditer(r"^ {4}(-[^\n:\[]*)((?:\[[^\]]*\])?) *:?", arguments, re.MULTILINE):
        names = match[1].split()
        found.append(names)
        if "Required" in match[2]:
            required.append(names)
    return {"options": found, "required": required}


def main(arguments: list[str]) -> int:
    az = arguments[0]
    version = json.loads(subprocess.run([az, "version"], capture_output=True, text=True, check=True).stdout)
    known = json.loads(DATA.read_text()) if DATA.exists() else {}
    commands = known["commands"] if known.get("azure-cli") == version["azure-cli"] else {}
    for command in sorted(set(used()) - commands.keys()):
        ran = subprocess.run([az, *command.split(), "--help"], capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.stderr.write(f"az {command}: {ran.stderr.strip()[:200]}\n")
            return 1
        commands[command] = options(ran.stdout)
    lines = [f"  {json.dumps(command)}: {json.dumps(commands[command])}" for command in sorted(used())]
    head = f'{{"azure-cli": "{version["azure-cli"]}", "commands": {{\n'
    DATA.write_text(head + ",\n".join(lines) + "\n}}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
