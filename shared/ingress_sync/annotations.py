"""The annotations of an Ingress: one table of what each means, and the values that stand in one object.

Names and meanings are those of AGIC (`appgw.ingress.kubernetes.io/...`), ranges those of Application Gateway.
A wrong value is ignored and reported, as AGIC does, unless ignoring it would expose or weaken something:
then the object is quarantined. docs/ingress-annotations.md is generated from the table. Pure; called by the
front end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

PREFIX = "appgw.ingress.kubernetes.io/"
OWN_PREFIX = "ingress-sync.kubekeeper.io/"
"""Annotations that AGIC does not have."""

MAX_PORT = 64_999
RESOURCE_ID = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/[^/]+/[^/]+/[^/]+", re.IGNORECASE
)
PART_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,78}[A-Za-z0-9_])?")
HOST = re.compile(r"[a-z0-9*?]([a-z0-9*?_-]{0,61}[a-z0-9*?])?(\.[a-z0-9*?]([a-z0-9*?_-]{0,61}[a-z0-9*?])?)*")
KEY_VAULT_ID = re.compile(
    r"https://[A-Za-z0-9-]{3,24}\.vault\.(azure\.net|azure\.cn|usgovcloudapi\.net)"
    r"/secrets/[A-Za-z0-9-]{1,127}(/[0-9a-f]{32})?/?"
)
CODES = re.compile(r"([1-5]\d\d)(?:-([1-5]\d\d))?")
TRUE, FALSE = (
    frozenset({"1", "t", "T", "true", "TRUE", "True"}),
    frozenset({"0", "f", "F", "false", "FALSE", "False"}),
)


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the annotations of one object say; defaults where they say nothing. None: not said."""

    backend_path_prefix: str = ""
    backend_hostname: str = ""
    backend_protocol: str = ""
    ssl_redirect: bool = False
    ssl_certificate: str = ""
    ssl_profile: str = ""
    trusted_roots: tuple[str, ...] = ()
    connection_draining: bool | None = None
    connection_draining_timeout: int = 30
    affinity: bool = False
    affinity_distinct_name: bool = False
    request_timeout: int = 30
    frontend_port: int = 0
    use_private_ip: bool | None = None
    hostname_extension: tuple[str, ...] = ()
    waf_policy: str = ""
    probe_hostname: str = ""
    probe_port: int = 0
    probe_path: str = ""
    probe_codes: tuple[str, ...] = ()
    probe_interval: int = 0
    probe_timeout: int = 0
    probe_threshold: int = 0
    rewrite_set: str = ""
    rewrite_resource: str = ""
    rule_priority: int = 0
    key_vault_id: str = ""
    error_page_403: str = ""
    error_page_502: str = ""


NOTHING_SAID = Options()


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A value that cannot be used; `is_fatal` when the object must not be routed without it."""

    annotation: str
    message: str
    is_fatal: bool


class Annotation(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. `read` turns the text into the field's value, or raises ValueError."""

    name: str
    field: str
    read: Callable[[str], Any]
    expects: str
    default: str
    meaning: str
    differs: str = ""
    """How this differs from AGIC, for the documentation; "" where it does not."""
    on_bad: Literal["ignored", "quarantined"] = "ignored"
    prefix: str = PREFIX

    @property
    def key(self) -> str:
        """The annotation's full name."""
        return self.prefix + self.name


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text.strip()


def _boolean(text: str) -> bool:
    if text not in TRUE | FALSE:
        raise ValueError
    return text in TRUE


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return read


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not pattern.fullmatch(text.strip()):
            raise ValueError
        return text.strip()

    return read


def _path(text: str) -> str:
    found = text.strip()
    if not found or len(found) > 2048 or re.search(r"[\s\x00-\x1f]", found):
        raise ValueError
    return found if found.startswith("/") else "/" + found


def _protocol(text: str) -> str:
    found = text.strip().lower()
    if found not in {"http", "https"}:
        raise ValueError
    return found.capitalize()


