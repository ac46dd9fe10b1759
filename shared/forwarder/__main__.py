"""`python -m shared.forwarder`: runs until SIGTERM. Exit codes: 0 asked to end, 1 a bug, 2 wrong settings."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Mapping

from shared import __version__
from shared.clients.kube import kube_client
from shared.errors import SettingsError
from shared.forwarder.deliver import destination
from shared.forwarder.run import Forwarder
from shared.forwarder.settings import read_settings
from shared.log import install_redaction, log_event

log = logging.getLogger("shared.forwarder")

STACK_BYTES = 256 * 1024
"""Of each thread; there are about a dozen, and none of them recurses."""


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Run one forwarder."""
    install_redaction()
    level = environ.get("KUBEKEEPER_LOG_LEVEL", "INFO").upper()
    try:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        # The SDKs log each request; ours say what matters.
        for name in ("azure", "urllib3", "msal"):
            logging.getLogger(name).setLevel(logging.ERROR)
        settings = read_settings(environ)
        client = kube_client(settings.kubernetes, environ)
        where = destination(settings, environ, secrets.token_hex(4))
    except (SettingsError, ValueError) as error:
        print(f"forwarder: {error}", file=sys.stderr)  # noqa: T201  a log line would say it less plainly
        return 2
    threading.stack_size(STACK_BYTES)
    forwarder = Forwarder(settings, client, where)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: forwarder.stop())
    log_event(
        log,
        "Started",
        version=__version__,
        cluster=settings.cluster,
        to="queues" if settings.by_queue else "event grid",
        sources=",".join(follower.source.name for follower in forwarder.followers),
    )
    return 0 if forwarder.run() else 1


if __name__ == "__main__":
    sys.exit(main())
