"""The chapter on ingress sync: two hosts with TLS, a broken neighbour, a foreign listener, a rollout."""

from __future__ import annotations

import base64
import copy
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self, TypeVar

from sandbox import tools
from sandbox.arm import LocalArm
from sandbox.azurite import Azurite
from sandbox.certificates import Authority
from sandbox.clock import Clock
from sandbox.demo.screen import Screen
from sandbox.demo.world import wait_for
from sandbox.host.process import HostProcess
from sandbox.identity import ManagedIdentity
from sandbox.kube import LocalKubernetes
from sandbox.kube_client import KubeClient
from sandbox.node_agent import NodeAgent
from shared.bootstrap import Clients
from shared.model.plan import canonical_json
from shared.runtime.message import Nudge
from shared.runtime.nudge import send_nudge

TITLE = "Ingress sync: routing from Ingress objects, and a gateway that is never harmed"
STEPS = 6
CLUSTER, AUTOMATION = "demo", "ingress-sync"
NAMESPACE = "shop"
HOSTS = ("shop.example", "api.example")
FOREIGN = "by-hand"
CONFIGURATION = """\
clusters:
  - name: {cluster}
    kubernetes: {{kubeconfig: "file:{kubeconfig}"}}
    azure: {{subscription: {subscription}, resourceGroups: [{group}], location: westeurope}}
    ingressSync: {{gateway: "{gateway}"{policy}}}
"""
QUICK = ", quiet: 1s, poolInterval: 2s"
Document = dict[str, Any]
T = TypeVar("T")


def show(screen: Screen) -> None:
    """All steps, in the order an operator would meet them."""
    with World(screen) as world:
        with screen.step(
            "A local world: a gateway that somebody else uses too, a cluster, the Functions host"
        ):
            world.start()
            _show_world(world)
        with screen.step("An app with TLS and two hosts appears"):
            _appears(world)
        with screen.step("A broken Ingress is left out alone"):
            _broken(world)
        with screen.step("Nothing changes: nothing is written"):
            _idle(world)
        with screen.step("A rollout: pods drain before they go, and new ones come when they are ready"):
            _rollout(world)
        with screen.step("What is somebody else's is as it was"):
            _foreign(world)


