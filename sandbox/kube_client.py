"""A small Kubernetes client for the local world: raw JSON over urllib3, no typed models.

It speaks to the real kube-apiserver and to the stand-in alike, and shows errors and watches as they are,
because the contract tests are about exactly those. Not the product's client.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeAlias
from urllib.parse import urlencode

import msgspec
import urllib3

Document: TypeAlias = dict[str, Any]
Query: TypeAlias = Mapping[str, str | int | bool]

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
WATCH_STALL_SECONDS = 400.0


class KubeError(Exception):
    """What the API server refused; `document` is its whole Status object."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.status = int(document.get("code", 0))
        self.reason = str(document.get("reason", ""))
        self.message = str(document.get("message", ""))
        super().__init__(f"{self.status} {self.reason}: {self.message}")


class KubeClient:
    """One user's connections to one API server. Threads may share it."""

    def __init__(
        self,
        server: str,
        *,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        token: str | None = None,
        connections: int = 16,
    ) -> None:
        self.server = server
        context = None
        if ca is not None:
            context = ssl.create_default_context(cafile=str(ca))
            if certificate is not None:
                context.load_cert_chain(str(certificate), str(key))
        self._headers = {"User-Agent": "kubekeeper-sandbox", "Accept": JSON}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        options: dict[str, Any] = {"ssl_context": context} if context else {}
        self._pool = urllib3.PoolManager(maxsize=connections, retries=False, timeout=60.0, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops idle connections."""
        self._pool.clear()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: object = None,
        content_type: str = JSON,
    ) -> Document:
        """The decoded answer; KubeError for 400 and above, urllib3's HTTPError without an answer."""
        answer = self.send(method, path, query=query, body=body, content_type=content_type)
        if answer.status >= 400:
            raise KubeError(_status(answer))
        return msgspec.json.decode(answer.data, type=Document)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: object = None,
        content_type: str = JSON,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """The answer as it came. `body` is encoded unless it is bytes."""
        headers = self._headers
        data = None
        if body is not None:
            headers = {**headers, "Content-Type": content_type}
            data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return self._pool.request(
            method,
            self._url(path, query),
            body=data,
            headers=headers,
            preload_content=not stream,
            timeout=urllib3.Timeout(connect=10, read=WATCH_STALL_SECONDS if stream else 60),
        )

    def get(self, path: str, **query: str | int | bool) -> Document:
        """One object, or one page of a list."""
        return self.request("GET", path, query=query)

    def find(self, path: str) -> Document | None:
        """One object, or None when there is none of that name."""
        try:
            return self.get(path)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, document: Document, **query: str | int | bool) -> Document:
        """POST to a collection."""
        return self.request("POST", path, query=query, body=document)

    def replace(self, path: str, document: Document, **query: str | int | bool) -> Document:
        """PUT; conditional when `document` carries a resourceVersion."""
        return self.request("PUT", path, query=query, body=document)

    def patch(
        self, path: str, change: object, content_type: str = MERGE_PATCH, **query: str | int | bool
    ) -> Document:
        """PATCH, a JSON merge patch unless told otherwise."""
        return self.request("PATCH", path, query=query, body=change, content_type=content_type)

    def delete(self, path: str, options: Document | None = None) -> Document:
        """DELETE with DeleteOptions: gracePeriodSeconds, preconditions, propagationPolicy."""
        return self.request("DELETE", path, body=options)

    def list(self, path: str, *, limit: int = 500, **query: str | int | bool) -> tuple[list[Document], str]:
        """All items of a collection, page by page, and the resourceVersion to watch from."""
        items: list[Document] = []
        token = ""
        while True:
            page = self.get(path, limit=limit, **query, **({"continue": token} if token else {}))
            items += page.get("items") or []
            token = page["metadata"].get("continue") or ""
            if not token:
                return items, page["metadata"]["resourceVersion"]

    def watch(self, path: str, **query: str | int | bool) -> Watch:
        """A watch of a collection; give `resourceVersion` and, to bound it, `timeoutSeconds`."""
        answer = self.send("GET", path, query={"watch": True, **query}, stream=True)
        if answer.status >= 400:
            answer.read(cache_content=True)
            raise KubeError(_status(answer))
        return Watch(answer)

    def _url(self, path: str, query: Query | None) -> str:
        if not query:
            return self.server + path
        texts = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in query.items()}
        return f"{self.server}{path}?{urlencode(texts)}"


class Watch:
    """Lines of a running watch, undecoded; `close` from another thread ends the iteration."""

    def __init__(self, answer: urllib3.BaseHTTPResponse) -> None:
        self._answer = answer
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        rest = bytearray()
        try:
            for chunk in self._answer.stream(1 << 16):
                *lines, tail = chunk.split(b"\n")
                for line in lines:
                    yield bytes(rest + line)
                    rest.clear()
                rest += tail
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError):
            # urllib3 has many ways to say that the connection was shut under it.
            if not self._is_closed:
                raise

    def events(self) -> Iterator[tuple[str, Document]]:
        """Decoded: (ADDED | MODIFIED | DELETED | BOOKMARK | ERROR, object)."""
        for line in self:
            event = msgspec.json.decode(line, type=Document)
            yield event["type"], event["object"]

    def close(self) -> None:
        """Ends the watch; may be called twice."""
        if not self._is_closed:
            self._is_closed = True
            with suppress(ValueError, RuntimeError):  # it has ended by itself: its connection is in the pool
                self._answer.shutdown()
            self._answer.close()


def _status(answer: urllib3.BaseHTTPResponse) -> Document:
    try:
        return msgspec.json.decode(answer.data, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = answer.data.decode(errors="replace").strip()
        return {"code": answer.status, "reason": "", "message": text}
