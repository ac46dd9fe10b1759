"""HTTP: is the app alive, and a way to drive it when the platform's timers are not."""

from __future__ import annotations

import azure.functions as func

blueprint = func.Blueprint()  # type: ignore[no-untyped-call]


@blueprint.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def health(req: func.HttpRequest) -> func.HttpResponse:
    """200 when the app can work, 503 when it cannot; names no cluster, since anybody may ask."""
    from shared.bootstrap import clients
    from shared.runtime.health import report

    return _json(*report(clients()))


@blueprint.route(
    route="reconcile/{cluster}/{automation}", methods=["POST"], auth_level=func.AuthLevel.FUNCTION
)
def reconcile(req: func.HttpRequest) -> func.HttpResponse:
    """Nudge one automation of one cluster, as its timer would; 202 when the nudge is on its queue."""
    from shared.bootstrap import clients
    from shared.runtime.health import nudge_by_request

    return _json(*nudge_by_request(clients(), req.route_params["cluster"], req.route_params["automation"]))


def _json(status: int, body: dict[str, object]) -> func.HttpResponse:
    import msgspec

    return func.HttpResponse(msgspec.json.encode(body), status_code=status, mimetype="application/json")
