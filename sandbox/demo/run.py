"""Puts the demo together: the chapters one after the other, the table at the end."""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from sandbox.demo import autoscaling, disk_release, etcd_backup, ingress_sync, operator
from sandbox.demo.screen import Screen
from sandbox.demo.world import NotInTimeError

CHAPTERS: dict[str, ModuleType] = {
    "autoscaling": autoscaling,
    "disk-release": disk_release,
    "ingress-sync": ingress_sync,
    "etcd-backup": etcd_backup,
    "operator": operator,
}
"""By name, in the order they are shown. A chapter has TITLE, STEPS and `show(screen)`."""


def main(arguments: list[str]) -> int:
    """Exit 0 when every promise held, 1 when one did not, 130 after Ctrl-C."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = options.chapter or list(CHAPTERS)
    screen = Screen(steps=sum(CHAPTERS[name].STEPS for name in names))
    screen.console.print(
        "Kubekeeper on a local world: a real etcd, a real Azurite, the app's own code and triggers,\n"
        "an Azure and a Kubernetes that misbehave as the real ones do.\n"
        "Each line marked ok is a promise that was just checked."
    )
    try:
        for name in names:
            screen.chapter(CHAPTERS[name].TITLE)
            _show(screen, name, _shower(name, options))
    except KeyboardInterrupt:
        print("interrupted; everything that was started has been ended", file=sys.stderr)
        return 130
    return screen.summary()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox demo", description="What each automation does, on the local world."
    )
    parser.add_argument(
        "chapter", nargs="*", choices=[*CHAPTERS, []], help=f"only these: {', '.join(CHAPTERS)}"
    )
    parser.add_argument("--megabytes", type=int, default=200, help="of objects in etcd (default: 200)")
    parser.add_argument("--pictures", type=Path, help="write screenshots of the status page there")
    return parser.parse_args(arguments)


def _shower(name: str, options: argparse.Namespace) -> Callable[[Screen], None]:
    show: Callable[..., None] = CHAPTERS[name].show
    own = {"etcd-backup": {"megabytes": options.megabytes}, "operator": {"pictures": options.pictures}}
    return functools.partial(show, **own.get(name, {}))


def _show(screen: Screen, name: str, show: Callable[[Screen], None]) -> None:
    """A chapter that waits in vain is one broken promise; the others are still shown."""
    try:
        show(screen)
    except NotInTimeError as error:
        screen.check(f"everything that {name} waits for happens", holds=False, otherwise=str(error))
