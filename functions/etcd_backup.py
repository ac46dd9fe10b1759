"""Triggers of etcd backups: a timer that nudges every cluster, a queue that does the work."""

from __future__ import annotations

import azure.functions as func

blueprint = func.Blueprint()  # type: ignore[no-untyped-call]


@blueprint.timer_trigger(
    arg_name="timer", schedule="%KUBEKEEPER_ETCD_BACKUP_SCHEDULE%", run_on_startup=False, use_monitor=True
)
def etcd_backup_timer(timer: func.TimerRequest) -> None:
    """Nudge every cluster that has etcd backups; how often is an app setting (NCRONTAB)."""
    from shared.bootstrap import clients
    from shared.runtime.nudge import fan_out

    fan_out(clients(), "etcd-backup", "LateTimer" if timer.past_due else "Timer")


@blueprint.queue_trigger(arg_name="message", queue_name="etcd-backup", connection="AzureWebJobsStorage")
def etcd_backup_work(message: func.QueueMessage) -> None:
    """Look at one cluster, and back up what is due."""
    from functions.message import received
    from shared.bootstrap import clients
    from shared.work import work_off

    work_off(clients(), "etcd-backup", received(message))