def _host(text: str) -> str:
    found = text.strip().lower()
    if len(found) > 253 or not HOST.fullmatch(found):
        raise ValueError
    return found


def _plain_host(text: str) -> str:
    found = _host(text)
    if "*" in found or "?" in found:
        raise ValueError
    return found


def _list_of(read: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    def read_all(text: str) -> tuple[str, ...]:
        found = [read(item) for item in text.split(",") if item.strip()]
        if not found:
            raise ValueError
        return tuple(dict.fromkeys(found))

    return read_all


def _codes(text: str) -> str:
    match = CODES.fullmatch(text.strip())
    if not match or (match[2] and match[2] < match[1]):
        raise ValueError
    return match[0]


def _url(text: str) -> str:
    found = text.strip()
    if not re.fullmatch(r"https?://[^\s/]+/\S*\.html?", found):
        raise ValueError
    return found


TABLE: tuple[Annotation, ...] = (
    Annotation(
        name="backend-path-prefix",
        field="backend_path_prefix",
        read=_path,
        expects="a path",
        default="-",
        meaning="Replaces the matched path towards the backend; also the path of the default probe.",
    ),
    Annotation(
        name="backend-hostname",
        field="backend_hostname",
        read=_plain_host,
        expects="a host name",
        default="-",
        meaning="The Host header towards the backend; also the host of the probe.",
    ),
    Annotation(
        name="backend-protocol",
        field="backend_protocol",
        read=_protocol,
        expects="`http` or `https`, in any case",
        default="http",
        meaning="Protocol towards the backend and of the probe. Said nothing, backend port 443 implies "
        "https, and a pod's probe keeps its own scheme.",
    ),
    Annotation(
        name="ssl-redirect",
        field="ssl_redirect",
        read=_boolean,
        expects="a boolean (`true`, `false`, `1`, `0`, `t`, `f`)",
        default="false",
        meaning="The http listener answers 301 to the https one; path and query are kept. Needs "
        "`spec.tls` or `appgw-ssl-certificate`.",
        differs="Follows `override-frontend-port`: http stays on 80 and leads to the overridden https port. "
        "Hosts with a wildcard are not redirected (the platform cannot), which is reported.",
        on_bad="quarantined",
    ),
    Annotation(
        name="appgw-ssl-certificate",
        field="ssl_certificate",
        read=_matching(PART_NAME),
        expects="the name of a certificate on the gateway",
        default="-",
        meaning="Serves hosts with a certificate that is on the gateway (Key Vault too). `spec.tls` wins.",
        on_bad="quarantined",
    ),
    Annotation(
        name="appgw-ssl-profile",
        field="ssl_profile",
        read=_matching(PART_NAME),
        expects="the name of an SSL profile on the gateway",
        default="-",
        meaning="TLS policy and mutual TLS of the https listener.",
        on_bad="quarantined",
    ),
    Annotation(
        name="appgw-trusted-root-certificate",
        field="trusted_roots",
        read=_list_of(_matching(PART_NAME)),
        expects="names of trusted root certificates on the gateway, comma-separated",
        default="-",
        meaning="Roots that the backend's certificate may have. With https and no `backend-hostname` the "
        "host is taken from the backend's address.",
        on_bad="quarantined",
    ),
    Annotation(
        name="connection-draining",
        field="connection_draining",
        read=_boolean,
        expects="a boolean",
        default="false",
        meaning="Connections to an endpoint that leaves the pool may end by themselves.",
        differs="Without the annotation `ingressSync.drainTimeout` decides.",
    ),
    Annotation(
        name="connection-draining-timeout",
        field="connection_draining_timeout",
        read=_integer(1, 3600),
        expects="seconds, 1 to 3600",
        default="30",
        meaning="For how long they may.",
    ),
    Annotation(
        name="cookie-based-affinity",
        field="affinity",
        read=_boolean,
        expects="a boolean",
        default="false",
        meaning="Requests of one client go to the same endpoint, by a cookie.",
    ),
    Annotation(
        name="cookie-based-affinity-distinct-name",
        field="affinity_distinct_name",
        read=_boolean,
        expects="a boolean",
        default="false",
        meaning="The cookie is called `appgw-affinity-` and the md5 of `namespace-service`.",
    ),
    Annotation(
        name="request-timeout",
        field="request_timeout",
        read=_integer(1, 86_400),
        expects="seconds, 1 to 86400",
        default="30",
        meaning="How long the backend may take. A public frontend ends requests after 4 minutes.",
    ),
    Annotation(
        name="override-frontend-port",
        field="frontend_port",
        read=_integer(1, MAX_PORT),
        expects="a port, 1 to 64999",
        default="80, 443",
        meaning="The port to listen on, for http and https alike.",
        differs="A wrong port is reported (and the default used). With `ssl-redirect` it is the https port.",
    ),
    Annotation(
        name="use-private-ip",
        field="use_private_ip",
        read=_boolean,
        expects="a boolean",
        default="false",
        meaning="Listens on the private frontend instead of the public one.",
        differs="Without the annotation `ingressSync.usePrivateIp` decides.",
        on_bad="quarantined",
    ),
    Annotation(
        name="hostname-extension",
        field="hostname_extension",
        read=_list_of(_host),
        expects="host names, comma-separated; wildcards `*` and `?`",
        default="-",
        meaning="Further hosts of every rule; the only ones of a rule without host.",
        differs="More than five hosts become several listeners, instead of being cut; rules of one object do "
        "not repeat them.",
    ),
    Annotation(
        name="waf-policy-for-path",
        field="waf_policy",
        read=_matching(RESOURCE_ID),
        expects="the resource id of a WAF policy",
        default="-",
        meaning="The policy of each path; also of the listener when a path is empty, `/` or `/*`.",
        differs="Checked to be a resource id.",
        on_bad="quarantined",
    ),
    Annotation(
        name="health-probe-hostname",
        field="probe_hostname",
        read=_plain_host,
        expects="a host name or address",
        default="-",
        meaning="Host of the probe. The health-probe annotations override every other source of a probe.",
    ),
    Annotation(
        name="health-probe-port",
        field="probe_port",
        read=_integer(1, 65_535),
        expects="a port, 1 to 65535",
        default="-",
        meaning="Port of the probe.",
    ),
    Annotation(
        name="health-probe-path",
        field="probe_path",
        read=_path,
        expects="a path",
        default="-",
        meaning="Path of the probe.",
    ),
    Annotation(
        name="health-probe-status-codes",
        field="probe_codes",
        read=_list_of(_codes),
        expects="codes and ranges, such as `200-399,401`",
        default="200-399",
        meaning="Answers that count as healthy.",
    ),
    Annotation(
        name="health-probe-interval",
        field="probe_interval",
        read=_integer(1, 86_400),
        expects="seconds, 1 to 86400",
        default="30",
        meaning="Time between probes.",
    ),
    Annotation(
        name="health-probe-timeout",
        field="probe_timeout",
        read=_integer(1, 86_400),
        expects="seconds, 1 to 86400",
        default="30",
        meaning="How long a probe may take.",
    ),
    Annotation(
        name="health-probe-unhealthy-threshold",
        field="probe_threshold",
        read=_integer(1, 20),
        expects="a count, 1 to 20",
        default="3",
        meaning="Failed probes in a row that make an endpoint unhealthy.",
        differs="Above 20, which would have Azure refuse the whole gateway, it is reported and ignored.",
    ),
    Annotation(
        name="rewrite-rule-set",
        field="rewrite_set",
        read=_matching(PART_NAME),
        expects="the name of a rewrite set on the gateway",
        default="-",
        meaning="Rewrites requests and answers by a set that is on the gateway.",
        on_bad="quarantined",
    ),
    Annotation(
        name="rewrite-rule-set-custom-resource",
        field="rewrite_resource",
        read=_matching(re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")),
        expects="the name of an AzureApplicationGatewayRewrite in the object's namespace",
        default="-",
        meaning="Rewrites by a custom resource.",
        differs="With both rewrite annotations the object is quarantined; AGIC applies neither.",
        on_bad="quarantined",
    ),
    Annotation(
        name="rule-priority",
        field="rule_priority",
        read=_integer(1, 20_000),
        expects="1 to 20000",
        default="by host",
        meaning="Priority of the listeners' rules, the smallest first.",
        differs="Without it: exact hosts before wildcards, longer wildcards before shorter, no host last. A "
        "priority that is taken is reported and chosen anew.",
    ),
    Annotation(
        name="key-vault-secret-id",
        field="key_vault_id",
        read=_matching(KEY_VAULT_ID),
        expects="`https://VAULT.vault.azure.net/secrets/NAME`, with or without a version",
        default="-",
        meaning="Serves hosts with a certificate of a Key Vault, which the gateway reads by its identity; "
        "without a version it follows renewals. `spec.tls` and `appgw-ssl-certificate` win.",
        differs="Not in AGIC.",
        on_bad="quarantined",
        prefix=OWN_PREFIX,
    ),
    Annotation(
        name="error-page-403",
        field="error_page_403",
        read=_url,
        expects="the URL of a page, ending in .htm or .html",
        default="-",
        meaning="The page for requests that the firewall refuses.",
        differs="Not in AGIC.",
        prefix=OWN_PREFIX,
    ),
    Annotation(
        name="error-page-502",
        field="error_page_502",
        read=_url,
        expects="the URL of a page, ending in .htm or .html",
        default="-",
        meaning="The page for requests that no backend can answer.",
        differs="Not in AGIC.",
        prefix=OWN_PREFIX,
    ),
)

BY_KEY = {annotation.key: annotation for annotation in TABLE}


def parse(annotations: Mapping[str, str] | None) -> tuple[Options, tuple[Problem, ...]]:
    """What an object's annotations say, and what is wrong with them, in the order of their names."""
    if not annotations:
        return NOTHING_SAID, ()
    said: dict[str, Any] = {}
    problems: list[Problem] = []
    for key in annotations:
        if key.startswith((PREFIX, OWN_PREFIX)):
            _parse_one(key, annotations[key], said, problems)
    problems.sort(key=lambda problem: problem.annotation)
    return (Options(**said) if said else NOTHING_SAID), tuple(problems)


def _parse_one(key: str, text: str, said: dict[str, Any], problems: list[Problem]) -> None:
    annotation = BY_KEY.get(key)
    if annotation is None:
        message = f"there is no annotation {key}; correct its name or remove it"
        problems.append(Problem(annotation=key, message=message, is_fatal=False))
        return
    try:
        said[annotation.field] = annotation.read(text)
    except ValueError:
        is_fatal = annotation.on_bad == "quarantined"
        shown = text if len(text) <= 60 else text[:57] + "..."
        message = f"{key} is {shown!r}; expected is {annotation.expects}"
        if not is_fatal:
            message += (
                f"; it is ignored, and {annotation.default} holds"
                if annotation.default != "-"
                else ("; it is ignored")
            )
        problems.append(Problem(annotation=key, message=message, is_fatal=is_fatal))


def documentation() -> str:
    """The table of docs/ingress-annotations.md, in Markdown."""
    lines = ["| annotation | value | default | meaning | a wrong value is |", "|---|---|---|---|---|"]
    for annotation in TABLE:
        meaning = annotation.meaning + (f" *Here:* {annotation.differs}" if annotation.differs else "")
        name = annotation.key if annotation.prefix == OWN_PREFIX else annotation.name
        row = (f"`{name}`", annotation.expects, annotation.default, meaning, annotation.on_bad)
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"
