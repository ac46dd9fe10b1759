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


@blueprint.route(route="status", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def status(req: func.HttpRequest) -> func.HttpResponse:
    """The state of the fleet: a page for people, JSON for `?format=json` or clients that accept only that.

    With `&refresh=10` the browser asks again every ten seconds; by itself it never does.
    """
    from shared.bootstrap import clients
    from shared.status.answer import answer

    params = req.params
    code, kind, body, reload = answer(
        clients(), params.get("format", ""), req.headers.get("accept", ""), params.get("refresh", "")
    )
    # Nothing is loaded from anywhere and no script runs, whatever an object in the cluster is called.
    safe = {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
        "Cache-Control": "no-store",
    }
    if reload:
        safe["Refresh"] = str(reload)
    return func.HttpResponse(body, status_code=code, mimetype=kind, charset="utf-8", headers=safe)


@blueprint.route(route="metrics", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def metrics(req: func.HttpRequest) -> func.HttpResponse:
    """The state of the fleet for Prometheus."""
    from shared.bootstrap import clients
    from shared.status.answer import exposition

    code, kind, body = exposition(clients())
    return func.HttpResponse(
        body, status_code=code, headers={"Content-Type": kind, "Cache-Control": "no-store"}
    )


def _json(status: int, body: dict[str, object]) -> func.HttpResponse:
    import msgspec

    return func.HttpResponse(msgspec.json.encode(body), status_code=status, mimetype="application/json")
