"""Routes: what the objects of a cluster ask of a gateway, independent of the kind of object.

A front end (`ingress`; HTTPRoute would be a second one) translates objects to `Route` values, and `compile`
makes a gateway's parts from them. A route refers to pools by key, never to addresses, so that the last good
route of an object can be kept as it is while pods come and go. Frozen values, stored in the state document.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from shared.ingress_sync.state import pack, unpack


class RouteStruct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False):
    """Base: hashable values without cycles."""


class Match(enum.StrEnum):
    """How a path is meant. WRITTEN is ImplementationSpecific: as Application Gateway reads it."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    WRITTEN = "ImplementationSpecific"


class Probe(RouteStruct, frozen=True):
    """A health probe. `host` and `path` "" are the default: those of a route that uses it. `port` 0: the
    settings' port. `picks_host`: the host is the one the settings send.
    """

    protocol: str = "Http"
    host: str = ""
    picks_host: bool = False
    path: str = ""
    port: int = 0
    interval: int = 30
    timeout: int = 30
    threshold: int = 3
    codes: tuple[str, ...] = ()


class Settings(RouteStruct, frozen=True):
    """How requests go to a backend. `affinity` is the cookie's name, "-" for the platform's, "" for none;
    `draining` in seconds, 0 for none.
    """

    port: int
    protocol: str = "Http"
    host: str = ""
    picks_host: bool = False
    path: str = ""
    affinity: str = ""
    timeout: int = 30
    draining: int = 0
    trusted_roots: tuple[str, ...] = ()
    probe: Probe = Probe()


class Backend(RouteStruct, frozen=True):
    """A pool by its key (`backends.Pool`), with settings; `service` is `namespace/name:port`."""

    pool: str
    settings: Settings
    service: str


class PathRule(RouteStruct, frozen=True):
    """One path of the hosts it stands under. `path` "" or "/" with PREFIX is everything.

    `is_default` marks a default backend, which comes after every other rule of the host.
    `rewrite` names a set on the gateway, `rewrite_resource` (`namespace/name`) one that is compiled.
    """

    path: str
    match: Match
    backend: Backend
    waf_policy: str = ""
    rewrite: str = ""
    rewrite_resource: str = ""
    is_default: bool = False


class Tls(RouteStruct, frozen=True):
    """A certificate: `name` of one on the gateway, `key_vault` the id of a Key Vault's, or of a Secret by
    `digest`.
    """

    name: str = ""
    key_vault: str = ""
    namespace: str = ""
    secret: str = ""
    digest: str = ""


class Site(RouteStruct, frozen=True):
    """Hosts (lower case; "" is any) with equal rules. `tls` None: http only.

    `http`: whether http (port 80 beside TLS) serves, leads to https ("redirect"), or is not there ("none").
    """

    hosts: tuple[str, ...]
    rules: tuple[PathRule, ...]
    tls: Tls | None = None
    http: str = "serve"


class Route(RouteStruct, frozen=True):
    """All that one object (`owner`, `namespace/name`) asks for."""

    owner: str
    kind: str = "Ingress"
    frontend: str = "public"
    http_port: int = 80
    https_port: int = 443
    sites: tuple[Site, ...] = ()
    ssl_profile: str = ""
    waf_policy: str = ""
    priority: int = 0
    error_pages: tuple[tuple[str, str], ...] = ()


def pack_routes(routes: Iterable[Route]) -> str:
    """Routes as text for the state document."""
    return pack(msgspec.json.encode(sorted(routes, key=lambda route: route.owner)))


def unpack_routes(text: str) -> Mapping[str, Route]:
    """The routes in a state document, by owner; empty for ""."""
    if not text:
        return {}
    return {route.owner: route for route in msgspec.json.decode(unpack(text), type=tuple[Route, ...])}
