"""Puts the demo together: the world, the chapters, the table at the end."""

from __future__ import annotations

import argparse
import signal
import sys

from sandbox.demo import etcd_backup
from sandbox.demo.screen import Screen
from sandbox.demo.world import NotInTimeError, World


def main(arguments: list[str]) -> int:
    """Exit 0 when every promise held, 1 when one did not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox demo", description="The main job on the local world."
    )
    parser.add_argument("--megabytes", type=int, default=200, help="of objects in etcd (default: 200)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = Screen(steps=etcd_backup.STEPS)
    screen.console.print(
        "Kubekeeper on a local world: a real etcd, a real Azurite, the app's own triggers.\n"
        "Each line marked ok is a promise that was just checked."
    )
    try:
        with World(screen) as world:
            etcd_backup.show(world, options.megabytes)
    except KeyboardInterrupt:
        print("interrupted; everything that was started has been ended", file=sys.stderr)
        return 130
    except NotInTimeError as error:
        screen.check("everything the demo waits for happens", holds=False, otherwise=str(error))
    return screen.summary()
