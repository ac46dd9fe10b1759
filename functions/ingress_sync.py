"""Triggers of ingress sync: a timer that nudges every cluster, a queue that does the work."""

from __future__ import annotations

import azure.functions as func

blueprint = func.Blueprint()  # type: ignore[no-untyped-call]


@blueprint.timer_trigger(
    arg_name="timer", schedule="%KUBEKEEPER_INGRESS_SYNC_SCHEDULE%", run_on_startup=False, use_monitor=True
)
def ingress_sync_timer(timer: func.TimerRequest) -> None:
    """Nudge every cluster that has a gateway; how often is an app setting (NCRONTAB)."""
    from shared.bootstrap import clients
    from shared.runtime.nudge import fan_out

    fan_out(clients(), "ingress-sync", "LateTimer" if timer.past_due else "Timer")


@blueprint.queue_trigger(arg_name="message", queue_name="ingress-sync", connection="AzureWebJobsStorage")
def ingress_sync_work(message: func.QueueMessage) -> None:
    """Compile one cluster's Ingress objects, and put what changed to its gateway."""
    from functions.message import received
    from shared.bootstrap import clients
    from shared.work import work_off

    work_off(clients(), "ingress-sync", received(message))
