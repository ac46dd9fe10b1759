"""What `keeper plan ingress-sync` prints: routes that come and go, head-room, what is interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingress_builders import Bench, app, ingress, path, rule, secret
from keeper import Keeper

from shared.ingress_sync.observation import save

TLS = [{"secretName": "tls"}]


@pytest.fixture
def bench() -> Bench:
    bench = Bench(app(), {"secrets": secret()}, ingress("web", rule("shop.example"), tls=TLS))
    bench.sync()
    return bench


def printed(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    file = tmp_path / "snapshot.json"
    file.write_bytes(save(bench.observe()))
    done = Keeper({}, capsys)("plan", "ingress-sync", "--from", str(file))
    assert done.code == 0
    return [line.strip() for line in done.out.splitlines()]


def test_a_route_that_comes_is_shown_with_the_head_room_and_no_interruption(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.add(ingress("news", rule("news.example", path("/a"))))
    lines = printed(bench, tmp_path, capsys)
    assert any("+ public http:80 news.example/a -> kk_prod_pool_shop-web" in line for line in lines)
    assert not any("evidence: - " in line or "interrupts" in line for line in lines)
    assert "evidence: activeListeners: 2 of 100 used, 2 by this cluster" in lines
    assert "change: LISTENERS" in lines


def test_a_listener_that_goes_and_a_certificate_that_changes_are_said_to_interrupt(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.add(ingress("news", rule("news.example")))
    bench.sync()
    bench.objects["ingresses"] = bench.objects["ingresses"][:1]
    bench.replace("secrets", secret(digest="renewed"))
    lines = printed(bench, tmp_path, capsys)
    assert any("- public http:80 news.example/* -> kk_prod_pool_shop-web" in line for line in lines)
    interrupted = [line for line in lines if line.startswith("evidence: interrupts: listener ")]
    assert [line.rpartition(" ")[2] for line in interrupted] == ["goes", "sslCertificate"]
    assert "change: INTERRUPTING" in lines


def test_whole_documents_are_named_and_not_printed(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.add(ingress("news", rule("news.example")))
    lines = printed(bench, tmp_path, capsys)
    assert "in --json only: changes, document, routes, headRoom" in lines
    assert not any("backendAddressPools/" in line for line in lines)
