"""`make demo`: the main job on the local world, step by step; exit code 0 only if every promise held.

Nothing is staged: a real etcd, a real Azurite, the app's own triggers in the local Functions host, and the
same `keeper` commands a user types. `screen` prints and keeps count, `world` starts what is needed, and each
automation has a chapter of its own.
"""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    from sandbox.demo.run import main as run

    return run(arguments)
