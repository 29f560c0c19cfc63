"""report.html in headless Chromium, from file://: clicked through, wide and narrow, without a network.

It needs a Chromium (Debian: chromium) and playwright's Python package, which drives it; without either it
skips and says so. GENRECAL_CHROMIUM names another program; GENRECAL_SCREENSHOTS a folder for pictures.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest

from bench.gate import Limits, judge_drop
from bench.page import PAGE, open_benches, write_page
from tests.bench.scripted import HOSTILE

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def skip(what: str) -> None:
    warnings.warn(f"report.html was not opened in a browser: {what}", stacklevel=2)
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser():
    program = os.environ.get("GENRECAL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        skip("there is no Chromium on the path (Debian: apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        skip("playwright is not installed (pip install playwright)")
    with sync_playwright() as playwright:
        # Root may not use Chromium's sandbox; the page is our own.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        found = playwright.chromium.launch(executable_path=program, args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(benches, tmp_path_factory):
    output = tmp_path_factory.mktemp("viewer")
    opened = open_benches(benches)
    gate = judge_drop(opened[-1].report, opened[0].report, Limits(every=0.01, of_sets={}))
    write_page(opened, output, gate=gate)
    return output / PAGE


@pytest.fixture(scope="module")
def large_file(large_benches, tmp_path_factory):
    output = tmp_path_factory.mktemp("large_viewer")
    write_page(open_benches(large_benches), output)
    return output / PAGE


@pytest.fixture(params=[1280, 360])
def page(request, browser, page_file):
    yield from opened_page(request, browser, page_file)


@pytest.fixture(params=[1280, 360])
def large_page(request, browser, large_file):
    yield from opened_page(request, browser, large_file)


def opened_page(request, browser, page_file):
    """The page, opened; at the end nothing may have been asked of a network, or said on the console."""
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    found = context.new_page()
    trouble: list[str] = []
    found.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    found.on("pageerror", lambda error: trouble.append(str(error)))
    found.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
    found.on(
        "request",
        lambda asked: None if asked.url.startswith(("file://", "data:")) else trouble.append(asked.url),
    )
    found.goto(page_file.as_uri())
    yield found
    picture = os.environ.get("GENRECAL_SCREENSHOTS")
    if picture:
        name = f"{request.node.originalname}-{request.param}.png"
        found.screenshot(path=str(Path(picture) / name), full_page=True)
    assert trouble == []
    context.close()


def shown(page) -> str:
    return page.locator("#sample").inner_text()


def count(page) -> str:
    return page.locator("#count").inner_text()


def test_filters_search_and_keys(page):
    assert "int4 against student" in page.locator("h1").inner_text()
    assert count(page) == "1 of 16" and "1000001" in shown(page)
    assert page.locator("#sample img").count() == 1
    # Checkpoint right, build wrong; the build is the second subject until another is chosen.
    page.select_option("#which", "1")
    assert count(page) == "1 of 3"
    page.select_option("#against", label="int4")
    assert count(page) == "1 of 5"
    page.select_option("#which", "2")
    assert count(page) == "1 of 1" and "validation_Art_5" in shown(page)
    page.select_option("#which", "3")
    assert count(page) == "none" and "No sample" in shown(page)
    page.select_option("#which", "0")
    page.select_option("#benchmark", label="MMMU")
    page.select_option("#category", "Math")
    assert count(page) == "1 of 6"
    page.select_option("#benchmark", label="all")
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert count(page) == "3 of 16"
    page.keyboard.press("k")
    assert count(page) == "2 of 16"
    page.keyboard.press("1")
    assert count(page) == "1 of 5"
    page.keyboard.press("0")
    page.keyboard.press("/")
    page.keyboard.type("azure sky")
    assert count(page) == "1 of 1" and "judge:" in shown(page)
    page.keyboard.press("Escape")
    assert count(page) == "1 of 16"
    page.keyboard.press("1")
    assert count(page) == "1 of 5"


def test_buttons_and_the_list(page):
    page.click("#next")
    assert count(page) == "2 of 16"
    page.click("#previous")
    entry = page.locator("#list button").nth(4)
    entry.click()
    assert count(page) == "5 of 16" and entry.get_attribute("aria-current") == "true"
    details = page.locator("details").nth(0)
    before = details.get_attribute("open")
    details.locator("summary").click()
    assert details.get_attribute("open") != before


def test_a_hostile_answer_is_text(page):
    page.fill("#search", "onerror")
    assert count(page) == "1 of 1"
    assert HOSTILE in [page.locator(".reply").nth(number).inner_text() for number in range(3)]
    assert "read: nothing" in shown(page)
    assert page.title() == "int4: genrecal bench"
    assert page.locator("#sample script, #sample img[src='x']").count() == 0


def test_nothing_is_wider_than_the_screen(page):
    wide = page.evaluate(
        """() => {
            const limit = document.documentElement.clientWidth;
            const scrolls = (node) => node.closest(".wide, #list, svg");
            return [...document.querySelectorAll("body *")]
                .filter((node) => !scrolls(node) && node.getBoundingClientRect().right > limit + 1)
                .map((node) => node.tagName + "." + node.className);
        }"""
    )
    assert wide == []
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")


def test_a_page_at_its_limit_opens_and_filters_without_a_wait(large_page):
    assert PAGE in large_page.url and int(count(large_page).split()[-1]) > 200
    # What a person feels: from a key to the frame that shows its effect, here with slack for a busy machine.
    took_ms = large_page.evaluate(
        """async () => {
            const next = (done) => requestAnimationFrame(() => requestAnimationFrame(done));
            const times = [];
            for (const key of ["j", "1", "j", "0", "4", "0"]) {
                const before = performance.now();
                document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
                await new Promise(next);
                times.push(performance.now() - before);
            }
            return Math.max(...times);
        }"""
    )
    assert took_ms < 1500
    large_page.keyboard.press("1")
    assert large_page.locator("#which").input_value() == "1"
    assert "wrong" in shown(large_page) and large_page.locator("#sample img").count() == 1
    loaded = "image => image.decode().then(() => image.naturalWidth)"
    assert large_page.locator("#sample img").evaluate(loaded) >= 160