class World:
    """Azurite, the local Azure with a gateway, a cluster with a node, the app's own host. `policy` is what
    its configuration says of the ingress beside the gateway.
    """

    def __init__(self, screen: Screen, policy: str = QUICK) -> None:
        self.screen = screen
        self._policy = policy
        self._cleanup = ExitStack()
        self.arm: LocalArm
        self.kube: KubeClient
        self.host: HostProcess
        self.clients: Clients
        self.directory: Path
        self.gateway = ""
        self.environ: dict[str, str] = {}
        self.before: Document = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def start(self) -> None:
        """Each part on free ports."""
        enter = self._cleanup.enter_context
        self.directory = Path(enter(TemporaryDirectory(prefix="keeper-")))
        self.screen.progress("starting Azurite")
        azurite = enter(Azurite())
        self.screen.progress("starting the local Azure and Kubernetes")
        self.arm = enter(LocalArm(Clock()))
        self.arm.core.operation_seconds, self.arm.core.polling_seconds = 2.0, 1
        kubernetes = enter(LocalKubernetes(Clock()))
        kubernetes.run_controllers()
        self.kube = kubernetes.client()
        enter(NodeAgent(self.kube)).join("node-a")
        self.gateway = self._make_gateway()
        identity = enter(ManagedIdentity(self.arm.directory))
        self.environ = {
            "AzureWebJobsStorage": azurite.connection_string,
            "KUBEKEEPER_CONFIG": str(self._configure(kubernetes.kubeconfig())),
            "KUBEKEEPER_ARM_ENDPOINT": self.arm.url,
            **{f"KUBEKEEPER_{name}_SCHEDULE": "0 0 0 * * *" for name in SCHEDULES},
            **identity.environ,
        }
        self.clients = Clients(self.environ)
        self.screen.progress("starting the Functions host")
        self.host = enter(HostProcess(tools.CHECKOUT, self.environ, log=self.directory / "host.log"))

    def _make_gateway(self) -> str:
        """A gateway on which somebody has made a listener of their own."""
        gateway = self.arm.add_gateway("gw", tags={"team": "network"})
        body = self.document(gateway)
        default = body["properties"]["httpListeners"][0]
        rule = body["properties"]["requestRoutingRules"][0]
        inside = {**default["properties"], "hostName": "legacy.example"}
        body["properties"]["httpListeners"].append({"name": FOREIGN, "properties": inside})
        to = {"httpListener": {"id": f"{gateway}/httpListeners/{FOREIGN}"}, "priority": 10}
        made = {"name": FOREIGN, "properties": {**rule["properties"], **to}}
        body["properties"]["requestRoutingRules"].append(made)
        self.arm.put(gateway, body)
        self.before = self.document(gateway)
        return gateway

    def _configure(self, kubeconfig: Path) -> Path:
        path = self.directory / "kubekeeper.yaml"
        path.write_text(
            CONFIGURATION.format(
                cluster=CLUSTER,
                kubeconfig=kubeconfig,
                subscription=self.arm.subscription,
                group=self.arm.group,
                gateway=self.gateway,
                policy=self._policy,
            )
        )
        return path

    def document(self, gateway: str = "") -> Document:
        """The gateway as it is stored."""
        return copy.deepcopy(self.arm.core.state.resources[(gateway or self.gateway).lower()].body)

    def serving(self) -> Document:
        """The document that traffic meets."""
        self.arm.core.settle()
        found: Document = self.arm.core.state.resources[self.gateway.lower()].hidden["serving"]
        return found

    def writes(self) -> int:
        """How often the app has written the gateway."""
        return self.arm.recorder.count("PUT", "/applicationGateways/")

    def nudge(self) -> None:
        """What the forwarder's event does."""
        send_nudge(self.clients, Nudge(cluster=CLUSTER, automation=AUTOMATION, reason="IngressChanged"))

    def keeper(self, *arguments: str, show: bool = True) -> tuple[int, str]:
        """Run a `keeper` command as a user would, and show it."""
        if show:
            self.screen.command(shlex.join(["keeper", *arguments]))
        done = subprocess.run(
            [str(Path(sys.executable).with_name("keeper")), *arguments],
            cwd=tools.CHECKOUT,
            env={**os.environ, **self.environ, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        if show:
            self.screen.output(output, most=15)  # a plan down to its head-room
        return done.returncode, output

    def wait(self, what: str, look: Callable[[], T | None], seconds: float = 60) -> T:
        """What `look` gives as soon as it gives something; NotInTimeError names `what` otherwise."""
        return wait_for(self.screen, what, look, seconds, self.directory / "host.log")


SCHEDULES = ("AUTOSCALING", "DISK_RELEASE", "ETCD_BACKUP", "INGRESS_SYNC")


# The steps


def _show_world(world: World) -> None:
    names = ", ".join(part["name"] for part in world.before["properties"]["httpListeners"])
    world.screen.say(f"gateway gw with the listeners {names}, none of them ours")
    _pass(world)
    world.screen.check("a pass without Ingress objects writes nothing", holds=world.writes() == 0)


def _appears(world: World) -> None:
    screen = world.screen
    _make_app(world)
    screen.say(f"Deployment, Service, TLS Secret and an Ingress for {' and '.join(HOSTS)}")
    code, plan = world.keeper("plan", AUTOMATION, "--cluster", CLUSTER)
    routes = all(f"+ public https:443 {host}/* -> " in plan for host in HOSTS)
    screen.check("keeper plan shows the routes that would come", holds=code == 0 and routes)
    room = "interruptions: none" in plan and "activeListeners: 3 of 100 used" in plan
    screen.check("and that nothing is interrupted, and how much room is left", holds=room)
    began = time.monotonic()
    world.nudge()
    world.wait("write of the gateway", lambda: world.writes() or None)
    sent = time.monotonic() - began
    # 1 s of quiet, and the host looks into its queues every second or two; a busy machine takes longer.
    screen.check("the write leaves seconds after the nudge", holds=sent < 10, otherwise=f"{sent:.1f} s")
    world.wait("TLS listeners for both hosts", lambda: set(HOSTS) <= _hosts(world.serving(), "Https") or None)
    address = world.wait("address in the Ingress' status", lambda: _address(world, "shop"))
    pods = _pod_addresses(world)
    screen.check("requests go to the pods' own addresses", holds=_targets(world.serving()) == pods)
    screen.check("the status has the gateway's address", holds=address.startswith("20."))
    document = json.dumps(world.document()) + (world.directory / "host.log").read_text()
    screen.check("no private key is readable anywhere", holds="PRIVATE KEY" not in document)
    screen.note("ingress", f"two hosts with TLS; nudge to write {sent:.1f} s")


def _make_app(world: World) -> None:
    kube = world.kube
    kube.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    _deploy(world, replicas=2)
    ports = [{"port": 80, "targetPort": 8080}]
    service = {"metadata": {"name": "shop"}, "spec": {"selector": {"app": "shop"}, "ports": ports}}
    kube.create(_path("services"), service)
    issued = Authority().issue("shop", names=HOSTS, not_after=datetime.now(UTC) + timedelta(days=90))
    data = {"tls.crt": issued.certificate, "tls.key": issued.key}
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
    kube.create(_path("secrets"), {"metadata": {"name": "tls"}, "type": "kubernetes.io/tls", "data": encoded})
    controller = {"metadata": {"name": "azure"}, "spec": {"controller": "azure/application-gateway"}}
    kube.create("/apis/networking.k8s.io/v1/ingressclasses", controller)
    kube.create(_path("ingresses"), _ingress("shop", *HOSTS, tls="tls"))
    world.wait("pods", lambda: len(_pod_addresses(world)) == 2 or None)


def _broken(world: World) -> None:
    screen = world.screen
    broken = _ingress("broken", "broken.example", tls="not-there")
    world.kube.create(_path("ingresses"), broken)
    world.kube.create(_path("ingresses"), _ingress("news", "news.example"))
    world.nudge()
    world.wait("news.example", lambda: "news.example" in _hosts(world.serving()) or None)
    event = world.wait("Event on the broken Ingress", lambda: _event(world, "broken"))
    screen.say(f"{event['reason']}: {event['message']}")
    served = _hosts(world.serving())
    screen.check("the new Ingress beside it is served", holds="news.example" in served)
    screen.check("the first app still is", holds=set(HOSTS) <= served)
    screen.check("the broken one is not", holds="broken.example" not in served)
    screen.check("its Event says what to change", holds="not-there" in event["message"])
    screen.note("broken Ingress", "left out alone, with an Event that says what to change")


def _idle(world: World) -> None:
    screen = world.screen
    world.wait("address of the new one", lambda: _address(world, "news"))
    before = world.writes()
    _pass(world)  # the first look sees that all is well, the next sees that nothing has changed
    asked = len(world.arm.recorder.requests)
    _pass(world)
    screen.check("a pass that finds nothing new writes nothing", holds=world.writes() == before)
    asked = len(world.arm.recorder.requests) - asked
    screen.check(
        "it asks Azure for the gateway and its address, once", holds=asked == 2, otherwise=str(asked)
    )
    screen.note("idle pass", f"no write, {asked} requests to Azure")


def _rollout(world: World) -> None:
    screen = world.screen
    old = _pod_addresses(world)
    empty: list[float] = []
    world.kube.patch(
        "/apis/apps/v1/namespaces/shop/deployments/shop", {"spec": {"template": _template("v2")}}
    )

    def look() -> bool | None:
        world.nudge()
        here = _targets(world.serving())
        if not here:
            empty.append(time.monotonic())
        time.sleep(0.4)
        return True if here and not here & old and here == _pod_addresses(world) else None

    world.wait("new pods behind the gateway", look, 90)
    screen.check("at no moment was the app without a server", holds=not empty)
    screen.check("no old pod is left", holds=not _targets(world.serving()) & old)
    screen.note("rollout", f"{len(old)} pods replaced, the pool never empty")


def _foreign(world: World) -> None:
    screen = world.screen
    now = world.serving()
    for collection, parts in world.before["properties"].items():
        if not isinstance(parts, list):
            continue
        found = {part["name"]: part for part in now["properties"].get(collection, [])}
        for part in parts:
            same = canonical_json(found.get(part["name"])) == canonical_json(part)
            if part["name"] == FOREIGN or not same:
                screen.check(f"{collection}/{part['name']} is as it was, byte for byte", holds=same)
    screen.check("tags are as they were", holds=now["tags"] == world.before["tags"])
    _, output = world.keeper("poison", "list", "--json", show=False)
    screen.check("no message failed for good", holds=not json.loads(output).get("messages"))
    screen.note("foreign listener", "byte-identical after every write")


# What is there


def _path(plural: str) -> str:
    group = {"ingresses": "/apis/networking.k8s.io/v1", "deployments": "/apis/apps/v1"}.get(plural, "/api/v1")
    return f"{group}/namespaces/{NAMESPACE}/{plural}"


def _deploy(world: World, replicas: int) -> None:
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "shop"}},
        "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": _template("v1"),
    }
    world.kube.create(_path("deployments"), {"metadata": {"name": "shop"}, "spec": spec})


