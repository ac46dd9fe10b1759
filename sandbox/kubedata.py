"""Kubernetes-shaped data for an etcd: deterministic, compressible like a real cluster's, and fast to load.

The same seed gives the same keys and values in the same order on any machine. Objects lie where the API
server puts them (`/registry/...`); custom resources are JSON, everything else starts with `k8s\\0` and is a
well-formed `runtime.Unknown`, as its protobuf storage writes it. Kinds, sizes and what repeats between
objects follow clusters of some hundred nodes: pods and events are many, secrets do not compress, status
changes while the specification stays.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from shared.clients.etcd import EtcdClient, Pending

Pair = tuple[bytes, bytes]

_TXN_BYTES = 1 << 20  # etcd refuses requests above 1.5 MiB by default
_TXN_OPERATIONS = 100  # and transactions above 128 operations
_IN_FLIGHT = 6
_NAMESPACES = 60
_NODES = 400
_APPLICATIONS = 120
_EVENT_TTL = timedelta(hours=1)
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_HEX_TO_BASE64 = bytes(_BASE64[value % 64] for value in range(256))

# Of a hundred objects so many are of the kind: (kind, count).
_SHARES = (
    ("pod", 28),
    ("event", 24),
    ("replicaset", 10),
    ("configmap", 8),
    ("secret", 6),
    ("application", 7),
    ("certificate", 5),
    ("endpointslice", 6),
    ("lease", 4),
    ("node", 2),
)


@dataclass(frozen=True)
class Loaded:
    """What a load or a churn wrote; `count` is how many objects now have been created in all."""

    count: int
    written_keys: int
    written_bytes: int
    revision: int
    seconds: float

    @property
    def mb_per_second(self) -> float:
        """Keys and values, 10^6 bytes a second."""
        return self.written_bytes / 1e6 / max(self.seconds, 1e-9)


class KubeData:
    """An endless, numbered series of objects; `generation` is how often an object was changed."""

    def __init__(self, seed: int = 1) -> None:
        self._seed = seed
        order = [kind for kind, share in _SHARES for _ in range(share)]
        random.Random(seed).shuffle(order)
        self._order = order
        self._templates = {kind: _templates(kind, random.Random(f"{seed}/{kind}")) for kind, _ in _SHARES}

    def kind(self, number: int) -> str:
        """`pod`, `event`, ..."""
        return self._order[number % len(self._order)]

    def object(self, number: int, generation: int = 0) -> Pair:
        """Key and value of one object."""
        templates = self._templates[self.kind(number)]
        identity = random.Random((self._seed << 48) | number)
        template = templates[identity.randrange(len(templates))]
        state = random.Random((self._seed << 48) | (generation << 32) | number)
        fields = {
            "suffix": b"%010x-%05x" % (identity.getrandbits(40), number & 0xFFFFF),
            "uid": _uid(identity.getrandbits(128)),
            "namespace": b"team-%02d" % identity.randrange(_NAMESPACES),
            "created": b"2026-10-%02dT%02d:%02d:00Z"
            % (identity.randrange(1, 29), identity.randrange(24), identity.randrange(60)),
            "node": b"aks-agents-%04d"
            % (number % _NODES if template.is_of_node else state.randrange(_NODES)),
            "address": b"10.244.%d.%d" % (state.randrange(100, 255), state.randrange(100, 255)),
            "version": b"%09d" % (100_000_000 + generation * 1_000_000 + number),
            "changed": b"2026-11-23T%02d:%02d:%02dZ"
            % (state.randrange(24), state.randrange(60), state.randrange(60)),
            "digest": b"%064x" % state.getrandbits(256),
        }
        return template.render(fields, state)

    def objects(self, start: int = 0) -> Iterator[Pair]:
        """All of them, from number `start` on."""
        number = start
        while True:
            yield self.object(number)
            number += 1

    def load(
        self,
        client: EtcdClient,
        target_bytes: int,
        *,
        start: int = 0,
        endpoint: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Loaded:
        """Writes objects from number `start` until about `target_bytes` of keys and values are written.

        `endpoint` should be the leader's, it saves a hop. `progress` is told the bytes written so far.
        """
        loader = _Loader(client, endpoint, progress)
        number = start
        while loader.written_bytes < target_bytes:
            loader.add(self.object(number), leased=self.kind(number) == "event")
            number += 1
        return loader.finish(number)

    def churn(
        self,
        client: EtcdClient,
        loaded: Loaded,
        percent: float,
        *,
        generation: int = 1,
        total_bytes: int | None = None,
        endpoint: str | None = None,
    ) -> Loaded:
        """Rewrites objects chosen by seed and `generation`, about `percent` of `total_bytes` (of what was
        loaded).

        One in twenty is deleted instead, and one in twenty followed by a new object.
        """
        chosen = random.Random(f"{self._seed}/churn/{generation}")
        goal = (total_bytes or loaded.written_bytes) * percent / 100
        loader = _Loader(client, endpoint, None)
        count = loaded.count
        while loader.written_bytes < goal:
            number = chosen.randrange(loaded.count)
            pair = self.object(number, generation)
            if chosen.random() < 0.05:
                client.delete(pair[0])
                continue
            loader.add(pair, leased=self.kind(number) == "event")
            if chosen.random() < 0.05:
                loader.add(self.object(count), leased=self.kind(count) == "event")
                count += 1
        return loader.finish(count)


class _Loader:
    """Collects pairs into transactions and keeps several under way."""

    def __init__(
        self, client: EtcdClient, endpoint: str | None, progress: Callable[[int], None] | None
    ) -> None:
        self.written_bytes = 0
        self._client, self._endpoint, self._progress = client, endpoint, progress
        self._lease = 0
        self._batches: dict[bool, dict[bytes, bytes]] = {False: {}, True: {}}
        self._sizes = {False: 0, True: 0}
        self._keys = 0
        self._revision = 0
        self._pending: deque[Pending[int]] = deque()
        self._started = time.monotonic()

    def add(self, pair: Pair, *, leased: bool) -> None:
        batch = self._batches[leased]
        size = len(pair[0]) + len(pair[1])
        # A key may stand only once in a transaction.
        if self._sizes[leased] + size > _TXN_BYTES or len(batch) >= _TXN_OPERATIONS or pair[0] in batch:
            self._flush(leased)
        self._batches[leased][pair[0]] = pair[1]
        self._sizes[leased] += size
        self.written_bytes += size
        self._keys += 1

    def _flush(self, leased: bool) -> None:
        batch = self._batches[leased]
        if not batch:
            return
        if leased and not self._lease:
            self._lease = self._client.grant_lease(_EVENT_TTL)
        while len(self._pending) >= _IN_FLIGHT:
            self._settle()
        lease = self._lease if leased else 0
        self._pending.append(
            self._client.put_all_begin(list(batch.items()), lease=lease, endpoint=self._endpoint)
        )
        self._batches[leased], self._sizes[leased] = {}, 0
        if self._progress:
            self._progress(self.written_bytes)

    def _settle(self) -> None:
        self._revision = max(self._revision, self._pending.popleft().result())

    def finish(self, count: int) -> Loaded:
        self._flush(False)
        self._flush(True)
        while self._pending:
            self._settle()
        seconds = time.monotonic() - self._started
        return Loaded(count, self._keys, self.written_bytes, self._revision, seconds)


# Templates: an object's bytes with fixed-width marks for what differs between objects, so that lengths inside
# protobuf stay right whatever is filled in. A mark is `<<name~~~>>`, padded to the width of its value.

_WIDTHS = {
    "suffix": 16,
    "uid": 36,
    "namespace": 7,
    "created": 20,
    "node": 15,
    "address": 14,
    "version": 9,
    "changed": 20,
    "digest": 64,
}
_MARKS = {"suffix": "s", "uid": "u", "namespace": "n", "created": "c", "node": "o", "address": "a"} | {
    "version": "v",
    "changed": "h",
    "digest": "d",
}
_NAMES = {letter: name for name, letter in _MARKS.items()}
_MARK = re.compile(rb"<<([a-z])~*>>|<<R~*>>")


def _mark(name: str) -> str:
    return "<<" + _MARKS[name] + "~" * (_WIDTHS[name] - 5) + ">>"


def _noise(length: int) -> str:
    """A mark for incompressible base64 of that length."""
    return "<<R" + "~" * (length - 5) + ">>"


class _Template:
    """Key and value cut at their marks."""

    def __init__(self, key: str, value: bytes, *, is_of_node: bool = False) -> None:
        self.is_of_node = is_of_node
        self._key = _cut(key.encode())
        self._value = _cut(value)

    def render(self, fields: dict[str, bytes], state: random.Random) -> Pair:
        return self._fill(self._key, fields, state), self._fill(self._value, fields, state)

    @staticmethod
    def _fill(parts: list[tuple[bytes, str, int]], fields: dict[str, bytes], state: random.Random) -> bytes:
        out = []
        for literal, name, length in parts:
            out.append(literal)
            if name == "noise":
                out.append(state.randbytes(length).translate(_HEX_TO_BASE64))
            elif name:
                out.append(fields[name])
        return b"".join(out)


def _cut(text: bytes) -> list[tuple[bytes, str, int]]:
    """(literal, then the field after it, its length) to the end."""
    parts, position = [], 0
    for match in _MARK.finditer(text):
        letter = match[1]
        name = _NAMES[letter.decode()] if letter else "noise"
        parts.append((text[position : match.start()], name, match.end() - match.start()))
        position = match.end()
    return [*parts, (text[position:], "", 0)]


def _templates(kind: str, rng: random.Random) -> list[_Template]:
    """As many variants as there are applications (fewer where a cluster has few kinds of them)."""
    make = {
        "pod": _pod,
        "event": _event,
        "replicaset": _replicaset,
        "configmap": _configmap,
        "secret": _secret,
        "application": _application,
        "certificate": _certificate,
        "endpointslice": _endpointslice,
        "lease": _lease,
        "node": _node,
    }[kind]
    return [make(f"svc-{index:03d}", rng) for index in range(_APPLICATIONS)]


def _pod(app: str, rng: random.Random) -> _Template:
    containers = "".join(
        _message(
            f"{app}-{index}",
            f"registry.example.com/{app}/{_word(rng)}@sha256:{rng.getrandbits(256):064x}",
            *(f"{_word(rng).upper()}_{_word(rng).upper()}={_word(rng)}.{app}.svc" for _ in range(25)),
            "cpu=250m memory=512Mi",
            f"/healthz port=8080 initialDelaySeconds={rng.randrange(5, 60)}",
            f"/var/run/secrets/kubernetes.io/serviceaccount kube-api-access-{_word(rng)} readOnly",
        )
        for index in range(rng.randrange(1, 4))
    )
    status = _message(
        "Running",
        *(f"{condition}=True {_mark('changed')}" for condition in ("Initialized", "Ready", "PodScheduled")),
        _mark("address"),
        f"10.240.0.{rng.randrange(4, 250)}",
        f"containerd://{_mark('digest')}",
        _mark("changed"),
    )
    body = _metadata(app, f"{app}-{_mark('suffix')}") + containers + _message(_mark("node")) + status
    return _protobuf(f"pods/{_mark('namespace')}/{app}-{_mark('suffix')}", "v1", "Pod", body)


def _event(app: str, rng: random.Random) -> _Template:
    reason, text = rng.choice(
        [
            ("Scheduled", f"Successfully assigned {_mark('namespace')}/{app} to {_mark('node')}"),
            ("Unhealthy", f"Readiness probe failed: Get http://{_mark('address')}:8080/healthz: timeout"),
            ("Pulled", f'Container image "registry.example.com/{app}" already present on machine'),
            ("BackOff", f"Back-off restarting failed container {app}"),
        ]
    )
    name = f"{app}-{_mark('suffix')}"
    body = _metadata(app, name) + _message(
        f"{app}-{_mark('suffix')}", reason, text, _mark("changed"), "kubelet"
    )
    return _protobuf(f"events/{_mark('namespace')}/{name}", "v1", "Event", body)


def _replicaset(app: str, rng: random.Random) -> _Template:
    environment = [f"{_word(rng).upper()}={_word(rng)}" for _ in range(20)]
    body = _metadata(app, f"{app}-{_mark('suffix')}") + _message(*environment) + _message(_mark("version"))
    return _protobuf(
        f"replicasets/{_mark('namespace')}/{app}-{_mark('suffix')}", "apps/v1", "ReplicaSet", body
    )


def _configmap(app: str, rng: random.Random) -> _Template:
    lines = "\n".join(f"{_word(rng)}.{_word(rng)} = {_word(rng)}" for _ in range(rng.randrange(40, 160)))
    body = _metadata(app, f"{app}-{_mark('suffix')}") + _message("config.properties", lines, _mark("digest"))
    return _protobuf(f"configmaps/{_mark('namespace')}/{app}-{_mark('suffix')}", "v1", "ConfigMap", body)


def _secret(app: str, rng: random.Random) -> _Template:
    body = _metadata(app, f"{app}-{_mark('suffix')}")
    body += _message(
        "tls.key", _noise(rng.randrange(1600, 2400)), "tls.crt", _noise(rng.randrange(1200, 4000))
    )
    return _protobuf(f"secrets/{_mark('namespace')}/{app}-{_mark('suffix')}", "v1", "Secret", body)


def _endpointslice(app: str, rng: random.Random) -> _Template:
    endpoint = f"{_mark('address')} {app} {_mark('node')} ready=true zone={rng.randrange(1, 4)}"
    body = _metadata(app, f"{app}-{_mark('suffix')}") + _message(*[endpoint] * rng.randrange(2, 10))
    path = f"endpointslices/{_mark('namespace')}/{app}-{_mark('suffix')}"
    return _protobuf(path, "discovery.k8s.io/v1", "EndpointSlice", body)


def _lease(app: str, rng: random.Random) -> _Template:
    body = _metadata(app, _mark("node")) + _message(
        _mark("node"), f"{rng.randrange(10, 60)}s", _mark("changed")
    )
    path = f"leases/kube-node-lease/{_mark('node')}-{_mark('suffix')}"
    return _protobuf(path, "coordination.k8s.io/v1", "Lease", body, is_of_node=True)


def _node(app: str, rng: random.Random) -> _Template:
    images = [f"registry.example.com/svc-{n:03d}@sha256:{rng.getrandbits(256):064x}" for n in range(50)]
    conditions = [
        f"{name}=False {_mark('changed')}" for name in ("MemoryPressure", "DiskPressure", "PIDPressure")
    ]
    body = _metadata(app, _mark("node")) + _message(*images) + _message(*conditions, _mark("address"))
    # The API server keeps nodes under their name of 2014.
    return _protobuf(f"minions/{_mark('node')}-{_mark('suffix')}", "v1", "Node", body, is_of_node=True)


def _application(app: str, rng: random.Random) -> _Template:
    resources = [
        {"kind": _word(rng).title(), "name": f"{app}-{_word(rng)}", "status": "Synced", "version": "v1"}
        | {"health": {"status": "Healthy"}, "namespace": _mark("namespace"), "syncWave": rng.randrange(9)}
        for _ in range(rng.randrange(20, 70))
    ]
    return _custom(
        "argoproj.io/applications",
        "Application",
        app,
        spec={
            "project": app,
            "source": {"repoURL": f"https://git.example.com/{app}.git", "path": f"deploy/{_word(rng)}"},
        },
        status={
            "resources": resources,
            "reconciledAt": _mark("changed"),
            "sync": {"revision": _mark("digest")},
        },
    )


def _certificate(app: str, rng: random.Random) -> _Template:
    return _custom(
        "cert-manager.io/certificates",
        "Certificate",
        app,
        spec={"dnsNames": [f"{app}.{_word(rng)}.example.com"], "secretName": f"{app}-tls"},
        status={"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": _mark("changed")}]},
    )


def _custom(resource: str, kind: str, app: str, *, spec: object, status: object) -> _Template:
    """A custom resource (`group/plural`): JSON, with the managedFields the API server adds."""
    group = resource.partition("/")[0]
    name = f"{app}-{_mark('suffix')}"
    owner = {
        "apiVersion": f"{group}/v1",
        "fieldsType": "FieldsV1",
        "manager": "controller",
        "operation": "Update",
    }
    document = {
        "apiVersion": f"{group}/v1",
        "kind": kind,
        "metadata": {
            "creationTimestamp": _mark("created"),
            "generation": 3,
            "labels": {"app.kubernetes.io/name": app, "app.kubernetes.io/managed-by": "controller"},
            "managedFields": [
                owner | {"fieldsV1": {"f:status": {"f:conditions": {}}}, "time": _mark("changed")}
            ],
            "name": name,
            "namespace": _mark("namespace"),
            "uid": _mark("uid"),
        },
        "spec": spec,
        "status": status,
    }
    value = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    return _Template(f"/registry/{resource}/{_mark('namespace')}/{name}", value)


def _metadata(app: str, name: str) -> str:
    """ObjectMeta with the parts every object has."""
    labels = (f"app.kubernetes.io/{key}={app}" for key in ("name", "instance", "part-of", "component"))
    return _message(
        name,
        _mark("namespace"),
        _mark("uid"),
        _mark("created"),
        *labels,
        "managedFields: kube-controller-manager Update v1 f:metadata f:labels f:spec f:status",
    )


def _protobuf(path: str, api_version: str, kind: str, body: str, *, is_of_node: bool = False) -> _Template:
    """`k8s\\0` and a runtime.Unknown: typeMeta (1) and raw (2)."""
    type_meta = _field(1, api_version.encode("latin-1")) + _field(2, kind.encode("latin-1"))
    value = b"k8s\0" + _field(1, type_meta) + _field(2, body.encode("latin-1"))
    return _Template(f"/registry/{path}", value, is_of_node=is_of_node)


def _message(*texts: str) -> str:
    """A nested message (field 1) of string fields; latin-1 text stands for bytes while a template is put
    together.
    """
    inner = b"".join(_field(index + 1, text.encode("latin-1")) for index, text in enumerate(texts))
    return _field(1, inner).decode("latin-1")


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _uid(number: int) -> bytes:
    text = b"%032x" % number
    return b"-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


_SYLLABLES = ("ba", "co", "di", "fe", "gu", "ka", "lo", "mi", "ne", "pu", "ra", "so", "ti", "ve", "zu")


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randrange(2, 5)))


def total_bytes(pairs: Iterable[Pair]) -> int:
    """Keys and values together."""
    return sum(len(key) + len(value) for key, value in pairs)
