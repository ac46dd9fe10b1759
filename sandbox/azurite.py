"""Azurite, Microsoft's storage emulator, as a process that lives as long as a `with` block.

The ports are chosen by the operating system and read from what Azurite prints, so that two runs never meet.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox import tools

ACCOUNT = "devstoreaccount1"
LISTENING = re.compile(r"(Blob|Queue|Table) service is successfully listening at (http://\S+)")
START_SECONDS = 60
ENDS_WITH_PARENT = Path(__file__).with_name("ends_with_parent.cjs")


class Azurite:
    """A running emulator: `with Azurite() as storage: storage.connection_string`.

    In memory by default; `location` keeps the data in that directory instead (use it for gigabytes).
    `access_log` is a file that gets a line for each request.
    """

    def __init__(self, location: Path | None = None, access_log: Path | None = None) -> None:
        self.location = location
        self.access_log = access_log
        self._key = base64.b64encode(secrets.token_bytes(64)).decode()
        self._addresses: dict[str, str] = {}
        self._lines: list[str] = []
        self._listening = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        """Start and wait until all services listen; else RuntimeError with Azurite's last words."""
        command = [str(tools.node().path), "--require", str(ENDS_WITH_PARENT), str(tools.azurite_script())]
        command += ["--disableTelemetry", "--skipApiVersionCheck", *([] if self.access_log else ["--silent"])]
        command += ["--blobPort", "0", "--queuePort", "0", "--tablePort", "0"]
        command += ["--location", str(self.location)] if self.location else ["--inMemoryPersistence"]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self._key}"},
            stdin=subprocess.PIPE,  # closed by our end, even by kill -9: then Azurite ends too
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C reaches whoever started us, who then stops Azurite last
        )
        threading.Thread(target=self._read, args=(self._process,), name="azurite-output", daemon=True).start()
        if not self._listening.wait(START_SECONDS) or len(self._addresses) < 3:
            self.stop()
            raise RuntimeError(f"Azurite did not start: {' / '.join(self._lines[-3:])}")
        return self

    def stop(self) -> None:
        """End the process; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self._lines = [*self._lines[-20:], line.strip()]
                if self.access_log is not None:
                    with self.access_log.open("a") as log:
                        log.write(line)
                if match := LISTENING.search(line):
                    self._addresses[match[1].lower()] = f"{match[2]}/{ACCOUNT}"
                    if len(self._addresses) == 3:
                        self._listening.set()
        self._listening.set()  # the process has ended: whoever waits should look

    @property
    def blob_url(self) -> str:
        return self._addresses["blob"]

    @property
    def queue_url(self) -> str:
        return self._addresses["queue"]

    @property
    def table_url(self) -> str:
        return self._addresses["table"]

    @property
    def connection_string(self) -> str:
        """What `AzureWebJobsStorage` holds."""
        endpoints = (
            f"BlobEndpoint={self.blob_url};QueueEndpoint={self.queue_url};TableEndpoint={self.table_url}"
        )
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={self._key};{endpoints};"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def main(arguments: list[str]) -> int:
    """`python -m sandbox azurite [DIRECTORY]`: prints the connection string and runs until Ctrl-C."""
    if len(arguments) > 1 or arguments[:1] == ["--help"]:
        print("usage: python -m sandbox azurite [DIRECTORY]", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Azurite(Path(arguments[0]) if arguments else None) as storage:
            print(storage.connection_string, flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    return 0
