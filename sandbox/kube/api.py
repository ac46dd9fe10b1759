"""The stand-in's HTTP side: URLs and verbs to reads and writes of the store.

Every write happens under the store's lock: read, check, change, store. Nothing here waits but watches.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
import yaml
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from sandbox.asgi import Fault, Recorded
from sandbox.clock import Clock
from sandbox.kube import access, discovery, disruption, kinds, patch, rules, selectors, tables
from sandbox.kube.errors import RefusalError, already_exists, bad_request, not_found
from sandbox.kube.kinds import Kind
from sandbox.kube.store import Change, Document, Record, Selection, Store

PROTOBUF = "application/vnd.kubernetes.protobuf"
SUBRESOURCES = ("status", "eviction", "binding", "finalize", "scale")
BOOKMARK_SECONDS = 10.0
WATCH_SECONDS = 1800.0
STREAMED_FROM, PIECE = 2000, 200
"""Objects in a list."""
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_JSON = msgspec.json.Decoder(strict=True)
_ENCODE = msgspec.json.Encoder().encode
_PATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "application/merge-patch+json": patch.merge,
    "application/strategic-merge-patch+json": patch.strategic,
    "application/json-patch+json": patch.json_patch,
}
Show: TypeAlias = Callable[[Kind, Record], bytes]
"""How an object looks to whoever watches."""
_APPLY = ("application/apply-patch+yaml", "application/apply-patch+json")


@dataclass(frozen=True)
class Target:
    """What a URL is about. Without a name, it is the collection."""

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""


@dataclass
class KubeApi:
    """An ASGI application in front of a store."""

    store: Store
    clock: Clock
    tokens: access.Tokens = field(default_factory=access.Tokens)
    requests: list[Recorded] = field(default_factory=list)
    """Everything asked, in order of arrival."""
    faults: list[Fault] = field(default_factory=list)
    """What is still to go wrong, as for the local Azure."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        with contextlib.suppress(ClientDisconnect):
            body = await request.body()
            fault = next((f for f in self.faults if f.hits(request.method, request.url.path)), None)
            if fault is not None and fault.delay_seconds:
                await asyncio.sleep(fault.delay_seconds)
            response = self._answer(request, body, fault)
            is_lost = fault is not None and fault.lose_answer
            self._record(request, body, 0 if is_lost else response.status_code)
            if is_lost:
                _drop_connection(send)
                return
            await response(scope, receive, send)

    def _answer(self, request: Request, body: bytes, fault: Fault | None) -> Response:
        if fault is not None and fault.before:
            fault.before()
        if fault is not None and fault.status is not None:
            return Response(_ENCODE(fault.body), fault.status, dict(fault.headers), "application/json")
        try:
            return self.handle(request, body)
        except RefusalError as refusal:
            headers = {}
            if seconds := (refusal.document.get("details") or {}).get("retryAfterSeconds"):
                headers["Retry-After"] = str(seconds)
            return Response(_ENCODE(refusal.document), refusal.status, headers, "application/json")

    def _record(self, request: Request, body: bytes, status: int) -> None:
        headers = dict(request.headers)
        headers.pop("authorization", None)
        query = dict(request.query_params)
        path = request.url.path
        self.requests.append(Recorded(request.method, path, query, headers, body, status))

    def handle(self, request: Request, body: bytes) -> Response:
        """One request, answered; RefusalError for what is not allowed."""
        user = self.tokens.user(request.headers.get("authorization", ""))
        content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip()
        if content_type == PROTOBUF and body:
            message = "the stand-in reads JSON and YAML, not protobuf: use `kubectl apply` or `create -f`"
            raise RefusalError(415, "UnsupportedMediaType", message, {})
        if (request.method, request.url.path) == ("POST", access.REVIEWS):
            return _response(access.review(self.store, user, _decode(body)), 201)
        target = parse_path(request.url.path)
        if target is None:
            document = discovery.document(request.url.path)
            if document is None:
                return Response("404 page not found\n", 404, media_type="text/plain")
            return _response(document)
        query = request.query_params
        verb = _VERBS.get(request.method, "get")
        if not target.name:
            is_watch = query.get("watch") in ("true", "1")
            verb = {"get": "watch" if is_watch else "list", "delete": "deletecollection"}.get(verb, verb)
        resource = target.kind.plural + (f"/{target.subresource}" if target.subresource else "")
        attempt = access.Attempt(verb, target.kind.group, resource, target.namespace, target.name)
        access.check(self.store, user, attempt)
        if verb == "watch":
            return self._watch(target, query, request.headers.get("accept", ""))
        if verb in ("get", "list"):
            return self._read(target, verb, query, request.headers.get("accept", ""))
        with self.store.lock:
            return self._write(verb, target, query, body, content_type)

    # Reading

    def _read(self, target: Target, verb: str, query: Mapping[str, str], accept: str) -> Response:
        kind = target.kind
        if verb == "get":
            record = self._find(target)
            if "as=Table" in accept:
                return _response(tables.table(kind, [record], {}, self.clock.now()))
            if "as=PartialObjectMetadata" in accept:
                return _response(tables.metadata_only(record))
            return Response(_whole(kind, record.data), media_type="application/json")
        return self._list(target, query, accept)

    def _list(self, target: Target, query: Mapping[str, str], accept: str) -> Response:
        kind = target.kind
        page, metadata = self._page(target, query)
        if "as=Table" in accept:
            return _response(tables.table(kind, page, metadata, self.clock.now()))
        if "as=PartialObjectMetadataList" in accept:
            items = [tables.metadata_only(record) for record in page]
            return _response(
                {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
                | {"items": items}
            )
        head = b'{"kind":"%sList","apiVersion":"%s","metadata":%s,"items":[' % (
            kind.kind.encode(),
            kind.api_version.encode(),
            _ENCODE(metadata),
        )
        if len(page) > STREAMED_FROM:
            return StreamingResponse(_in_pieces(head, page), media_type="application/json")
        data = b"".join((head, b",".join([record.data for record in page]), b"]}"))
        return Response(data, media_type="application/json")

    def _page(self, target: Target, query: Mapping[str, str]) -> tuple[list[Record], Document]:
        selection = _selection(target, query)
        limit = int(query.get("limit") or 0)
        revision, start = 0, None
        if token := query.get("continue"):
            revision, start = _decode_continue(token)
        page = self.store.page(target.kind, selection, limit=limit, start=start, revision=revision)
        metadata: Document = {"resourceVersion": str(page.revision)}
        if page.next_key is not None:
            metadata["continue"] = _encode_continue(page.revision, page.next_key)
            if selection == Selection(target.namespace):
                metadata["remainingItemCount"] = page.rest
        return page.records, metadata

    def _find(self, target: Target) -> Record:
        record = self.store.get(target.kind, (target.namespace, target.name))
        if record is None:
            raise not_found(target.kind, target.name)
        return record

    # Writing; the lock is held

    def _write(
        self, verb: str, target: Target, query: Mapping[str, str], body: bytes, content_type: str
    ) -> Response:
        is_dry = query.get("dryRun") == "All"
        if verb == "delete":
            return self._delete(target, _options(query, body), is_dry=is_dry)
        if verb == "deletecollection":
            return self._delete_collection(target, query, _options(query, body))
        if verb == "patch":
            return self._patch(target, body, content_type, query, is_dry=is_dry)
        document = _decode_object(target.kind, body, content_type)
        if verb == "update":
            old = self._find(target).decode()
            return self._change(target, old, document, is_patch=False, is_dry=is_dry)
        return self._post(target, document, is_dry=is_dry)

    def _post(self, target: Target, document: Document, *, is_dry: bool) -> Response:
        if target.subresource == "eviction":
            return self._evict(target, document)
        if target.subresource == "binding":
            return self._bind(target, document)
        if target.name:
            raise RefusalError(
                405, "MethodNotAllowed", "the server does not allow this method on the resource"
            )
        return self._create(target, document, is_dry=is_dry)

    def _create(self, target: Target, document: Document, *, is_dry: bool = False) -> Response:
        created = self.create(target.kind, document, target.namespace, is_dry=is_dry)
        return _object(target.kind, created, 201)

    def create(
        self, kind: Kind, document: Document, namespace: str = "", *, is_dry: bool = False
    ) -> Document:
        """The object as it has been stored; needs the store's lock, as all that write."""
        if namespace and self.store.get(kinds.NAMESPACES, ("", namespace)) is None:
            raise not_found(kinds.NAMESPACES, namespace)
        created = rules.created(kind, document, namespace, self.clock.now())
        name = created["metadata"]["name"]
        if self.store.get(kind, (namespace, name)) is not None:
            raise already_exists(kind, name)
        if not is_dry:
            self._store(kind, created)
            if kind is kinds.NAMESPACES:
                self._furnish(name)
        return created

    def _furnish(self, namespace: str) -> None:
        """What controllers put into a namespace before anything else can be there."""
        account = {"metadata": {"name": "default"}}
        kind = kinds.SERVICE_ACCOUNTS
        self._store(kind, rules.created(kind, account, namespace, self.clock.now()))

    def _change(
        self, target: Target, old: Document, new: Document, *, is_patch: bool, is_dry: bool = False
    ) -> Response:
        options = {"is_patch": is_patch, "is_dry": is_dry}
        return _object(target.kind, self.update(target.kind, old, new, target.subresource, **options))

    def update(
        self,
        kind: Kind,
        old: Document,
        new: Document,
        subresource: str = "",
        *,
        is_patch: bool = False,
        is_dry: bool = False,
    ) -> Document:
        """Stores what `new` makes of `old`, the object as it is now; what has come of it."""
        changed = rules.updated(kind, old, new, subresource, is_patch=is_patch)
        for name in ("kind", "apiVersion"):
            changed.pop(name, None)
        if changed == old or is_dry:
            return changed
        metadata = changed["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            grace = metadata.get("deletionGracePeriodSeconds", 0)
            if not grace or kind is not kinds.PODS:
                self._remove(kind, changed)
                return changed
        self._store(kind, changed)
        return changed

    def _patch(
        self, target: Target, body: bytes, content_type: str, query: Mapping[str, str], *, is_dry: bool
    ) -> Response:
        if content_type in _APPLY:
            return self._apply(target, yaml.safe_load(body), is_dry=is_dry)
        if content_type not in _PATCHES:
            raise RefusalError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
        old = self._find(target).decode()
        changed = _PATCHES[content_type](old, _decode(body))
        return self._change(target, old, changed, is_patch=True, is_dry=is_dry)

    def _apply(self, target: Target, document: Document, *, is_dry: bool) -> Response:
        """Server-side apply without field ownership: a strategic merge that creates what is not there."""
        record = self.store.get(target.kind, (target.namespace, target.name))
        if record is None:
            return self._create(target, document, is_dry=is_dry)
        old = record.decode()
        changed = patch.strategic(old, document)
        return self._change(target, old, changed, is_patch=True, is_dry=is_dry)

    def _delete(self, target: Target, options: Document, *, is_dry: bool = False) -> Response:
        kind = target.kind
        marked, is_final = self.delete(kind, self._find(target).decode(), options, is_dry=is_dry)
        if kind.returns_deleted or not is_final:
            return _object(kind, marked)
        details = {"name": target.name, "kind": kind.plural, "uid": marked["metadata"]["uid"]}
        if kind.group:
            details["group"] = kind.group
        return _success(details)

    def delete(
        self, kind: Kind, old: Document, options: Document, *, is_dry: bool = False
    ) -> tuple[Document, bool]:
        """The object as its deletion leaves it, and whether it has gone."""
        rules.check_preconditions(kind, old, options)
        marked, is_final = rules.marked_for_deletion(kind, old, options, self.clock.now())
        if not is_dry:
            if marked != old:
                self._store(kind, marked)
            if is_final:
                self._remove(kind, marked)
        return marked, is_final

    def _delete_collection(self, target: Target, query: Mapping[str, str], options: Document) -> Response:
        records, metadata = self._page(target, {k: v for k, v in query.items() if k != "limit"})
        for record in records:
            self._delete(Target(target.kind, *record.key), options)
        items = [msgspec.Raw(record.data) for record in records]
        head = {"kind": f"{target.kind.kind}List", "apiVersion": target.kind.api_version}
        return _response({**head, "metadata": metadata, "items": items})

    def _evict(self, target: Target, eviction: Document) -> Response:
        kind, now = target.kind, self.clock.now()
        pod = self._find(target).decode()
        options = eviction.get("deleteOptions") or {}
        rules.check_preconditions(kind, pod, options)
        is_dry = "All" in (options.get("dryRun") or ())
        disruption.spend(self.store, pod, now)
        if is_dry:
            return _success(None, 201)
        if not pod["metadata"].get("deletionTimestamp"):
            more = {"reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}
            pod = rules.with_condition(pod, "DisruptionTarget", "True", now, **more)
            self._store(kind, pod)
        self._delete(Target(kind, target.namespace, target.name), options)
        return _success(None, 201)

    def _bind(self, target: Target, binding: Document) -> Response:
        self.bind(self._find(target).decode(), binding["target"]["name"])
        return _success(None, 201)

    def bind(self, pod: Document, node: str) -> None:
        """What the binding sub-resource does; the pod is the caller's own copy."""
        self._store(kinds.PODS, rules.bound(kinds.PODS, pod, node, self.clock.now()))

    def _store(self, kind: Kind, document: Document) -> None:
        self.store.write(kind, document)
        self._recount(kind, document["metadata"].get("namespace", ""))

    def _remove(self, kind: Kind, document: Document) -> None:
        metadata = document["metadata"]
        if kind is kinds.NAMESPACES:
            self._empty(metadata["name"])
        self.store.remove(kind, (metadata.get("namespace", ""), metadata["name"]))
        self._recount(kind, metadata.get("namespace", ""))

    def _recount(self, kind: Kind, namespace: str) -> None:
        if kind in (kinds.PODS, kinds.BUDGETS) and self.store.count(kinds.BUDGETS):
            disruption.recount(self.store, namespace, self.clock.now())

    def _empty(self, namespace: str) -> None:
        for kind in kinds.KINDS:
            if kind.is_namespaced:
                for record in list(self.store.select(kind, Selection(namespace))):
                    self.store.remove(kind, record.key)

    # Watching

    def _watch(self, target: Target, query: Mapping[str, str], accept: str) -> Response:
        selection = _selection(target, query)
        version = query.get("resourceVersion") or "0"
        if not version.isdigit():
            why = f'strconv.ParseUint: parsing "{version}": invalid syntax'
            raise RefusalError(500, "", f'resourceVersion: Invalid value: "{version}": {why}')
        show: Show = self._row if "as=Table" in accept else _shown
        if "as=PartialObjectMetadata" in accept:
            show = _bare
        stream = self._events(target.kind, selection, int(version), query, show)
        return StreamingResponse(stream, media_type="application/json")

    async def _events(
        self, kind: Kind, selection: Selection, since: int, query: Mapping[str, str], show: Show
    ) -> AsyncIterator[bytes]:
        has_bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        until = time.monotonic() + float(query.get("timeoutSeconds") or WATCH_SECONDS)
        woken = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        stop = self.store.listen(kind, wake)
        try:
            if since == 0 or query.get("sendInitialEvents") in ("true", "1"):
                with self.store.lock:
                    records, since = list(self.store.select(kind, selection)), self.store.revision
                for record in records:
                    yield _event(b"ADDED", show(kind, record))
                if has_bookmarks:
                    yield _bookmark(kind, since, is_initial=True)
            while True:
                woken.clear()
                for change in self.store.changes(kind, since):
                    since = change.revision
                    line = _told(kind, selection, change, show)
                    if line:
                        yield line
                left = until - time.monotonic()
                if left <= 0:
                    break
                try:
                    await asyncio.wait_for(woken.wait(), min(left, BOOKMARK_SECONDS))
                except TimeoutError:
                    if has_bookmarks:
                        since = max(since, self._quiet_revision(kind, since))
                        yield _bookmark(kind, since)
        except RefusalError as refusal:
            yield _event(b"ERROR", _ENCODE(refusal.document))
        finally:
            stop()

    def _row(self, kind: Kind, record: Record) -> bytes:
        return _ENCODE(tables.table(kind, [record], {}, self.clock.now()))

    def _quiet_revision(self, kind: Kind, since: int) -> int:
        """How far it is certain that a watch has missed nothing."""
        with self.store.lock:
            return since if self.store.changes(kind, since) else self.store.revision


def _drop_connection(send: Send) -> None:
    # ASGI has no word for this; `send` is a method of uvicorn's request cycle, which holds the transport.
    cycle: Any = getattr(send, "__self__", None)
    cycle.transport.abort()


def parse_path(path: str) -> Target | None:
    """None for what is no object and no collection of a known kind."""
    parts = path.strip("/").split("/")
    if parts[:1] == ["api"] and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in SUBRESOURCES:
        namespace, rest = rest[1], rest[2:]
    kind = kinds.BY_PATH.get((group, version, rest[0]))
    if kind is None or len(rest) > 3 or bool(namespace) > kind.is_namespaced:
        return None
    name, subresource = (*rest[1:], "", "")[:2]
    if subresource and subresource not in SUBRESOURCES:
        return None
    return Target(kind, namespace, name, subresource)


def _selection(target: Target, query: Mapping[str, str]) -> Selection:
    labels = selectors.label_selector(query.get("labelSelector", ""))
    fields, names = selectors.field_selector(query.get("fieldSelector", ""), target.kind)
    return Selection(target.namespace, labels, fields, names)


def _options(query: Mapping[str, str], body: bytes) -> Document:
    options: Document = _decode(body) if body else {}
    if "gracePeriodSeconds" in query:
        options = {"gracePeriodSeconds": int(query["gracePeriodSeconds"]), **options}
    return options


def _decode(body: bytes) -> Any:
    try:
        return _JSON.decode(body)
    except msgspec.DecodeError as error:
        raise bad_request(f"the object provided is unrecognized: {error}") from error


def _decode_object(kind: Kind, body: bytes, content_type: str) -> Document:
    document = yaml.safe_load(body) if content_type.endswith("yaml") else _decode(body)
    if not isinstance(document, dict):
        raise bad_request(f"the object provided is unrecognized (must be of type {kind.kind})")
    return {name: value for name, value in document.items() if name not in ("kind", "apiVersion")}


def _encode_continue(revision: int, key: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(_ENCODE({"rv": revision, "start": key})).decode()


def _decode_continue(token: str) -> tuple[int, tuple[str, str]]:
    try:
        found = _JSON.decode(base64.urlsafe_b64decode(token))
        return int(found["rv"]), (found["start"][0], found["start"][1])
    except (ValueError, KeyError, TypeError, IndexError, msgspec.DecodeError) as error:
        raise bad_request("invalid continue token: continue key is not valid") from error


def _shown(kind: Kind, record: Record) -> bytes:
    return _whole(kind, record.data)


def _told(kind: Kind, selection: Selection, change: Change, show: Show) -> bytes:
    """How a change looks through a selection; empty when it does not show."""
    was, is_now = selection.has(change.old), selection.has(change.new)
    if is_now and change.new is not None:
        return _event(b"MODIFIED" if was else b"ADDED", show(kind, change.new))
    if not was or change.old is None:
        return b""
    return _event(b"DELETED", show(kind, change.old._replace(data=change.data)))


def _bare(_: Kind, record: Record) -> bytes:
    return _ENCODE(tables.metadata_only(record))


async def _in_pieces(head: bytes, page: list[Record]) -> AsyncIterator[bytes]:
    """A list that would take hundreds of megabytes as one text."""
    yield head
    for at in range(0, len(page), PIECE):
        piece = b",".join([record.data for record in page[at : at + PIECE]])
        yield b"," + piece if at else piece
    yield b"]}"


def _event(name: bytes, data: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (name, data)


def _bookmark(kind: Kind, revision: int, *, is_initial: bool = False) -> bytes:
    metadata: Document = {"resourceVersion": str(revision), "creationTimestamp": None}
    if is_initial:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return _event(b"BOOKMARK", _whole(kind, _ENCODE({"metadata": metadata})))


def _whole(kind: Kind, data: bytes) -> bytes:
    """An object as it is shown on its own."""
    return b'{"kind":"%s","apiVersion":"%s",%s' % (kind.kind.encode(), kind.api_version.encode(), data[1:])


def _object(kind: Kind, document: Document, status: int = 200) -> Response:
    head = {"kind": kind.kind, "apiVersion": kind.api_version}
    return _response({**head, **document}, status)


def _success(details: Document | None, status: int = 200) -> Response:
    document: Document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    return _response(document | ({"details": details} if details else {"code": status}), status)


def _response(document: object, status: int = 200) -> Response:
    return Response(_ENCODE(document), status, media_type="application/json")
