"""A real headless Chromium, where this machine has one, for looking at pages: axe-core, and screenshots.

Used by the tests of the status page and by the demo.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sandbox.tools import CHECKOUT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = CHECKOUT / "node_modules/axe-core/axe.min.js"
# Without these a headless Chromium looks for its maker's hosts when it starts.
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


def chromium() -> str | None:
    """Where it is: what CHROMIUM names, or one on the PATH."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser of one's own; `chromium()` must have found one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its own sandbox to root, which is what CI machines run as.
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=QUIET, chromium_sandbox=os.geteuid() != 0
        )
        yield browser
        browser.close()


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with a page as it stands; empty when nothing."""
    page.add_script_tag(path=AXE)
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{one['id']}: {one['help']} {[node['html'][:120] for node in one['nodes']]}" for one in found]
