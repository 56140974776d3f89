"""Pages in a real headless Chromium, with what they asked for and what they complained of."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")
QUIET += ("--disable-background-networking", "--disable-component-update")
DESKTOP, PHONE = 1280, 390
"""Widths of a window, px."""
WIDEST = "Math.max(...[...document.querySelectorAll('svg.plot')].map(plot => plot.getBoundingClientRect().right))"
"""How far to the right a page's drawings reach, px."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine; the test is skipped, and says so, where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@dataclass(frozen=True)
class Shown:
    """A page in the browser, with what it asked for and what it complained of."""

    page: Page
    requests: list[str]
    complaints: list[str]

    def numbers(self, caption: str) -> dict[str, list[str]]:
        """The cells of the table with this caption, by the first cell of the row; bars are left out."""
        return self.page.evaluate(
            """caption => {
                const table = [...document.querySelectorAll('table')].find(t => t.caption?.textContent == caption);
                return Object.fromEntries([...table.tBodies[0].rows].map(row => [row.cells[0].textContent,
                    [...row.cells].slice(1).filter(cell => cell.className != 'bar').map(cell => cell.textContent)]));
            }""",
            caption,
        )

    def texts(self, selector: str) -> list[str]:
        """What the elements say, in their order."""
        return self.page.locator(selector).all_text_contents()

    def left_the_page(self) -> list[str]:
        """Requests for what is neither the page nor held in it."""
        return [url for url in self.requests if not url.startswith(("file:", "data:"))]

    def overflow_px(self) -> int:
        """How much wider than its window the page is, all that folds being open; 0 where nothing scrolls sideways."""
        self.page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def pictures(self) -> list[tuple[int, str]]:
        """Width, px, and alternative text of each image, once all are there; a broken one has width 0."""
        self.page.wait_for_function("[...document.images].every(image => image.complete)")
        return self.page.evaluate("[...document.images].map(image => [image.naturalWidth, image.alt])")


def opened(browser: Browser, path: Path | str, width: int = DESKTOP, scheme: Any = "light") -> Shown:
    """A file in a new window; whoever opens it closes it, or the end of the browser does."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    shown = Shown(page, [], [])
    page.on("request", lambda request: shown.requests.append(request.url))
    page.on("console", lambda message: shown.complaints.append(message.text))
    page.on("pageerror", lambda error: shown.complaints.append(str(error)))
    page.goto(Path(path).as_uri())
    return shown


def contrast(page: Page, selector: str) -> float:
    """Contrast of the first such element's text with what lies behind it (WCAG 2.1): 4.5 is what small text needs."""
    ink, paper = page.evaluate(
        """selector => {
            const part = document.querySelector(selector);
            const behind = node => getComputedStyle(node).backgroundColor;
            let paper = part;
            while (paper != document.body && behind(paper) == 'rgba(0, 0, 0, 0)') paper = paper.parentElement;
            return [getComputedStyle(part).color, behind(paper)];
        }""",
        selector,
    )

    def light(colour: str) -> float:
        parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, bright = sorted((light(ink), light(paper)))
    return (bright + 0.05) / (dark + 0.05)
