"""A headless Chromium for the report's tests, and what they ask of its page."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sdjax.config import Report
from sdjax.jobs import report_job

READY = "html[data-ready]"
SHOWN = "#completion [data-t]"


@contextmanager
def launched() -> Iterator:
    """Yields Debian's Chromium; skips where it or what drives it is not installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as p:
        # CI runs as root, as whom Chromium has no sandbox.
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """A page of its own that remembers everything that must not happen."""

    def __init__(self, browser):
        self.page = browser.new_page(viewport={"width": 1300, "height": 850})
        self.page.set_default_timeout(10_000)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.said.append(f"request {request.url}"))
        self.page.on("popup", lambda popup: self.said.append(f"popup {popup.url}"))

    def open(self, file, link=""):
        url = f"file://{file}{link}"
        self.page.goto("about:blank")
        self.page.goto(url)
        self.page.wait_for_selector(READY)
        self.said = [
            x for x in self.said if x not in (f"request file://{file}", "request about:blank")
        ]
        return self.page


def written(folder, *runs, **fields):
    out = folder / "report.html"
    report_job.run(Report(runs=tuple(map(str, runs)), out=str(out), **fields))
    return out


def tokens(page):
    return page.locator(SHOWN).all_text_contents()


def said(page, text):
    """Waits until the line above the list says it."""
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_have_text(text)


def count(page):
    """Returns how many rollouts the list says it has."""
    said(page, re.compile("^[0-9]"))
    return int(page.inner_text("#count").split()[0].replace(",", ""))


def listed(page):
    """Returns the numbers of the rollouts in sight, in order."""
    return [
        int(x) for x in page.eval_on_selector_all("[role=option]", "e => e.map(x => x.dataset.i)")
    ]


def open_rollout(page, i):
    page.evaluate(f"location.hash = '#rollouts?open={i}'")
    page.wait_for_selector(f"#detail[data-shown='{i}']")
