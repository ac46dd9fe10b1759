"""Fixtures that every test may use: the storage emulator, started once per run and only when asked for."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator

import pytest
import rights

from sandbox.asgi import Server
from sandbox.azurite import Azurite


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """A real Azurite on free ports. Shared: use container, queue and table names of your own."""
    with Azurite() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def storage(azurite: Azurite) -> str:
    """The connection string of the run's Azurite, as `AzureWebJobsStorage` holds it."""
    return azurite.connection_string


def pytest_configure() -> None:
    rights.install()
    # Tests talk to this machine alone, whatever proxy it has; without this, requests looks through the whole
    # environment for one twice a request.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
    _trace_no_stand_ins()
    # A job in the background starts with SIGINT ignored, and so would all that tests start to interrupt it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _trace_no_stand_ins() -> None:
    """What stand-ins do in their own threads is not what coverage measures, and tracing would double it."""
    serve = Server._serve

    def untraced(server: Server, listening: socket.socket) -> None:
        sys.settrace(None)
        serve(server, listening)

    Server._serve = untraced  # type: ignore[method-assign]


def pytest_sessionfinish() -> None:
    """What the product was seen to need; `make test` compares it with what is deployed."""
    rights.save(os.environ.get("PYTEST_XDIST_WORKER", "main"))
