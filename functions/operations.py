"""The trigger of one-off operations: queue `operations`."""

from __future__ import annotations

import azure.functions as func

blueprint = func.Blueprint()  # type: ignore[no-untyped-call]


@blueprint.queue_trigger(arg_name="message", queue_name="operations", connection="AzureWebJobsStorage")
def operations_work(message: func.QueueMessage) -> None:
    """Carry out one operation, once per id."""
    from functions.message import received
    from shared.bootstrap import clients
    from shared.operations.dispatch import work_off

    work_off(clients(), received(message))
