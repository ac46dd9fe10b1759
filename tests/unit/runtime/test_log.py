"""Secrets never reach a log line."""

from __future__ import annotations

import io
import logging

import pytest

from shared.log import HIDDEN, install_redaction, log_event, redact

SECRETS = [
    ("DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0a2V5PT0=;EndpointSuffix=x", "c2VjcmV0"),
    ("https://a.blob.core.windows.net/c/b?sv=2024&sig=AbC%2Fsecret%3D&se=2026", "AbC%2Fsecret"),
    ("BlobEndpoint=https://a;SharedAccessSignature=sv=2024&sig=hunter2hunter2", "hunter2"),
    ("Authorization: Bearer eyJhbGciOi.JSUzI1NiJ9.c2ln", "eyJhbGciOi"),
    ("Authorization: SharedKey account:c2VjcmV0c2VjcmV0", "c2VjcmV0"),
    ('{"password": "correct horse", "user": "root"}', "horse"),
    ("etcd password=hunter2, retrying", "hunter2"),
    ("client_secret='a b c'", "a b c"),
    ("connecting to https://root:hunter2@10.0.0.4:2379", "hunter2"),
    ("aeg-sas-key: hunter2hunter2", "hunter2"),
    ("x-functions-key=hunter2", "hunter2"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEvQcut off", "MIIEvQ"),
    ("api_key=hunter2", "hunter2"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_a_secret_is_replaced_wherever_it_stands(text: str, secret: str) -> None:
    assert secret not in redact(f"before {text}")
    assert HIDDEN in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "Backup status=Succeeded cluster=prod target=2026/11/23/120000-1f.json",
        "hash 2a5d1e9c revision 188600 sha256 9f86d081884c7d659a2feaa0c55ad015",
        "cannot read blob 'x' in container 'y': BlobNotFound (404)",
        "https://prod.blob.core.windows.net/etcd-backups?restype=container&comp=list",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.fixture
def output():
    factory = logging.getLogRecordFactory()
    install_redaction()
    install_redaction()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("somebody.else")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield log, stream
    log.removeHandler(handler)
    logging.setLogRecordFactory(factory)


def test_every_logger_of_the_process_is_redacted_arguments_and_tracebacks_included(output) -> None:
    log, stream = output
    log.info("key %s of %d%%", "AccountKey=c2VjcmV0", 100)
    try:
        raise ValueError("password=hunter2")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert "c2VjcmV0" not in text
    assert "hunter2" not in text
    assert "of 100%" in text
    assert "ValueError" in text


def test_a_log_line_is_one_event_name_and_keys(output) -> None:
    log, stream = output
    log_event(log, "Tick", cluster="prod", empty="", message="two\nlines", count=0)
    assert stream.getvalue() == 'Tick cluster=prod message="two lines" count=0\n'
