"""The command line itself: exit codes, one line per error, no network for what needs none."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from keeper import Keeper

from shared import errors
from shared.cli.main import app, exit_code

ROOT = Path(__file__).parents[3]
KEEPER = [sys.executable, "-c", "from shared.cli.main import main; main()"]

GOOD = """\
clusters:
  - name: prod
    etcd: {endpoints: ["http://127.0.0.1:9"]}
    etcdBackup: {}
"""


@pytest.fixture
def keeper(tmp_path, capsys) -> Keeper:
    (tmp_path / "kubekeeper.yaml").write_text(GOOD)
    return Keeper({"KUBEKEEPER_CONFIG": str(tmp_path / "kubekeeper.yaml")}, capsys)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SettingsError("x"), 2),
        (errors.MessageError("x"), 2),
        (errors.NotFoundError("x"), 2),
        (errors.UnavailableError("x"), 3),
        (errors.ThrottledError("x"), 3),
        (errors.ForbiddenError("x"), 3),
        (errors.ConflictError("x"), 1),
        (errors.LostLeaseError("x"), 1),
        (errors.IntegrityError("x", place="y"), 1),
        (errors.UnsafePlanError("x"), 1),
        (errors.RunFailedError("x"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: errors.AutomationError, code: int) -> None:
    assert exit_code(error) == code


COMMANDS = (
    *("plan", "snapshot", "run", "status", "explain", "doctor", "config check", "config schema"),
    *("backup list", "backup verify", "backup restore", "backup get", "backup prepare"),
    *("poison list", "poison show", "poison replay", "poison drop"),
)

USAGE = {
    "no such command": (["fly"], "No such command 'fly'"),
    "no such option": (["status", "--jsno"], "No such option: --jsno"),
    "missing argument": (["explain"], "Missing argument 'OPERATION-ID'"),
    "unknown automation": (["plan", "etcd"], "unknown automation 'etcd'; there are: "),
    "unknown operation": (["run", "bakcup"], "unknown operation 'bakcup'; there are: "),
    "missing parameter": (["run", "rolling-upgrade"], "Object missing required field `pool`; it takes pool"),
    "unknown parameter": (["run", "backup", "--set", "ful=true"], "parameters of operation 'backup': "),
    "wrong parameter": (["run", "backup", "--set", "full=maybe"], "it takes full, reason"),
    "no value": (["run", "backup", "--set", "full"], "--set full: expected KEY=VALUE"),
    "twice": (["run", "backup", "--set", "reason=a", "--set", "reason=b"], "--set reason: given twice"),
    "unknown cluster": (
        ["run", "backup", "--cluster", "nope"],
        "unknown cluster 'nope'; the configuration has: prod",
    ),
    "bad timeout": (["run", "backup", "--wait", "--timeout", "soon"], "--timeout: 'soon' is not a duration"),
    "missing snapshot": (["plan", "etcd-backup", "--from", "absent.json"], "cannot read 'absent.json'"),
    "no storage": (["backup", "list"], "no storage account is configured; set 'AzureWebJobsStorage'"),
    "no selection": (["poison", "drop"], "name the messages by their ids, or all of them with --all"),
    "both selections": (["poison", "drop", "x", "--all"], "name the messages by their ids, or all"),
    "no settings file": (["--settings", "absent.json", "status"], "cannot read 'absent.json'"),
    "no config": (["--config", "absent.yaml", "status"], "cannot read the configuration 'absent.yaml'"),
    "no account id": (["backup", "prepare"], "set 'storageAccount' in the configuration"),
}


@pytest.mark.parametrize(("arguments", "line"), USAGE.values(), ids=USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(keeper: Keeper, arguments: list[str], line: str) -> None:
    printed = keeper(*arguments)
    assert printed.code == 2
    assert printed.out == ""
    assert printed.err.startswith("keeper: ")
    assert line in printed.err
    assert printed.err.count("\n") == 1


def test_an_operation_with_json_that_fails_prints_nothing_on_stdout(keeper: Keeper) -> None:
    printed = keeper("run", "backup", "--json", AzureWebJobsStorage="DefaultEndpointsProtocol=nonsense")
    assert (printed.code, printed.out) == (2, "")
    assert "is not a storage connection string" in printed.err


def test_a_file_in_a_missing_directory_is_wrong_usage(keeper: Keeper) -> None:
    printed = keeper("config", "schema", "-o", "absent/schema.json")
    assert printed.code == 2
    assert printed.err == "keeper: 'absent/schema.json': No such file or directory; check the path\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_bad_answer(keeper: Keeper) -> None:
    printed = keeper("config", "schema", "-o", "/dev/full")
    assert printed.code == 1
    assert "No space left on device; free some space or choose another place" in printed.err


def test_a_full_standard_output_is_told_too() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*KEEPER, "config", "schema"], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    writer = subprocess.Popen(
        [*KEEPER, "config", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdout is not None
    writer.stdout.close()
    assert writer.stderr is not None
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait(90) == 1


def test_config_check_says_valid_or_points_at_the_line(keeper: Keeper, tmp_path: Path) -> None:
    good, bad = tmp_path / "kubekeeper.yaml", tmp_path / "bad.yaml"
    bad.write_text(GOOD.replace("etcdBackup", "etcdBakcup"))
    assert keeper("config", "check", str(good)).out == f"{good}: valid\n  prod: etcd-backup\n"
    printed = keeper("config", "check", str(bad))
    assert printed.code == 2
    assert printed.err == (
        f"keeper: {bad}:4: clusters[0].etcdBakcup: unknown key 'etcdBakcup'; did you mean 'etcdBackup'?\n"
    )


def test_config_schema_prints_the_published_schema(keeper: Keeper) -> None:
    published = json.loads((ROOT / "docs/reference/kubekeeper.schema.json").read_text())
    assert keeper("config", "schema").document == published


def test_settings_come_from_local_settings_and_the_environment_wins(keeper: Keeper, tmp_path: Path) -> None:
    file = tmp_path / "local.settings.json"
    file.write_text(
        json.dumps({"Values": {"AzureWebJobsStorage": "nonsense", "KUBEKEEPER_CONFIG": "absent.yaml"}})
    )
    printed = keeper("--settings", str(file), "backup", "list")
    assert "'AzureWebJobsStorage' is not a storage connection string" in printed.err  # found, with our config
    file.write_text("[]")
    assert "has no object 'Values'" in keeper("--settings", str(file), "status").err


def test_a_secret_in_an_error_is_redacted(keeper: Keeper) -> None:
    printed = keeper("plan", "AccountKey=hunter2hunter2")
    assert "hunter2" not in printed.err


def test_help_is_quick_and_imports_no_sdk() -> None:
    code = (
        "import sys, time; from shared.cli.main import run; run(['--help']);"
        "heavy = {'azure', 'grpc', 'yaml', 'cryptography', 'rich', 'kubernetes'};"
        "print(sorted(heavy & set(sys.modules)), time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    imported, _, seconds = done.stderr.rpartition(" ")
    assert imported == "[]"
    assert float(seconds) < 0.5  # 0.13 s of CPU where this was written
    assert "backup" in done.stdout


def test_every_command_has_help(keeper: Keeper) -> None:
    for command in COMMANDS:
        printed = keeper(*command.split(), "--help")
        assert printed.code == 0, command
        assert "Usage: keeper" in printed.out
        assert max(map(len, printed.out.splitlines())) <= 80


def test_completion_offers_commands_operations_and_clusters(tmp_path: Path) -> None:
    (tmp_path / "kubekeeper.yaml").write_text(GOOD)

    def complete(words: str, number: int) -> str:
        environ = os.environ | {
            "_KEEPER_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(number),
            "KUBEKEEPER_CONFIG": str(tmp_path / "kubekeeper.yaml"),
        }
        return subprocess.run(
            KEEPER, env=environ, capture_output=True, text=True, cwd=ROOT, check=False
        ).stdout

    assert "poison" in complete("keeper po", 1).split()
    assert "backup" in complete("keeper run b", 2).split()
    assert "rolling-upgrade" in complete("keeper run r", 2).split()
    assert complete("keeper run rolling-upgrade --set dis", 4).split() == ["discardLocalData="]
    assert "prod" in complete("keeper status --cluster p", 3).split()
    assert "etcd-backup" in complete("keeper plan e", 2).split()


def test_colours_only_on_a_terminal() -> None:
    code = "from shared.cli.console import print_table; print_table(('state',), [('verified',)])"

    def on_terminal(**environ: str) -> bytes:
        ours, theirs = pty.openpty()
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "FORCE_COLOR")}
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=theirs, cwd=ROOT, env=kept | {"TERM": "xterm"} | environ
        )
        process.wait(90)
        os.close(theirs)
        try:
            return os.read(ours, 10_000)
        finally:
            os.close(ours)

    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True).stdout
    assert b"\x1b[" not in piped
    assert b"\x1b[32m" in on_terminal()
    assert b"\x1b[32m" not in on_terminal(NO_COLOR="1")


def test_tables_fit_eighty_columns_without_losing_text(capsys) -> None:
    from shared.cli.console import print_table

    reason = "a reason that is much longer than what is left of the line " * 3
    print_table(("id", "queue", "tries", "reason"), [("0123abcd", "operations", 5, reason)], right=("tries",))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join("".join(lines).split()).count("reason") == 4


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def test_every_command_takes_json_unless_json_is_all_it_prints() -> None:
    without = [
        name
        for name, command in commands(typer.main.get_command(app))
        if not any("--json" in option.opts for option in command.params)
    ]
    assert without == ["snapshot", "config schema"]
