"""`GET /metrics` (Prometheus), `GET /healthz` (is the process well) and `GET /readyz` (does it see all).

Plain `http.server`: what it serves is small, and no secret. A forwarder that cannot reach the cluster or the
topic is well and not ready; killing it would not help.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

log = logging.getLogger(__name__)

Page = Callable[[], tuple[int, str, bytes]]
"""(status, content type, body)."""


def document(status: int, content: dict[str, Any]) -> tuple[int, str, bytes]:
    """A page of JSON."""
    return status, "application/json", msgspec.json.encode(content)


class PageServer:
    """Serves pages by path; port 0 takes a free one, `port` says which."""

    def __init__(self, port: int, pages: dict[str, Page]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                status, kind, body = page() if page else document(404, {"pages": sorted(pages)})
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                log.debug(format, *args)

        # The kubelet and Prometheus come from other machines.
        self._server = ThreadingHTTPServer(("", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="pages", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and let go of the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
