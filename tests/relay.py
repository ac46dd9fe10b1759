"""A TCP relay that lets a connection carry only so many bytes from the server, then stalls or ends it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Relay:
    """`with Relay(port, limit, then="stall") as relay:` listens on `relay.port`, a loopback port of its own.

    Each connection may carry `limit` bytes towards the client. After that it stays open without a byte more
    (`stall`) or is closed (`end`).
    """

    def __init__(self, port: int, limit: int, *, then: str) -> None:
        self._target = ("127.0.0.1", port)
        self._limit = limit
        self._stalls = then == "stall"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="relay", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [client, server]
            for source, sink, limit in ((client, server, None), (server, client, self._limit)):
                threading.Thread(target=self._copy, args=(source, sink, limit), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16 * 1024):
                carried += len(data)
                if limit is not None and carried > limit:
                    if self._stalls:
                        self._stopped.wait()
                    break
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
