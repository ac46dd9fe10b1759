"""The functions that the app declares. The library lets an app be asked only once per process: here."""

from __future__ import annotations

import json

from function_app import app
from sandbox.host.configuration import Function

FUNCTIONS = {
    function.get_function_name(): Function(
        function.get_function_name(), tuple(json.loads(raw) for raw in function.get_raw_bindings())
    )
    for function in app.get_functions()
}
