"""report.html in a real browser: sorting, filtering, enlarging, small screens and print."""

import shutil

import pytest


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_page_in_a_browser(trained, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    page.goto((trained[0] / "report.html").as_uri())
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")

    def shown(name):
        return page.eval_on_selector_all(".card:not([hidden])", f"cards => cards.map(card => card.dataset.{name})")

    assert len(shown("path")) == 6
    page.select_option(".sort", "up")
    scores = [float(s) for s in shown("score")]
    assert scores == sorted(scores)
    page.select_option(".sort", "down")
    assert [float(s) for s in shown("score")] == sorted(scores, reverse=True)
    page.select_option(".sort", "path")
    assert shown("path") == sorted(shown("path"))
    outcome = shown("outcome")[0]
    count = shown("outcome").count(outcome)
    page.select_option(".filter", outcome)
    assert shown("outcome") == [outcome] * count
    assert page.inner_text(".count") == f"{count} shown"
    page.select_option(".filter", "")
    page.focus(".card:not([hidden])")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.eval_on_selector("#large", "dialog => dialog.open")
    second = shown("path")[1]
    assert second.split("/")[-1] in page.inner_text("#shown")
    page.keyboard.press("ArrowRight")
    assert shown("path")[2].split("/")[-1] in page.inner_text("#shown")
    page.keyboard.press("Escape")
    assert not page.eval_on_selector("#large", "dialog => dialog.open")
    assert not errors


def test_page_on_a_phone_and_on_paper(trained, browser):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto((trained[0] / "report.html").as_uri())
    # nothing but the tables, which scroll by themselves, is wider than the screen
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert (
        page.eval_on_selector(".panels", "panels => getComputedStyle(panels).gridTemplateColumns.split(' ').length")
        == 2
    )
    page.emulate_media(media="print")
    assert not page.is_visible(".tools")
    assert page.is_visible(".card")
