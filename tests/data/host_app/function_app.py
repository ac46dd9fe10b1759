"""A function app that shows what a host does to it: every call appends a line to the file RECORD."""

import json
import os
import threading
import time
from pathlib import Path

import azure.functions as func

app = func.FunctionApp()
_lock = threading.Lock()


def record(**what: object) -> None:
    line = json.dumps({"process": os.getpid(), "time": time.time(), **what}) + "\n"
    with _lock, Path(os.environ["RECORD"]).open("a") as file:
        file.write(line)


@app.timer_trigger(arg_name="timer", schedule="%TICK_SCHEDULE%")
def tick(timer: func.TimerRequest) -> None:
    record(function="tick", past_due=timer.past_due, status=timer.schedule_status)


@app.queue_trigger(arg_name="message", queue_name="%WORK_QUEUE%", connection="AzureWebJobsStorage")
def work(message: func.QueueMessage, context: func.Context) -> None:
    text = message.get_body().decode()
    record(function="work", text=text, dequeue_count=message.dequeue_count, context=context.function_name)
    match text.split():
        case ["fail"]:
            raise ValueError("told to fail")
        case ["fail-until", attempt] if message.dequeue_count < int(attempt):
            raise ValueError("told to fail this time")
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["hang-once"] if message.dequeue_count == 1:
            time.sleep(600)
    record(function="work", text=text, done=True)


@app.event_grid_trigger(arg_name="event")
def on_event(event: func.EventGridEvent) -> None:
    if isinstance(event, func.CloudEvent):
        kind, data = event.type, event.get_json()
    else:
        kind, data = event.event_type, event.get_json()
    record(function="on_event", id=event.id, type=kind, schema=type(event).__name__, data=data)
    if data.get("fail"):
        raise ValueError("told to fail")


@app.route("hello/{name}", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def hello(req: func.HttpRequest) -> func.HttpResponse:
    body = json.dumps({"hello": req.route_params["name"], "query": dict(req.params)})
    return func.HttpResponse(body, status_code=203, mimetype="application/json", headers={"x-from": "app"})


@app.route("guarded", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
async def guarded(req: func.HttpRequest) -> str:
    return json.dumps({"got": req.get_json()})


@app.route("overrun", auth_level=func.AuthLevel.ANONYMOUS)
def overrun(req: func.HttpRequest) -> func.HttpResponse:
    time.sleep(float(req.params["seconds"]))
    return func.HttpResponse("in time")


@app.route("wrong", auth_level=func.AuthLevel.ANONYMOUS)
def wrong(req: func.HttpRequest) -> func.HttpResponse:
    raise KeyError("wrong")