def _template(version: str) -> Document:
    container = {"name": "main", "image": f"example.org/shop:{version}", "ports": [{"containerPort": 8080}]}
    return {
        "metadata": {"labels": {"app": "shop"}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 5},
    }


def _ingress(name: str, *hosts: str, tls: str = "") -> Document:
    backend = {"service": {"name": "shop", "port": {"number": 80}}}
    http = {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}
    spec: Document = {
        "ingressClassName": "azure",
        "rules": [{"host": host, "http": http} for host in hosts],
    }
    spec |= {"tls": [{"hosts": list(hosts), "secretName": tls}]} if tls else {}
    return {"metadata": {"name": name}, "spec": spec}


def _hosts(document: Document, protocol: str = "") -> set[str]:
    found: set[str] = set()
    for listener in document["properties"]["httpListeners"]:
        inside = listener["properties"]
        if listener["name"].startswith("kk_") and inside["protocol"].startswith(protocol):
            found |= set(inside.get("hostNames") or [inside.get("hostName", "")])
    return found


def _targets(document: Document) -> set[str]:
    pools = [pool for pool in document["properties"]["backendAddressPools"] if pool["name"].startswith("kk_")]
    return {to["ipAddress"] for pool in pools for to in pool["properties"].get("backendAddresses") or []}


def _pod_addresses(world: World) -> set[str]:
    pods = world.kube.get(_path("pods"))["items"]
    ready = [
        pod
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())
    ]
    return {pod["status"]["podIP"] for pod in ready}


def _address(world: World, name: str) -> str | None:
    status = world.kube.get(f"{_path('ingresses')}/{name}").get("status") or {}
    found = (status.get("loadBalancer") or {}).get("ingress") or []
    return str(found[0]["ip"]) if found else None


def _event(world: World, name: str) -> Document | None:
    events = world.kube.get(_path("events"), fieldSelector=f"involvedObject.name={name}")["items"]
    return next((event for event in events if event["type"] == "Warning"), None)


def _pass(world: World) -> None:
    """The timer fires, and a pass that began after that has ended."""
    number = world.clients.claims.state(CLUSTER, AUTOMATION).begun
    time.sleep(2.1)  # until the settling time is over, so that it is one pass
    world.host.run_function("ingress_sync_timer")
    world.wait("pass", lambda: world.clients.claims.state(CLUSTER, AUTOMATION).ended > number or None)
