"""Asks the gateway which backends are healthy, for pods whose readiness gate waits for it.

The answer is a long-running operation of its own, of some seconds: asked in one pass, read in a later one. It
looks at the gateway and changes nothing, so it may run beside a write. Called by `reconcile`, and only where
`ingressSync.readinessGate` is on and some pod waits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from shared.errors import ApiError, MessageError, NotFoundError, ThrottledError, UnavailableError
from shared.ingress_sync.observation import Observation, operational_state
from shared.ingress_sync.state import HealthAsked
from shared.ingress_sync.status import fulfil, waiting_for_gateway
from shared.ingress_sync.write import Desk
from shared.model.plan import Action, ActionKind, Outcome, Status, utc
from shared.model.snapshot import AzureReading

if TYPE_CHECKING:
    from shared.clients.kube import KubeClient
    from shared.model.ingress import Pod

AGAIN = timedelta(seconds=5)
FORGET_AFTER = timedelta(minutes=2)
"""An answer that has not come by then is asked for anew."""


def with_health(observation: Observation, desk: Desk) -> tuple[Observation, timedelta | None]:
    """The observation with the gateway's word, if it has come; and when to look for it again.

    Without pods that wait, or while the gateway does not run, nothing is asked.
    """
    gateway = observation.gateway
    waiting = waiting_for_gateway(observation.kubernetes.pods) if desk.policy.readiness_gate else ()
    if not waiting or gateway is None or operational_state(gateway) != "Running":
        return observation, None
    try:
        reading = _answer(desk) if desk.state.health else None
        if desk.state.health is None:
            _ask(desk)
    except (UnavailableError, ThrottledError):
        return observation, AGAIN  # a pod waits a little longer; routing does not depend on it
    if reading is None:
        return observation, AGAIN
    return msgspec.structs.replace(observation, azure=(*observation.azure, reading)), AGAIN


def _ask(desk: Desk) -> None:
    begun = desk.arm.post(desk.policy.gateway, "backendhealth")
    desk.save(health=HealthAsked(status_url=begun.status_url, at=desk.now()))


def _answer(desk: Desk) -> AzureReading | None:
    """The answer, which is forgotten then: the next pass asks anew."""
    asked = desk.state.health
    assert asked is not None
    try:
        progress = desk.arm.poll(asked.status_url)
        if progress.state == "InProgress" and desk.now() - asked.at < FORGET_AFTER:
            return None
        desk.save(health=None)
        if progress.state != "Succeeded":
            return None
        answer = desk.arm.get(_result_path(asked.status_url))
    except (NotFoundError, MessageError):
        desk.save(health=None)
        return None
    return AzureReading(
        id=f"{desk.policy.gateway}/backendHealth",
        status=answer.status,
        read_at=utc(answer.read_at),
        body=answer.document,
    )


def _result_path(status_url: str) -> str:
    """Microsoft.Network keeps results beside the states: `.../operations/ID`, `.../operationResults/ID`."""
    return re.sub("/operations/", "/operationResults/", urlsplit(status_url).path, flags=re.IGNORECASE)


def fulfil_gates(observation: Observation, kube: KubeClient) -> list[Outcome]:
    """Set the readiness gate of pods that the gateway calls healthy; an outcome for each."""
    waiting = waiting_for_gateway(observation.kubernetes.pods)
    healthy = [pod for pod in waiting if pod.status.pod_ip in observation.healthy]
    return list(_fulfilled(healthy, observation, kube))


def _fulfilled(pods: Iterable[Pod], observation: Observation, kube: KubeClient) -> Iterable[Outcome]:
    for pod in pods:
        name = f"{pod.metadata.namespace}/{pod.metadata.name}"
        message = f"the gateway's probe of {pod.status.pod_ip} succeeds"
        action = Action(
            kind=ActionKind.UPDATE_INGRESS_STATUS, target=name, reason="GatewayReady", message=message
        )
        try:
            done = fulfil(kube, pod, observation.now)
        except ApiError as error:
            yield Outcome(action=action, status=Status.FAILED, message=str(error))
        else:
            status = Status.SUCCEEDED if done else Status.SKIPPED
            yield Outcome(action=action, status=status, message=message, data={"event": "PodReady"})
