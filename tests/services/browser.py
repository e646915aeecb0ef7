"""A real browser for tests of pages. A machine without Chromium fails and says how to get one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, sync_playwright

SCREENSHOTS: Final = Path(__file__).parents[2] / "build" / "screenshots"
NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ADVICE: Final = (
    "no Chromium was found: install one with `.venv/bin/playwright install chromium`, or on Debian with "
    "`apt-get install chromium`"
)

# The contrast of each text with the colour behind it, where it is less than WCAG AA asks for.
CONTRAST: Final = """() => {
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const behind = node => {
    for (let each = node; each; each = each.parentElement) {
      const colour = parts(getComputedStyle(each).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.getClientRects().length || node.closest('svg')) continue;
    const style = getComputedStyle(node), large = parseFloat(style.fontSize) >= 24;
    const [light, dark] = [luminance(parts(style.color)), luminance(behind(node))].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    const words = node.textContent.trim().slice(0, 40);
    if (ratio < (large ? 3 : 4.5)) found.push(`${node.tagName} ${words}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
# What a person who does not see the page, or who uses the keyboard, would miss.
UNNAMED: Final = """() => {
  const found = [];
  if (document.documentElement.lang !== 'en') found.push('no language');
  if (document.querySelectorAll('h1').length !== 1) found.push('not one h1');
  for (const each of document.querySelectorAll('input:not([type=hidden]), select'))
    if (!each.labels.length) found.push(`no label: ${each.name}`);
  for (const each of document.querySelectorAll('button, a'))
    if (!each.textContent.trim()) found.push(`no text: ${each.outerHTML}`);
  for (const each of document.querySelectorAll('progress, svg'))
    if (!each.getAttribute('aria-label')) found.push(`no name: ${each.tagName}`);
  for (const each of document.querySelectorAll('button, .button'))
    if (each.getBoundingClientRect().height < 40) found.push(`small: ${each.textContent}`);
  return found;
}"""


def executable(playwright: Playwright) -> str:
    """The path of a Chromium: the system's, or else Playwright's own. Fails the test if there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    own = playwright.chromium.executable_path
    if not Path(own).exists():
        pytest.fail(ADVICE)
    return own


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium for the tests of a module."""
    with open_browser() as chromium:
        yield chromium


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium, for the thread that opens it."""
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=executable(playwright), args=arguments)
        yield chromium
        chromium.close()


class Visitor:
    """A page of a browser at one width. Notes console errors and requests, and takes screenshots of both schemes."""

    def __init__(self, browser: Browser, width: int, *, scripts: bool) -> None:
        self.width = width
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self._context = browser.new_context(
            viewport={"width": width, "height": 900}, java_script_enabled=scripts, color_scheme="light"
        )
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._on_request)

    def close(self) -> None:
        """Close the browser's window."""
        self._context.close()

    def fill(self, **fields: str) -> None:
        """Fill in fields of a form by their names."""
        for name, value in fields.items():
            self.page.locator(f"[name={name}]").first.fill(value)

    def press(self, button: str) -> None:
        """Press a button or follow a link by its text, and wait for the page."""
        target = self.page.get_by_role("button", name=button).or_(self.page.get_by_role("link", name=button))
        target.first.click()
        self.page.wait_for_load_state()

    def text(self) -> str:
        """The text of the page that a person reads."""
        return self.page.locator("body").inner_text()

    def look(self, name: str) -> None:
        """Take a screenshot in light and dark. Fails if a person would have to scroll sideways."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            self.page.screenshot(path=SCREENSHOTS / f"{name}-{self.width}-{scheme}.png", full_page=True)
        content = max(
            (
                box["x"] + box["width"]
                for element in self.page.locator("body > *").all()
                if (box := element.bounding_box())
            ),
            default=0,
        )
        assert content <= self.width, f"{name} is wider than {self.width}"

    def measure(self) -> None:
        """Fails if a text is hard to read, or if a part has no name for who does not see it. Needs scripts."""
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            assert self.page.evaluate(CONTRAST) == [], (self.page.url, scheme)
        assert self.page.evaluate(UNNAMED) == [], self.page.url
        self.page.emulate_media(color_scheme="light")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{self.page.url}: {message.text}")

    def _on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data":
            self.hosts.add(parts.netloc)
