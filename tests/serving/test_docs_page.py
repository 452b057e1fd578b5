"""/docs in a real browser: it shows the routes under the strict policy, and asks no other machine."""

import shutil

import pytest


def test_description_is_shown(client):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine")
    here, problems = f"http://127.0.0.1:{client.port}", []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith((here, "data:")) else None)
        page.goto(f"{here}/docs")
        page.wait_for_selector("#types section")
        text = page.inner_text("main")
        browser.close()
    assert "POST /api/v1/recipes/{name}/predict" in text
    assert "PredictedPicture" in text
    assert "POST /api/v1/marks/undo" in text
    assert problems == []
