"""Triggers of stuck-disk release: a timer that nudges every cluster, a queue that does the work."""

from __future__ import annotations

import azure.functions as func

blueprint = func.Blueprint()  # type: ignore[no-untyped-call]


@blueprint.timer_trigger(
    arg_name="timer", schedule="%KUBEKEEPER_DISK_RELEASE_SCHEDULE%", run_on_startup=False, use_monitor=True
)
def disk_release_timer(timer: func.TimerRequest) -> None:
    """Nudge every cluster whose disks are looked after; how often is an app setting (NCRONTAB)."""
    from shared.bootstrap import clients
    from shared.runtime.nudge import fan_out

    fan_out(clients(), "disk-release", "LateTimer" if timer.past_due else "Timer")


@blueprint.queue_trigger(arg_name="message", queue_name="disk-release", connection="AzureWebJobsStorage")
def disk_release_work(message: func.QueueMessage) -> None:
    """Look at one cluster's disks, and go on with what was begun."""
    from functions.message import received
    from shared.bootstrap import clients
    from shared.work import work_off

    work_off(clients(), "disk-release", received(message))
