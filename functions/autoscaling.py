"""Triggers of autoscaling: a timer that nudges every cluster, a queue that does the work."""

from __future__ import annotations

import azure.functions as func

blueprint = func.Blueprint()  # type: ignore[no-untyped-call]


@blueprint.timer_trigger(
    arg_name="timer", schedule="%KUBEKEEPER_AUTOSCALING_SCHEDULE%", run_on_startup=False, use_monitor=True
)
def autoscaling_timer(timer: func.TimerRequest) -> None:
    """Nudge every cluster that is autoscaled; how often is an app setting (NCRONTAB)."""
    from shared.bootstrap import clients
    from shared.runtime.nudge import fan_out

    fan_out(clients(), "autoscaling", "LateTimer" if timer.past_due else "Timer")


@blueprint.queue_trigger(arg_name="message", queue_name="autoscaling", connection="AzureWebJobsStorage")
def autoscaling_work(message: func.QueueMessage) -> None:
    """Look at one cluster's demand and nodes, and add or remove what is due."""
    from functions.message import received
    from shared.bootstrap import clients
    from shared.work import work_off

    work_off(clients(), "autoscaling", received(message))
