"""Random sets of objects behind an ingress, seeded: overlapping hosts and paths, conflicts, what is gone."""

from __future__ import annotations

import random
from typing import Any

from ingress_builders import WAF, app, endpoint, ingress, path, rule, secret, service, slice_of

HOSTS = ["a.com", "b.com", "www.a.com", "x.y.a.com", "*.a.com", "*.y.a.com", "", "c.org", "d.org", "*.org"]
PATHS = ["/", "", "/*", "/foo", "/foo/", "/foo/bar", "/foobar", "/Foo", "/foo*", "/foo/*", "/bar", "/bar/baz",
         "/f", "/a/b/c", "/a/b", "/a%20b", "/foo.html", "/*/"[:2], "/x-y_z~", "/foo/bar/baz"]  # fmt: skip
KINDS = ["Prefix", "Prefix", "Prefix", "Exact", "Exact", "ImplementationSpecific"]
SERVICES = ["web", "api", "blog", "shop", "missing", "empty", "mixed", "external", "tls443"]


def behind(rng: random.Random) -> list[dict[str, Any]]:
    """Services and their slices."""
    found: list[dict[str, Any]] = []
    for number, name in enumerate(SERVICES[:4]):
        addresses = [f"10.1.{number}.{rng.randrange(1, 250)}" for _ in range(rng.randrange(0, 4))]
        found.append(app(name, *addresses) if addresses else {"services": service(name)})
    found.append({"services": service("empty")})
    named = {"port": 80, "name": "http", "targetPort": "http"}
    found.append({"services": service("mixed", named)})
    for number, port in enumerate(rng.sample([5000, 80, 81, 4999], rng.randrange(1, 4))):
        states = rng.choice(
            [{}, {}, {"ready": False}, {"ready": False, "terminating": True, "serving": True}]
        )
        one = endpoint(f"10.2.{number}.1", **states)
        found.append(
            {"endpointslices": slice_of("mixed", one, port=port, port_name="http", suffix=str(number))}
        )
    external = service("external", {"port": 80}, type="ExternalName", externalName="out.example.net")
    found.append({"services": external})
    found.append({"services": service("tls443", {"port": 80, "targetPort": 443})})
    found.append({"endpointslices": slice_of("tls443", "10.3.0.1", port=443)})
    found += [{"secrets": secret(f"cert{number}", f"digest{number}")} for number in range(3)]
    return found


def annotations(rng: random.Random) -> dict[str, str]:
    """Some of them, mostly right."""
    choices = {
        "ssl-redirect": ["true", "false", "true"],
        "backend-path-prefix": ["/v1/", "x"],
        "backend-hostname": ["inner.local"],
        "backend-protocol": ["https", "HTTP"],
        "cookie-based-affinity": ["true"],
        "cookie-based-affinity-distinct-name": ["true"],
        "request-timeout": ["12", "0", "x"],
        "connection-draining": ["true"],
        "connection-draining-timeout": ["60"],
        "override-frontend-port": ["8080", "443", "80", "0"],
        "use-private-ip": ["true", "false"],
        "hostname-extension": ["e1.net,e2.net,e3.net,e4.net,e5.net,e6.net", "a.com", "?.net,a.com"],
        "waf-policy-for-path": [WAF, "nonsense"],
        "health-probe-path": ["/healthz"],
        "health-probe-unhealthy-threshold": ["5", "25"],
        "rule-priority": ["5", "19000"],
        "appgw-ssl-certificate": ["theirs", "gone"],
    }
    picked = rng.sample(sorted(choices), rng.choice([0, 0, 0, 1, 1, 2, 3]))
    return {name: rng.choice(choices[name]) for name in picked}


def ingresses(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """So many objects, in two namespaces of which one has services."""
    found = []
    for number in range(count):
        rules = []
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            paths = []
            for _ in range(rng.choice([1, 1, 2, 3, 5])):
                kind = rng.choice(KINDS)
                paths.append(
                    path(
                        rng.choice(PATHS) or (None if kind[0] == "I" else "/"), rng.choice(SERVICES), 80, kind
                    )
                )
            rules.append(rule(rng.choice(HOSTS), *paths))
        tls = []
        if rng.random() < 0.4:
            for _ in range(rng.choice([1, 1, 2])):
                hosts = rng.sample([host for host in HOSTS if host], rng.randrange(0, 3))
                tls.append({"hosts": hosts, "secretName": rng.choice(["cert0", "cert1", "cert2", "gone"])})
        default = path("/", rng.choice(SERVICES)) if rng.random() < 0.25 else None
        namespace = rng.choice(["shop", "shop", "shop", "other"])
        found.append(
            ingress(
                f"i{number:03d}",
                *rules,
                tls=tls or None,
                default=default,
                namespace=namespace,
                annotations=annotations(rng),
            )
        )
    return found
