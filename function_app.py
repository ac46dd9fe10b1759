"""The one FunctionApp: registers the blueprints, nothing else."""

from __future__ import annotations

import azure.functions as func

from functions import etcd_backup, events, operations, status

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)

for blueprint in (etcd_backup.blueprint, events.blueprint, operations.blueprint, status.blueprint):
    app.register_functions(blueprint)
