"""The chapter on what a person sees and touches: doctor, operations and how they end, a yes, the status page.

Everything at once on one cluster, in real time: the app's own triggers in the local Functions host, a real
Azurite, a real etcd, the local Azure and Kubernetes. `keeper` and the page see what they would see anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

from prometheus_client.parser import text_string_to_metric_families

from sandbox import browser
from sandbox.demo.screen import Screen
from sandbox.demo.world import Ran, run_keeper, wait_for
from sandbox.up import options_of
from sandbox.whole_world import StandInCluster, WholeWorld
from shared.bootstrap import Clients
from shared.operations.dispatch import QUEUE
from shared.runtime.automation import AUTOMATIONS, schedule_setting
from shared.runtime.nudge import send

TITLE = "The operator's view: doctor, one-off operations, a person's yes, the status page"
STEPS = 6
CLUSTER = "local"
Document = dict[str, Any]
T = TypeVar("T")

PICTURES: dict[str, tuple[Document, str]] = {
    "status": ({"color_scheme": "light", "viewport": {"width": 1100, "height": 1080}}, ""),
    "status-cluster": ({"color_scheme": "dark", "viewport": {"width": 1100, "height": 1080}}, "section"),
    "status-phone": ({"color_scheme": "light", "viewport": {"width": 390, "height": 844}}, ""),
}
"""Name of each picture, how the browser is set up for it, and which part it shows when not the top."""


def show(screen: Screen, pictures: Path | None = None) -> None:
    """All steps, in the order an operator would meet them; `pictures` is where screenshots go."""
    with Scene(screen) as scene:
        with screen.step("One cluster with everything on: etcd, disks, a gateway, the app beside it"):
            _start(scene)
        with screen.step("What is missing? A kubelet dies meanwhile, and somebody sends nonsense"):
            _doctor(scene)
        with screen.step("One-off operations: sent, and followed to their end"):
            _operations(scene)
        with screen.step("A machine is only powered off when a person says yes"):
            _approve(scene)
        with screen.step("The status page"):
            _page(scene, pictures)
        with screen.step("All is well again"):
            _well(scene)


class Scene:
    """One whole world, and the app beside it."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self._cleanup = ExitStack()
        self.victim = ""
        """The node whose kubelet dies."""
        self.disk = ""
        self.sent: dict[str, str] = {}
        """Operations by id."""

    def __enter__(self) -> Self:
        self.directory = Path(self._cleanup.enter_context(TemporaryDirectory(prefix="keeper-")))
        options = options_of(etcd=True, host=True)
        self.whole = self._cleanup.enter_context(WholeWorld(self.directory, options))
        # Nothing is backed up before the operator asks for it.
        schedules = {schedule_setting(name): "0 * * * * *" for name in AUTOMATIONS}
        self.whole.environ |= schedules | {schedule_setting("etcd-backup"): "0 0 0 1 1 *"}
        for start in self.whole.steps():
            self.screen.progress(f"{start.__name__.strip('_').replace('_', ' ')}")
            start()
        self.clients = Clients(self.whole.environ)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def cluster(self) -> StandInCluster:
        assert isinstance(self.whole.cluster, StandInCluster)
        return self.whole.cluster

    def keeper(self, *arguments: str, show: bool = True) -> Ran:
        """Run a `keeper` command as a user would."""
        return run_keeper(self.screen, self.whole.environ, *arguments, show=show)

    def send(self, operation: str, *settings: str) -> Ran:
        """Send an operation and follow it; its id is kept."""
        identity = f"demo-{operation}-{len(self.sent) + 1}"
        self.sent[identity] = operation
        pairs = [part for one in settings for part in ("--set", one)]
        return self.keeper("run", operation, "--id", identity, *pairs, "--wait")

    def wait(self, what: str, look: Callable[[], T | None], seconds: float = 120) -> T:
        """What `look` gives as soon as it gives something; NotInTimeError names `what` otherwise."""
        return wait_for(self.screen, what, look, seconds, self.directory / "host.log")

    def nudge(self, automation: str) -> None:
        """One automation looks now, as when its timer fires."""
        host = self.whole.host
        host.post(f"/api/reconcile/{CLUSTER}/{automation}", key=host.keys.function)

    def left_alone(self, automation: str) -> list[Document]:
        """What the last plan left alone."""
        summary = self.clients.journal.summary(CLUSTER, automation)
        return list(summary.left_alone) if summary else []

    def status(self) -> Document:
        """The document of the status page."""
        answer = self.whole.host.get("/api/status?format=json", key=self.whole.host.keys.function)
        found: Document = answer.json()
        return found


# The steps


