"""The one FunctionApp: registers the blueprints, nothing else."""

from __future__ import annotations

import azure.functions as func

from functions import autoscaling, disk_release, etcd_backup, events, ingress_sync, operations, status

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)

for module in (autoscaling, disk_release, etcd_backup, events, ingress_sync, operations, status):
    app.register_functions(module.blueprint)
