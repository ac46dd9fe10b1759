"""The status page in a real headless Chromium: axe-core finds nothing, and it all works without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from status_builders import fleet

from sandbox.browser import chromium, launched, violations
from shared.status.page import render

pytestmark = pytest.mark.skipif(
    not chromium(), reason="no Chromium on this machine (CHROMIUM=path names one)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "status.html"
    path.write_text(render(fleet()))
    return path.as_uri()


def opened(browser: Browser, address: str, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.goto(address)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_no_violation(browser: Browser, address: str, scheme: Any, width: int) -> None:
    page = opened(browser, address, color_scheme=scheme, viewport={"width": width, "height": 800})
    for summary in page.locator("summary").all():
        summary.click()
    assert violations(page) == []


def test_it_reads_and_folds_without_javascript(browser: Browser, address: str) -> None:
    page = opened(browser, address, java_script_enabled=False)
    assert page.get_by_role("heading", name="Fleet").is_visible()
    left = page.locator("details").first
    assert not left.locator("th").first.is_visible()
    left.locator("summary").click()
    assert left.locator("th").first.is_visible()


def test_the_keyboard_alone_reaches_the_content_first_and_opens_what_is_folded(
    browser: Browser, address: str
) -> None:
    page = opened(browser, address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, address: str) -> None:
    page = opened(browser, address, viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_nothing_is_asked_of_any_host(browser: Browser, address: str) -> None:
    asked: list[str] = []
    page = browser.new_context().new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert asked == [address]