def _start(scene: Scene) -> None:
    screen, cluster = scene.screen, scene.cluster
    # Zone-redundant, as the agents are in three zones and the pod is to move.
    (scene.disk,) = cluster.add_stateful_set("db", cpu="500m", sku="Premium_ZRS")
    cluster.add_deployment("web", replicas=2, cpu="500m")
    client = cluster.client()
    controller = {"metadata": {"name": "azure"}, "spec": {"controller": "azure/application-gateway"}}
    client.create("/apis/networking.k8s.io/v1/ingressclasses", controller)
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    client.create("/api/v1/namespaces/default/services", {"metadata": {"name": "web"}, "spec": service})
    for ingress in (_ingress("shop"), _ingress("broken", tls="not-there")):
        client.create("/apis/networking.k8s.io/v1/namespaces/default/ingresses", ingress)
    scene.wait("pod db-0", lambda: cluster.pod("db-0").is_running)
    scene.victim = cluster.pod("db-0").node
    nodes = ", ".join(sorted(cluster.nodes()))
    screen.say(f"AKS cluster '{CLUSTER}' with the nodes {nodes}")
    screen.say(f"pod db-0 with a disk on {scene.victim}; Ingresses shop and broken; etcd with TLS")
    for name in ("autoscaling", "disk-release", "ingress-sync"):
        scene.nudge(name)
    scene.wait("first passes", lambda: all(map(scene.left_alone, ("autoscaling", "ingress-sync"))) or None)


def _doctor(scene: Scene) -> None:
    screen = scene.screen
    screen.say(f"the kubelet of {scene.victim} dies; its machine and its containers run on")
    scene.cluster.kill_kubelet(scene.victim)
    send(scene.clients, QUEUE, '{"operation": "backup", "cluster": "prodd"}')
    done = scene.keeper("doctor")
    report = json.loads(scene.keeper("doctor", "--json", show=False).output)
    problems = [one for one in report["findings"] if one["level"] == "problem"]
    said = [f"{one['subject']}: {one['message']}" for one in problems]
    screen.check(
        "exit code 1, and the one problem is that nothing was backed up yet",
        holds=done.code == 1 and len(said) == 1 and "no verified backup" in said[0],
        otherwise=str(said),
    )


def _operations(scene: Scene) -> None:
    screen = scene.screen
    done = scene.send("backup", "reason=before-the-upgrade")
    screen.check("a verified backup, exit code 0", holds=done.code == 0 and "verified" in done.output)
    scene.nudge("etcd-backup")
    before = len(scene.cluster.nodes())
    done = scene.send("scale", "pool=agents", "count=3")
    screen.check("Azure was asked for a third agent", holds=done.code == 0, otherwise=done.output)
    scene.wait("third agent", lambda: len(scene.cluster.nodes()) > before)
    done = scene.send("scale", "pool=agnets", "count=3")
    screen.check(
        "a pool that is not there: exit code 1, the reason, and nothing done",
        holds=done.code == 1 and "agnets" in done.output,
        otherwise=done.output,
    )
    done = scene.keeper("run", "scale", "--set", "pool=agents", "--set", "count=three")
    screen.check("a wrong parameter is refused before anything is sent", holds=done.code == 2)
    done = scene.keeper("explain", "demo-scale-2")
    screen.check("what it did is on record, with the evidence", holds=done.code == 0 and "3" in done.output)


def _approve(scene: Scene) -> None:
    screen, cluster = scene.screen, scene.cluster

    def waits() -> Document | None:
        alone = scene.left_alone("disk-release")
        return next((one for one in alone if "not approved" in one["message"]), None)

    found = scene.wait("plan that wants a yes", waits, seconds=240)
    screen.say(f"disk-release leaves {found['subject']} alone: {found['reason']}")
    told = [one["message"] for one in scene.status()["attention"]]
    screen.check(
        "the status page says what waits for whom", holds=any("waits for approval" in one for one in told)
    )
    screen.check("nothing was taken from the machine yet", holds=cluster.owner(scene.disk) == scene.victim)
    done = scene.send("approve", "automation=disk-release", f"subject={scene.victim}")
    screen.check("the yes is taken", holds=done.code == 0, otherwise=done.output)
    scene.wait("pod db-0 on another node", lambda: _runs_elsewhere(scene) or None, seconds=240)
    screen.say(f"db-0 runs on {cluster.pod('db-0').node}; the machine of {scene.victim} is powered off")
    screen.check("nothing was corrupted", holds=cluster.corruptions == [])
    scene.wait("release in the journal", lambda: _released(scene) or None)


