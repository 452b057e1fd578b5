"""The page in a real browser: judging, marking, masks, thresholds; under the strict policy, on a phone too."""

import shutil
import time

import pytest

EVIL = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, client):
    here, problems = f"http://127.0.0.1:{client.port}", []
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(5000)
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda r: problems.append(r.url) if not r.url.startswith((here, "data:", "blob:")) else None)
    opened.goto(here)
    opened.wait_for_selector("#recipe option", state="attached")
    yield opened
    opened.close()
    assert problems == []


def says(page, text):
    from playwright.sync_api import expect  # the page's policy forbids what wait_for_function evaluates

    expect(page.locator("#status")).to_contain_text(text)


def test_a_day_on_the_page(page, client, pictures, tmp_path):
    evil = tmp_path / EVIL
    shutil.copy(pictures[-1], evil)
    page.set_input_files("#files", [*map(str, pictures[:2]), str(evil)])
    says(page, "3 judged")
    assert page.inner_text("#shown h2") == EVIL
    for image in page.locator("#shown img").all():
        deadline = time.monotonic() + 10
        while not image.evaluate("i => i.complete && i.naturalWidth > 0"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    page.screenshot(path=str(tmp_path / "inspect.png"))
    page.keyboard.press("j")
    assert page.inner_text("#shown h2") == pictures[1].name

    page.goto(page.url.split("#")[0] + "#review")
    page.wait_for_selector("#cards button")
    page.focus("#cards button")
    first = int(page.get_attribute("#cards button", "data-id"))
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("d")
    says(page, "2 marked: defective")
    assert client.json("GET", f"/api/v1/pictures/{first}")["mark"] == "defective"
    page.keyboard.press("u")
    says(page, "mark of 2 taken back")
    assert client.json("GET", f"/api/v1/pictures/{first}")["mark"] is None

    page.keyboard.press("m")
    box = page.locator("#mask-canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 20, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.screenshot(path=str(tmp_path / "mask.png"))
    page.click("#mask-save")
    says(page, "mask saved")
    assert client.json("GET", f"/api/v1/pictures/{first}")["has_mask"]

    before = client.json("GET", client.base)["version"]["number"]
    page.click("nav a[href='#threshold']")
    page.wait_for_selector("#histogram svg")
    page.eval_on_selector("#defective", "s => { s.value = s.max; s.dispatchEvent(new Event('input')); }")
    page.eval_on_selector("#unsure", "s => { s.value = s.max; s.dispatchEvent(new Event('input')); }")
    counts = page.inner_text("#counts")
    missed, bad = (int(word) for word in counts.split("Misses: ")[1].split(" defective")[0].split(" of "))
    assert missed == bad > 0
    assert "False alarms: 0 of" in counts
    page.screenshot(path=str(tmp_path / "threshold.png"))
    page.click("#save")
    says(page, "judges from now on")
    assert client.json("GET", client.base)["version"]["number"] > before
    page.click("#undo-version")
    says(page, f"version {before} judges again")


@pytest.mark.parametrize("view", ["inspect", "review", "threshold", "drift", "versions"])
def test_a_phone_needs_no_scrolling_sideways(page, view, tmp_path):
    page.set_viewport_size({"width": 360, "height": 740})
    page.click(f"nav a[href='#{view}']")
    page.wait_for_selector(f"#{view}:not([hidden])")
    page.wait_for_load_state("networkidle")
    page.screenshot(path=str(tmp_path / f"{view}.png"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
