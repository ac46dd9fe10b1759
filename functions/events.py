"""The trigger of cluster events: Event Grid, in either of its schemas."""

from __future__ import annotations

import azure.functions as func

blueprint = func.Blueprint()  # type: ignore[no-untyped-call]


@blueprint.event_grid_trigger(arg_name="event")
def cluster_event(event: func.EventGridEvent) -> None:
    """Turn one event into nudges. A CloudEvent arrives here as well, whatever the annotation says.

    Since azure-functions 1.25 the library builds a CloudEvent when the payload has `specversion`
    (Azure/azure-functions-python-library#314); the annotation only satisfies indexing.
    """
    from shared.bootstrap import clients
    from shared.runtime.event import accept, incoming

    accept(clients(), incoming(event))