def _page(scene: Scene, pictures: Path | None) -> None:
    screen, host = scene.screen, scene.whole.host
    scene.wait("poisoned message", lambda: scene.status()["poison"] or None, seconds=240)
    screen.command("curl $APP/api/status?code=$KEY")
    screen.check("without a key the answer is 401", holds=host.get("/api/status").status == 401)
    page = host.get("/api/status", key=host.keys.function)
    text = page.body.decode()
    safe = page.headers.get("content-security-policy", "")
    screen.check(
        "one HTML page that loads nothing", holds=page.status == 200 and "default-src 'none'" in safe
    )
    screen.check("every operation that was sent is on it", holds=all(one in text for one in scene.sent))
    document = scene.status()
    (cluster,) = document["clusters"]
    pools = {one["pool"]: one["nodes"] for one in cluster["sizes"][-1]["pools"]}
    nodes = scene.cluster.arm.core.state.resources[_pool_id(scene).lower()].body["properties"]["count"]
    screen.check(f"pool agents at {nodes}, as Azure has it", holds=pools.get("agents") == nodes)
    verdicts = [one["verdict"] for one in cluster["backups"]]
    screen.check("the backup, and that it was read back", holds=verdicts[:1] == ["verified"])
    released = [one for one in cluster["journal"] if one["data"].get("event") == "Released"]
    screen.check("the disk that was released", holds=len(released) == 1)
    routes = {(one["host"], one["owner"]) for one in cluster["gateway"]["routes"]}
    screen.check("the route that is served", holds=routes == {("shop.example", "default/shop")})
    quarantined = [one["subject"] for one in cluster["quarantined"]]
    screen.check("the Ingress that is left out, and why", holds=quarantined == ["default/broken"])
    (message,) = document["poison"]
    screen.check("the message nobody could read", holds="prodd" in message["reason"], otherwise=str(message))
    answer = host.get("/api/metrics", key=host.keys.function)
    families = list(text_string_to_metric_families(answer.body.decode()))
    screen.check(f"the same for Prometheus, in {len(families)} metrics", holds=len(families) >= 9)
    _look(scene, text, pictures)
    screen.note("status page", f"{len(document['attention'])} things waited for a person, each with its cure")


def _look(scene: Scene, text: str, pictures: Path | None) -> None:
    """In a real browser, as people of different sight, habits and phones do."""
    screen = scene.screen
    if not browser.chromium():
        screen.say("no Chromium on this machine: the page was not looked at (CHROMIUM=path names one)")
        return
    address = scene.directory / "status.html"
    address.write_text(text)
    found: list[str] = []
    with browser.launched() as running:
        for name, (options, part) in PICTURES.items():
            screen.progress(f"looking at it: {name}")
            page = running.new_context(**options).new_page()
            page.goto(address.as_uri())
            if pictures:
                pictures.mkdir(parents=True, exist_ok=True)
                shown = page.locator(part) if part else page
                shown.screenshot(path=pictures / f"{name}.png")
                screen.say(f"wrote {pictures / name}.png")
            found += browser.violations(page)
    screen.check(
        "axe-core finds nothing wrong: light, dark, on a phone", holds=not found, otherwise=str(found)
    )


def _well(scene: Scene) -> None:
    screen = scene.screen
    done = scene.keeper("poison", "list")
    screen.check("keeper poison list shows it with its reason", holds="prodd" in done.output)
    (message,) = scene.status()["poison"]
    done = scene.keeper("poison", "drop", message["id"])
    screen.check("dropped, as nobody needs it", holds=done.code == 0, otherwise=done.output)
    done = scene.keeper("doctor")
    screen.check("keeper doctor finds no problem", holds=done.code == 0, otherwise=done.output[-400:])
    screen.note("operations", f"{len(scene.sent)} sent and followed by keeper")


# What the steps look at


def _ingress(name: str, tls: str = "") -> Document:
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
    rules = [{"host": f"{name}.example", "http": {"paths": paths}}]
    spec: Document = {"ingressClassName": "azure", "rules": rules}
    spec |= {"tls": [{"hosts": [f"{name}.example"], "secretName": tls}]} if tls else {}
    return {"metadata": {"name": name}, "spec": spec}


def _runs_elsewhere(scene: Scene) -> bool:
    try:
        pod = scene.cluster.pod("db-0")
    except LookupError:
        return False  # between two lives
    return pod.is_running and pod.node != scene.victim


def _released(scene: Scene) -> bool:
    entries = scene.clients.journal.entries([(CLUSTER, "disk-release")], limit=50)
    return any(entry.data.get("event") == "Released" for entry in entries)


def _pool_id(scene: Scene) -> str:
    cluster = scene.cluster.arm.id_of("Microsoft.ContainerService/managedClusters", CLUSTER)
    return f"{cluster}/agentPools/agents"
