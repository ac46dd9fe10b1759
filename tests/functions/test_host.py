"""The local host on real Azurite: each test is a promise of the platform that the app's design leans on."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient
from azure.storage.queue import QueueClient

from sandbox.host.process import HostProcess

APP = Path(__file__).parent.parent / "data" / "host_app"
pytestmark = pytest.mark.azurite


class World:
    """A copy of the sample app with a queue of its own, and what its functions recorded."""

    def __init__(self, directory: Path, storage: str) -> None:
        self.directory = directory
        self.storage = storage
        self.queue_name = f"work-{uuid.uuid4().hex[:12]}"
        self.queue = QueueClient.from_connection_string(storage, self.queue_name)
        self.poison = QueueClient.from_connection_string(storage, f"{self.queue_name}-poison")
        self.record_file = directory / "record"
        self.log = directory / "log"

    def configure(self, **changes: Any) -> None:
        """Change host.json; `queues` is merged."""
        path = self.directory / "host.json"
        document = json.loads(path.read_text())
        document["extensions"]["queues"] |= changes.pop("queues", {})
        path.write_text(json.dumps(document | changes))

    def host(self, *arguments: str, **settings: str) -> HostProcess:
        values = {
            "AzureWebJobsStorage": self.storage,
            "AzureFunctionsWebHost__hostid": self.queue_name,
            "WORK_QUEUE": self.queue_name,
            "RECORD": str(self.record_file),
            **settings,
        }
        return HostProcess(self.directory, values, arguments=arguments, log=self.log)

    def records(self, function: str, **like: Any) -> list[dict[str, Any]]:
        if not self.record_file.exists():
            return []
        lines = [json.loads(line) for line in self.record_file.read_text().splitlines()]
        wanted = {"function": function, **like}
        return [line for line in lines if wanted.items() <= line.items()]

    def messages(self, queue: QueueClient) -> int:
        count: int = queue.get_queue_properties().approximate_message_count
        return count


def wait_for(condition: Callable[[], Any], within: float = 90) -> Any:
    until = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)
    return value


@pytest.fixture
def world(tmp_path: Path, storage: str) -> Iterator[World]:
    directory = tmp_path / "app"
    shutil.copytree(APP, directory)
    world = World(directory, storage)
    yield world
    for queue in (world.queue, world.poison):
        queue.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, storage: str) -> Iterator[tuple[World, HostProcess]]:
    """One host for the tests that only ask it something."""
    directory = tmp_path_factory.mktemp("host") / "app"
    shutil.copytree(APP, directory)
    world = World(directory, storage)
    world.queue.create_queue()
    with world.host() as host:
        yield world, host


Shared = tuple[World, HostProcess]


def test_a_message_is_handed_over_once_and_deleted(shared: Shared) -> None:
    world, _ = shared
    text = f"plain {uuid.uuid4()}"
    world.queue.send_message(text)
    wait_for(lambda: world.records("work", text=text, done=True))
    wait_for(lambda: world.messages(world.queue) == 0)
    assert [
        record["dequeue_count"] for record in world.records("work", text=text) if "done" not in record
    ] == [1]


def test_a_message_that_fails_comes_back_with_a_higher_dequeue_count(shared: Shared) -> None:
    world, _ = shared
    world.queue.send_message("fail-until 3")
    wait_for(lambda: world.records("work", text="fail-until 3", done=True))
    counts = [
        record["dequeue_count"]
        for record in world.records("work", text="fail-until 3")
        if "done" not in record
    ]
    assert counts == [1, 2, 3]


def test_a_message_that_always_fails_ends_unchanged_in_the_poison_queue(shared: Shared) -> None:
    world, _ = shared
    world.queue.send_message("fail")
    wait_for(lambda: len(world.records("work", text="fail")) == 3)
    poisoned = wait_for(lambda: _first(world.poison))
    assert poisoned.content == "fail"
    assert (poisoned.expires_on - datetime.now(UTC)) > timedelta(days=1000)
    wait_for(lambda: world.messages(world.queue) == 0)  # its copy comes first


def _first(queue: QueueClient) -> Any:
    try:
        return next(iter(queue.receive_messages()), None)
    except ResourceNotFoundError:
        return None


def test_a_worker_that_dies_costs_one_delivery_not_the_message(shared: Shared) -> None:
    world, host = shared
    world.queue.send_message("hang-once")
    wait_for(lambda: world.records("work", text="hang-once"))
    for process in host.worker_process_ids():
        os.kill(process, signal.SIGKILL)
    wait_for(lambda: world.records("work", text="hang-once", done=True))
    deliveries = [record for record in world.records("work", text="hang-once") if "done" not in record]
    assert [record["dequeue_count"] for record in deliveries] == [1, 2]
    assert len({record["process"] for record in deliveries}) == 2


def test_no_more_messages_run_at_once_than_batch_size_and_threshold_allow(shared: Shared) -> None:
    world, _ = shared
    texts = {"sleep 3.01": 1, "sleep 0.31": 7}  # one goes on while the others come in twos
    for text, count in texts.items():
        for _ in range(count):
            world.queue.send_message(text)
    wait_for(lambda: all(len(world.records("work", text=text, done=True)) == texts[text] for text in texts))
    running = most = 0
    for record in world.records("work"):
        if record["text"] in texts:
            running += -1 if "done" in record else 1
            most = max(most, running)
    assert most == 3


def test_http_routes_get_parameters_query_and_their_own_status(shared: Shared) -> None:
    answer = shared[1].get("/api/hello/prod?a=1")
    assert (answer.status, answer.json()) == (203, {"hello": "prod", "query": {"a": "1"}})


def test_a_function_key_is_needed_where_the_function_says_so(shared: Shared) -> None:
    host = shared[1]
    assert host.post("/api/guarded", {"x": 1}).status == 401
    assert host.post("/api/guarded", {"x": 1}, key="wrong").status == 401
    assert host.post("/api/guarded", {"x": 1}, key=host.keys.function).json() == {"got": {"x": 1}}
    assert host.post(f"/api/guarded?code={host.keys.function}", {"x": 2}).json() == {"got": {"x": 2}}
    assert host.post("/api/guarded", {"x": 3}, key=host.keys.master).status == 200


def test_a_method_or_route_nobody_serves_is_404(shared: Shared) -> None:
    host = shared[1]
    assert host.get("/api/guarded", key=host.keys.function).status == 404
    assert host.get("/api/nobody").status == 404


def test_a_function_that_raises_answers_500_without_its_error(shared: Shared) -> None:
    answer = shared[1].get("/api/wrong")
    assert (answer.status, answer.body) == (500, b"")


def test_the_admin_api_starts_any_function_with_the_master_key_only(shared: Shared) -> None:
    world, host = shared
    assert host.post("/admin/functions/tick", {"input": ""}, key=host.keys.function).status == 401
    assert host.run_function("nobody").status == 404
    assert host.post("/admin/functions/tick", b"", key=host.keys.master).status == 400
    before = len(world.records("tick"))
    assert host.run_function("tick").status == 202
    wait_for(lambda: len(world.records("tick")) == before + 1)
    assert host.run_function("work", "by hand").status == 202
    wait_for(lambda: world.records("work", text="by hand", done=True))


def test_event_grid_validates_its_webhook_in_both_schemas(shared: Shared) -> None:
    host = shared[1]
    grid = [
        {
            "id": "1",
            "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
            "data": {"validationCode": "A"},
        }
    ]
    cloud = {"specversion": "1.0", "id": "1", "data": '{"validationCode": "B"}'}
    assert host.send_events("on_event", grid, "SubscriptionValidation").json() == {"validationResponse": "A"}
    assert host.send_events("on_event", cloud, "SubscriptionValidation").json() == {"validationResponse": "B"}


def test_events_of_both_schemas_reach_the_function_as_the_library_makes_them(shared: Shared) -> None:
    world, host = shared
    grid = {"id": "g", "topic": "t", "subject": "s", "eventType": "E", "dataVersion": "1", "data": {"a": 1}}
    cloud = {"specversion": "1.0", "id": "c", "source": "s", "type": "C", "data": {"a": 2}}
    assert host.send_events("on_event", [{**grid, "eventTime": "2026-11-23T10:00:00Z"}]).status == 202
    assert host.send_events("on_event", [cloud]).status == 202
    assert host.send_events("on_event", {**cloud, "id": "alone"}).status == 202
    assert [record["schema"] for record in world.records("on_event", id="g")] == ["EventGridEvent"]
    assert [record["schema"] for record in world.records("on_event", id="c")] == ["CloudEvent"]
    assert len(world.records("on_event", id="alone")) == 1


def test_one_failing_event_fails_the_whole_delivery(shared: Shared) -> None:
    world, host = shared
    events = [
        {"specversion": "1.0", "id": "good", "source": "s", "type": "C", "data": {}},
        {"specversion": "1.0", "id": "bad", "source": "s", "type": "C", "data": {"fail": True}},
    ]
    assert host.send_events("on_event", events).status == 500
    assert host.send_events("on_event", events).status == 500
    assert len(world.records("on_event", id="good")) == 2


def test_a_webhook_without_event_type_name_or_key_is_refused(shared: Shared) -> None:
    host = shared[1]
    path = "/runtime/webhooks/eventgrid?functionName="
    assert host.post(f"{path}on_event", [], key=host.keys.eventgrid).status == 400
    assert host.send_events("nobody", []).status == 404
    assert host.send_events("tick", []).status == 404
    notification = {"aeg-event-type": "Notification"}
    assert host.post(f"{path}on_event", [], headers=notification).status == 401
    assert host.post(f"{path}on_event", b"{", key=host.keys.eventgrid, headers=notification).status == 400


def test_a_function_that_overruns_takes_its_worker_down_and_another_takes_over(world: World) -> None:
    world.configure(functionTimeout="00:00:02")
    world.queue.create_queue()
    with world.host() as host:
        before = host.worker_process_ids()
        world.queue.send_message("hang-once")
        wait_for(lambda: world.records("work", text="hang-once", dequeue_count=1))
        assert host.get("/api/overrun?seconds=600").status == 500  # its neighbour, or itself, ran out of time
        wait_for(lambda: world.records("work", text="hang-once", done=True))
        assert not set(before) & set(host.worker_process_ids())
        assert host.get("/api/hello/again").status == 203
    assert "Timeout of 0:00:02 exceeded" in world.log.read_text()


def test_a_missing_queue_is_no_error_and_is_served_once_it_exists(world: World) -> None:
    with world.host() as host:
        assert host.get("/api/hello/x").status == 203
        world.queue.create_queue()
        world.queue.send_message("late")
        wait_for(lambda: world.records("work", text="late", done=True))
    assert "cannot be read" not in world.log.read_text()


def test_base64_messages_are_decoded_and_others_poisoned_without_running(world: World) -> None:
    world.configure(queues={"messageEncoding": "base64"})
    world.queue.create_queue()
    world.queue.send_message("{not base64}")
    world.queue.send_message(base64.b64encode(b"decoded").decode())
    with world.host():
        wait_for(lambda: world.records("work", text="decoded", done=True))
        assert wait_for(lambda: _first(world.poison)).content == "{not base64}"
    assert len({record["text"] for record in world.records("work")}) == 1


def test_a_failed_message_is_invisible_for_the_visibility_timeout(world: World) -> None:
    world.configure(queues={"visibilityTimeout": "00:00:02"})
    world.queue.create_queue()
    world.queue.send_message("fail-until 2")
    with world.host():
        wait_for(lambda: world.records("work", text="fail-until 2", done=True))
    first, second = [record["time"] for record in world.records("work") if "done" not in record]
    assert second - first >= 1.9


def test_a_killed_host_leaves_its_message_to_another_once_its_invisibility_ends(world: World) -> None:
    world.queue.create_queue()
    world.queue.send_message("hang-once")
    with world.host("--invisible", "6") as first, world.host("--invisible", "6") as second:
        taken = wait_for(lambda: world.records("work", text="hang-once"))[0]
        owner = first if taken["process"] in first.worker_process_ids() else second
        owner.kill()
        wait_for(lambda: world.records("work", text="hang-once", done=True))
    again = world.records("work", text="hang-once", dequeue_count=2)
    assert len(again) == 1
    assert again[0]["time"] - taken["time"] >= 5.5


def test_invisibility_is_renewed_while_a_function_runs(world: World) -> None:
    world.queue.create_queue()
    world.queue.send_message("sleep 6.7")
    with world.host("--invisible", "6"), world.host("--invisible", "6"):
        wait_for(lambda: world.records("work", text="sleep 6.7", done=True))
        wait_for(lambda: world.messages(world.queue) == 0)
    assert len(world.records("work", text="sleep 6.7", done=True)) == 1
    assert len(world.records("work", text="sleep 6.7")) == 2


def test_a_stopping_host_lets_a_running_function_finish(world: World) -> None:
    world.queue.create_queue()
    world.queue.send_message("sleep 1.5")
    host = world.host().start()
    wait_for(lambda: world.records("work", text="sleep 1.5"))
    assert host.stop() == 0
    assert world.records("work", text="sleep 1.5", done=True)
    assert world.messages(world.queue) == 0


def test_there_are_as_many_workers_as_the_setting_says(world: World) -> None:
    world.queue.create_queue()
    with world.host(FUNCTIONS_WORKER_PROCESS_COUNT="2") as host:
        # One after the other, because which worker gets a message is the host's choice.
        def both_have_run() -> bool:
            world.queue.send_message("sleep 0.3")
            time.sleep(0.2)
            ran_in = {record["process"] for record in world.records("work")}
            return len(ran_in) == 2 and ran_in == set(host.worker_process_ids())

        wait_for(both_have_run)


def test_ctrl_c_ends_everything_quietly(world: World) -> None:
    host = world.host("--grace", "1").start()
    processes = [psutil.Process(number) for number in (host.process_id, *host.worker_process_ids())]
    assert host.interrupt() == 0
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert (len(gone), alive) == (2, [])
    assert "Traceback" not in world.log.read_text()


def test_a_killed_host_takes_its_workers_and_its_azurite_along(world: World) -> None:
    host = world.host(AzureWebJobsStorage="UseDevelopmentStorage=true").start()
    children = psutil.Process(host.process_id).children(recursive=True)
    assert {child.name().split()[0] for child in children} >= {"node"}
    os.kill(host.process_id, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    host.kill()
    assert alive == []


def status_blob(world: World) -> Any:
    service = BlobServiceClient.from_connection_string(world.storage)
    return service.get_blob_client(
        "azure-webjobs-hosts", f"timers/{world.queue_name}/Host.Functions.tick/status"
    )


def _status(world: World) -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = json.loads(status_blob(world).download_blob().readall())
    except ResourceNotFoundError:
        return None
    return status


def test_a_timer_ticks_by_its_schedule(world: World) -> None:
    with world.host(TICK_SCHEDULE="*/1 * * * * *"):
        wait_for(lambda: len(world.records("tick")) >= 3)
    times = [record["time"] for record in world.records("tick")]
    assert len(times) <= times[-1] - times[0] + 2, "one a second, though a busy machine may delay the first"
    assert not any(record["past_due"] for record in world.records("tick"))


def test_missed_runs_are_made_up_by_one_call_that_is_past_due(world: World) -> None:
    with world.host(TICK_SCHEDULE="0 */5 * * * *"):
        status = wait_for(lambda: _status(world))
    assert world.records("tick") == []
    recorded = datetime.fromisoformat(status["Next"])
    hours_ago = {"Last": (recorded - timedelta(hours=3)).isoformat()}
    hours_ago["Next"] = hours_ago["LastUpdated"] = (recorded - timedelta(hours=2, minutes=55)).isoformat()
    status_blob(world).upload_blob(json.dumps(hours_ago), overwrite=True)
    with world.host(TICK_SCHEDULE="0 */5 * * * *"):
        wait_for(lambda: world.records("tick", past_due=True))
        after = wait_for(lambda: status if (status := _status(world)) != hours_ago else None)
    assert len(world.records("tick", past_due=True)) == 1
    assert datetime.fromisoformat(after["Next"]) > datetime.now(UTC)


def test_one_timer_ticks_on_one_of_two_hosts_and_moves_when_that_one_is_killed(world: World) -> None:
    every_second = {"TICK_SCHEDULE": "*/1 * * * * *"}
    with world.host("--timer-lease", "15", **every_second) as first:
        wait_for(lambda: world.records("tick"))
        with world.host("--timer-lease", "15", **every_second) as second:
            time.sleep(2)
            assert {record["process"] for record in world.records("tick")} == set(first.worker_process_ids())
            first.kill()
            ours = set(second.worker_process_ids())
            wait_for(lambda: ours & {record["process"] for record in world.records("tick")})


def test_a_disabled_function_does_not_tick(world: World) -> None:
    settings = {"TICK_SCHEDULE": "*/1 * * * * *", "AzureWebJobs.tick.Disabled": "true"}
    with world.host(**settings):
        time.sleep(2)
    assert world.records("tick") == []


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("TICK_SCHEDULE", "61 * * * * *", "function tick: '61 * * * * *' is not an NCRONTAB expression"),
        ("WORK_QUEUE", "Not_Legal", "function work: 'Not_Legal' is no legal queue name"),
    ],
)
def test_a_function_in_error_is_named_and_the_others_run(
    world: World, setting: str, value: str, said: str
) -> None:
    with world.host(**{setting: value}) as host:
        assert host.get("/api/hello/x").status == 203
    assert said in world.log.read_text()


def test_an_unset_setting_is_named(world: World) -> None:
    (world.directory / "local.settings.example.json").write_text(
        '{"Values": {"TICK_SCHEDULE": "0 0 * * * *"}}'
    )
    host = HostProcess(
        world.directory, {"AzureWebJobsStorage": world.storage, "RECORD": "unused"}, log=world.log
    )
    with host:
        assert host.get("/api/hello/x").status == 203
    assert "%WORK_QUEUE% does not resolve: set the app setting WORK_QUEUE" in world.log.read_text()


FUNCTION = """
import azure.functions as func
app = func.FunctionApp()
@app.{trigger}
def one({parameters}) -> None: ...
"""
QUEUE = "queue_trigger(arg_name='m', queue_name='q', connection='')"
TIMER = "timer_trigger(arg_name='t', schedule='0 * * * * *')"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("app = 1", "0 top level function apps"),
        (FUNCTION.format(trigger=QUEUE, parameters="m") + "second = func.FunctionApp()", "2 top level"),
        (
            FUNCTION.format(trigger=QUEUE, parameters="n: func.QueueMessage"),
            "['n'] and bindings ['m'] do not match",
        ),
        (FUNCTION.format(trigger=TIMER, parameters="t: func.QueueMessage"), "do not match"),
        (
            FUNCTION.format(trigger=QUEUE, parameters="m: func.QueueMessage | None"),
            "invalid non-type annotation",
        ),
    ],
)
def test_an_app_that_cannot_be_indexed_stops_the_host_with_the_reason(
    world: World, source: str, said: str
) -> None:
    (world.directory / "function_app.py").write_text(source)
    with pytest.raises(RuntimeError, match="did not start") as raised:
        world.host().start()
    assert said in str(raised.value)
