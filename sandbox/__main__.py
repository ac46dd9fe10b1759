"""`python -m sandbox COMMAND`: what `make start` and `make demo` run."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "up": "the whole local world: storage, Azure, Kubernetes; --etcd, --host, --real, --detach",
    "down": "ends it",
    "host": "the local Functions host, with Azurite unless AzureWebJobsStorage names another storage",
    "azurite": "Azurite alone, on free ports",
    "package": "the zip that a deployment uploads, and its size",
    "demo": "the main job on the local world, every printed promise checked",
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        print("usage: python -m sandbox COMMAND [--help]", file=sys.stderr)
        for name, does in COMMANDS.items():
            print(f"  {name:8} {does}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"sandbox.{arguments[0]}")
    code: int = module.main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
