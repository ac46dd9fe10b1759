"""A local Event Grid topic, and the local Entra ID's door for workload identity; both keep what they get.

    with LocalTopic() as topic:                         # http, an access key
        subprocess.Popen([...], env=topic.environ)
    with LocalTopic(WorkloadIdentity(folder)) as topic:   # https, a token for the identity of a pod

The wire is real, so an unmodified azure-eventgrid and azure-identity work with them. Not modelled: schemas
other than CloudEvents, delivery to subscribers, the size limits of a request.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.asgi import Fault, Recorder, Server, on
from sandbox.certificates import Authority
from sandbox.identity import TENANT, Directory

AUDIENCE = "https://eventgrid.azure.net"
_EXCHANGE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_NEEDED = ("id", "source", "type", "specversion")


class WorkloadIdentity:
    """What the webhook of workload identity puts into a pod: a file with its token, and where to exchange it.

    `folder` takes the files: token, certificate authority, server certificate.
    """

    def __init__(self, folder: Path, directory: Directory | None = None) -> None:
        self.directory = directory or Directory()
        self.client_id = "30000000-0000-4000-8000-000000000003"
        self.exchanges = 0
        self._assertion = secrets.token_urlsafe(32)
        self._folder = folder
        authority = Authority("Sandbox Azure CA")
        issued = authority.issue("azure")
        for name, text in (
            ("ca.pem", authority.pem),
            ("server.pem", issued.certificate),
            ("server.key", issued.key),
            ("token", self._assertion),
        ):
            path = folder / name
            path.touch(mode=0o600)
            path.write_text(text)

    @property
    def certificate(self) -> tuple[str, str]:
        """Files of the server's certificate and key."""
        return str(self._folder / "server.pem"), str(self._folder / "server.key")

    def environ(self, url: str) -> dict[str, str]:
        """What the pod sees; the last line is only for this machine's own authority."""
        return {
            "AZURE_AUTHORITY_HOST": url,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": self.client_id,
            "AZURE_FEDERATED_TOKEN_FILE": str(self._folder / "token"),
            "AZURE_TOKEN_CREDENTIALS": "WorkloadIdentityCredential",
            "REQUESTS_CA_BUNDLE": str(self._folder / "ca.pem"),
        }

    async def exchange(self, request: Request) -> Response:
        """The pod's token for one of Entra ID."""
        form = dict(parse_qsl((await request.body()).decode()))
        asked = (form.get("client_id"), form.get("client_assertion"), form.get("client_assertion_type"))
        if asked != (self.client_id, self._assertion, _EXCHANGE):
            return JSONResponse({"error": "invalid_client", "error_description": "AADSTS700213"}, 401)
        self.exchanges += 1
        issued = self.directory.issue(form.get("scope", "").removesuffix("/.default"))
        return JSONResponse({"token_type": "Bearer", "expires_in": 86_000, "access_token": issued.token})


class LocalTopic:
    """A topic on a free port: with an access key over http, or with a workload identity over https."""

    def __init__(self, identity: WorkloadIdentity | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        """What was published, in order."""
        self.key = secrets.token_urlsafe(16)
        self._identity = identity
        routes = [Route("/api/events", self._publish, methods=["POST"])]
        if identity is not None:
            routes.append(Route(f"/{TENANT}/oauth2/v2.0/token", identity.exchange, methods=["POST"]))
        self.recorder = Recorder(Starlette(routes=routes))
        self._server = Server(self.recorder, identity.certificate if identity is not None else None)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        """Where it is."""
        return self._server.url

    @property
    def environ(self) -> Mapping[str, str]:
        """What a publisher has in its environment."""
        endpoint = {"KUBEKEEPER_EVENTS_ENDPOINT": self.url}
        if self._identity is None:
            return {**endpoint, "KUBEKEEPER_EVENTS_KEY": self.key}
        return {**endpoint, **self._identity.environ(self.url)}

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of that type."""
        return [event for event in list(self.events) if event["type"] == kind]

    def fail(self, status: int, times: int, **headers: str) -> None:
        """So many publications to come are refused."""
        matches = on("POST", "/api/events")
        self.recorder.faults.append(
            Fault(matches, status=status, times=times, headers=headers, body={"error": {"code": str(status)}})
        )

    async def _publish(self, request: Request) -> Response:
        if self._identity is None:
            refusal = "" if request.headers.get("aeg-sas-key") == self.key else "the key is wrong"
        else:
            authorization = request.headers.get("authorization")
            refusal = self._identity.directory.refusal(authorization, AUDIENCE) or ""
        if refusal:
            return JSONResponse({"error": {"code": "Unauthorized", "message": refusal}}, 401)
        events = await request.json()
        if any(not event.get(name) for event in events for name in _NEEDED):
            return JSONResponse({"error": {"code": "BadRequest", "message": "no CloudEvents 1.0"}}, 400)
        self.events += events
        return Response(status_code=200)
