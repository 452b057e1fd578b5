"""The HTTP API: the library's results, refusals in one line, versions, marks, and what another machine might try."""

import base64
import io
import json
import re
import socket
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from serving.pictures import Filter
from serving.store import Store

PAGES = ("/docs", "/page/docs.js", "/page/docs.css", "/api/v1/openapi.json", "/api/v1/health", "/nothing", "/metrics")


def png(width, height, seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def forged(content, side=100_000):
    """A PNG whose header states another size, with the right checksum."""
    header = content[12:16] + 2 * side.to_bytes(4, "big") + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


def form(*files):
    """A multipart body and its type, of (name, content)."""
    parts = [
        b'--bound\r\nContent-Disposition: form-data; name="p"; filename="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in files
    ]
    return b"".join(parts) + b"--bound--\r\n", "multipart/form-data; boundary=bound"


# ------------------------------------------------------------------------------------------- judging


def test_result_is_that_of_the_library(client, model, pictures):
    for path in (pictures[0], pictures[-1]):
        expected = model.predict_image(path)
        answer = client.predict(path.read_bytes(), "?map=tiff&overlay=png&name=x.png")
        result = answer["results"][0]
        assert result["score"] == pytest.approx(expected.score, abs=1e-5)
        assert result["normalised"] == pytest.approx(expected.normalised, abs=1e-5)
        assert result["decision"] == ("defective" if expected.decision else "good")
        assert (result["name"], result["width"], result["height"]) == ("x.png", 64, 64)
        found = tifffile.imread(io.BytesIO(base64.b64decode(result["map"])))
        np.testing.assert_allclose(found, expected.map, atol=1e-5)
        overlay = cv2.imdecode(np.frombuffer(base64.b64decode(result["overlay"]), np.uint8), cv2.IMREAD_COLOR)
        assert overlay.shape == (64, 64, 3)
        assert sum(region["area"] for region in result["regions"]) == pytest.approx(expected.mask.sum(), abs=3)


def test_regions_say_where(client, pictures):
    (result,) = client.predict(pictures[-1].read_bytes())["results"]
    for region in result["regions"]:
        x, y, width, height = region["box"]
        assert x <= region["centre"][0] <= x + width
        assert y <= region["centre"][1] <= y + height
        assert 0 < region["area"] <= width * height
        assert 0 < region["highest"] <= 1


def test_several_pictures_in_a_form(client, pictures):
    body, kind = form(
        ("../../a.png", pictures[0].read_bytes()), ("b.txt", b"text"), ("c.png", pictures[1].read_bytes())
    )
    status, _, answer = client.ask("POST", f"{client.base}/predict", body, Content_Type=kind)
    results = json.loads(answer)["results"]
    assert status == 200
    assert [result["name"] for result in results] == ["a.png", "b.txt", "c.png"]
    assert results[1] == {"name": "b.txt", "error": results[1]["error"], "status": 415}
    assert [results[0]["decision"], results[2]["decision"]] != [None, None]


def test_many_at_once_get_their_own_results(client, model, pictures):
    expected = {path: round(model.predict_image(path).score, 4) for path in pictures}
    found, jobs = [], pictures * 4

    def work(path):
        found.append((path, round(client.predict(path.read_bytes())["results"][0]["score"], 4)))

    threads = [threading.Thread(target=work, args=(path,)) for path in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(jobs)
    assert all(score == pytest.approx(expected[path], abs=2e-4) for path, score in found)


GOOD = png(64, 64)


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"", 422, "the file is empty"),
        (b"<html>no picture</html>", 415, "not a picture"),
        (b"\x89PNG\r\n\x1a\n", 415, "not a picture"),
        (GOOD[: len(GOOD) // 2], 422, "cannot be read"),
        (GOOD[:60] + bytes(2000) + GOOD[2060:], 422, "cannot be read"),
        (png(7, 64), 422, "at least 8"),
        (forged(GOOD), 413, "--max_pixels 1000000"),
        (bytes(20_000_000), 413, "at most 1000000"),
        (form(("a", b"x"))[0][:-30], 415, "not a picture"),
    ],
)
def test_bodies_that_are_refused(client, body, status, line):
    before = client.service.store.pictures.count(Filter())
    answer = client.predict(body, status=status)
    assert line in answer["error"]
    assert "\n" not in answer["error"]
    assert client.service.store.pictures.count(Filter()) == before


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"--bound\r\nbroken", "form"),
        (form()[0], "form"),
        (b'--bound\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--bound--\r\n', "holds no file"),
        (form(*[("a", b"x")] * 33)[0], "form cannot be read"),
    ],
)
def test_forms_that_are_refused(client, body, line):
    status, _, answer = client.ask("POST", f"{client.base}/predict", body, Content_Type=form()[1])
    assert status == 400
    assert line in json.loads(answer)["error"]


def test_chunked_body_beyond_the_limit(client):
    def parts():
        for _ in range(100):
            yield bytes(100_000)

    status, _, answer = client.ask("POST", f"{client.base}/predict", parts())
    assert status == 413
    assert "more than 1000000" in json.loads(answer)["error"]


def test_no_room_is_503_and_says_when(client, pictures, monkeypatch):
    for target, name in ((client.service.queue, "_bound"), (client.service.admission, "_requests")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, 0)
            status, headers, answer = client.ask("POST", f"{client.base}/predict", pictures[0].read_bytes())
        assert (status, headers["retry-after"]) == (503, "1")
        assert "try again" in json.loads(answer)["error"]
    with monkeypatch.context() as patch:
        patch.setattr(client.service.work, "_pixels", 10**9)  # as much is decoded as may be
        assert client.ask("POST", f"{client.base}/predict", pictures[0].read_bytes())[0] == 503
    client.predict(pictures[0].read_bytes())
    assert client.service.work._pixels == 0


def test_uploads_that_end_early_leave_nothing(client, pictures):
    before = client.service.store.pictures.count(Filter())
    body = pictures[0].read_bytes()
    head = f"POST {client.base}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for part in (b"", body[:100], body):  # cut off, or closed before the answer
        with socket.create_connection(("127.0.0.1", client.port)) as raw:
            raw.sendall(head + part)
    client.predict(body)
    deadline = time.monotonic() + 10
    admission = client.service.admission  # gives way a moment after a picture is recorded
    while time.monotonic() < deadline and (
        client.service.store.pictures.count(Filter()) < before + 2 or admission._requests < 64
    ):
        time.sleep(0.02)
    assert client.service.store.pictures.count(Filter()) == before + 2
    assert admission._requests == 64


# ------------------------------------------------------------------------------- paths, pages, others


@pytest.mark.parametrize("path", ["/page/../guard.py", "/page/%2e%2e/guard.py", "/page//etc/passwd", "/../main.py"])
def test_no_path_of_a_request_is_one_of_this_machine(client, path):
    assert client.ask("GET", path)[0] == 404


def test_names_of_senders_name_no_file(client, pictures):
    found = client.predict(pictures[0].read_bytes(), "?name=..%2F..%2F%00evil%0a.html")["results"][0]
    assert found["name"] == "%00evil%0A.html"
    picture = client.service.store.pictures.get(found["id"])
    assert re.fullmatch(r"pictures/\w\w/\w{32}\.png", picture.file)


@pytest.mark.parametrize("path", PAGES)
def test_every_answer_has_a_strict_policy(client, path):
    _, headers, content = client.ask("GET", path)
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert not re.search(rb"(src|href)=\"(https?:)?//", content)


def test_other_hosts_and_pages_are_refused(client):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert client.ask("GET", "/api/v1/recipes", Host=host)[0] == 421
    for host in ("localhost", f"127.0.0.1:{client.port}", "[::1]:80"):
        assert client.ask("GET", "/api/v1/recipes", Host=host)[0] == 200
    undo = f"{client.base}/undo"
    for origin in ("https://evil.example", "null", f"http://localhost:{client.port + 1}"):
        assert client.ask("POST", undo, Origin=origin)[0] == 403
    assert client.ask("POST", undo, Origin=f"http://127.0.0.1:{client.port}")[0] == 409


def test_unknown_things_are_404_in_one_line(client):
    for method, path in (
        ("GET", "/api/v1/recipes/lid"), ("POST", "/api/v1/recipes/lid/predict"), ("GET", "/api/v1/pictures/999999"),
        ("GET", "/api/v1/pictures/999999/heatmap"), ("GET", "/api/v1/nothing"),
    ):  # fmt: skip
        answer = client.json(method, path, b"" if method == "POST" else None, status=404)
        assert "\n" not in answer["error"]
    assert "custom_disc" in client.json("GET", "/api/v1/recipes/lid", status=404)["error"]


def test_a_json_body_is_bounded(client):
    status, _, answer = client.ask("POST", f"{client.base}/thresholds", b" " * 200_000)
    assert (status, "at most 100000" in json.loads(answer)["error"]) == (413, True)
    assert client.json("POST", f"{client.base}/thresholds", b"{", status=422)["error"]


def test_metrics_count(client, pictures):
    client.predict(pictures[0].read_bytes())
    _, headers, text = client.ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = text.decode().splitlines()
    assert any(line.startswith('glass_requests_total{method="POST"') and 'status="200"' in line for line in lines)
    assert int(next(line for line in lines if line.startswith("glass_memory_bytes ")).split()[1]) > 1e7
    for line in lines:
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [\d.e+]+', line), line


# ----------------------------------------------------------------------------- versions, marks, images


@pytest.fixture
def fresh(client, pictures):
    """The client with the first version active and two new pictures, good and defective: their ids."""
    ids = [client.predict(path.read_bytes())["results"][0]["id"] for path in (pictures[0], pictures[-1])]
    yield client, ids
    client.service.store.recipes.activate("custom_disc", 1)


def test_thresholds_make_a_version_and_undo_takes_it_back(fresh, pictures):
    client, ids = fresh
    first = client.json("GET", client.base)["version"]
    version = client.json("POST", f"{client.base}/thresholds", {"unsure": 0, "defective": 1})
    assert (version["origin"], version["active"]) == ("threshold", True)
    assert client.predict(pictures[0].read_bytes())["results"][0]["decision"] == "unsure"
    assert client.json("GET", f"/api/v1/pictures/{ids[0]}")["decision_now"] == "unsure"
    assert client.json("POST", f"{client.base}/undo")["number"] == first["number"]
    numbers = [v["number"] for v in client.json("GET", f"{client.base}/versions")["versions"]]
    assert numbers == sorted(numbers, reverse=True)
    assert version["number"] in numbers
    assert client.json("POST", f"{client.base}/activate", {"number": version["number"]})["active"]
    assert "no version 99" in client.json("POST", f"{client.base}/activate", {"number": 99}, 404)["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"unsure": 0.7, "defective": 0.6}, 400), ({"unsure": -1, "defective": 0.6}, 400), ({"unsure": 0.1}, 422),
     ({"unsure": "x", "defective": 1}, 422), ({"unsure": 0, "defective": 1, "more": 1}, 422)],
)  # fmt: skip
def test_thresholds_that_are_refused(client, body, status):
    client.json("POST", f"{client.base}/thresholds", body, status)


def test_another_process_activates_a_version(fresh, pictures):
    client, _ = fresh
    other = Store(client.service.store.folder)
    number = other.recipes.set_thresholds("custom_disc", 0, 1).number
    other.close()
    answer = client.predict(pictures[0].read_bytes())
    assert (answer["version"], answer["results"][0]["decision"]) == (number, "unsure")


def test_version_that_cannot_be_loaded_leaves_the_old_one(fresh, pictures, tmp_path, log):
    client, _ = fresh
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    client.service.store.recipes.add("custom_disc", tmp_path / "bad.pth", 0.5, 0.5, "retrained")
    assert client.predict(pictures[0].read_bytes())["version"] == 1
    assert client.predict(pictures[0].read_bytes())["version"] == 1
    assert log.text.count("cannot be used") == 1


def test_marks_and_masks(fresh):
    client, (good, defective) = fresh
    marked = client.json("POST", "/api/v1/marks", {"pictures": [good, defective], "mark": "defective"})
    assert [p["mark"] for p in marked["pictures"]] == ["defective"] * 2
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20] = 200
    encoded = cv2.imencode(".png", mask)[1].tobytes()
    assert client.json("PUT", f"/api/v1/pictures/{defective}/mask", encoded)["has_mask"]
    content = client.ask("GET", f"/api/v1/pictures/{defective}/mask")[2]
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), (mask > 0) * 255
    )
    for wrong in (encoded[:50], cv2.imencode(".png", mask[:9])[1].tobytes(), b"GIF89a"):
        assert "mask" in client.json("PUT", f"/api/v1/pictures/{defective}/mask", wrong, 422)["error"]
    undo = {"recipe": "custom_disc"}
    assert client.json("POST", "/api/v1/marks/undo", undo)["pictures"] == [defective]
    assert not client.json("GET", f"/api/v1/pictures/{defective}")["has_mask"]
    assert client.json("POST", "/api/v1/marks/undo", undo)["pictures"] == [good, defective]
    client.json("POST", "/api/v1/marks/undo", undo, 409)
    client.json("POST", "/api/v1/marks", {"pictures": [999999], "mark": "good"}, 404)
    client.json("POST", "/api/v1/marks", {"pictures": [good], "mark": "bad"}, 422)


def test_pictures_are_listed_in_pages(fresh):
    client, (good, defective) = fresh
    first = client.json("GET", f"/api/v1/pictures?recipe=custom_disc&order=newest&limit=1&after={good - 1}")
    second = client.json("GET", f"/api/v1/pictures?limit=1&after={good - 1}&cursor={first['cursor']}")
    assert [p["id"] for p in first["pictures"] + second["pictures"]] == [defective, good]
    assert second["cursor"] is None
    client.json("GET", "/api/v1/pictures?cursor=x", status=400)
    client.json("GET", "/api/v1/pictures?limit=1000", status=422)


@pytest.mark.parametrize("kept", [True, False])
def test_images_of_a_picture(fresh, model, pictures, kept, monkeypatch):
    client, (_, defective) = fresh
    if not kept:
        monkeypatch.setattr(client.service.work.kept, "get", lambda *_: None)
    base, expected = f"/api/v1/pictures/{defective}", model.predict_image(pictures[-1])
    assert client.ask("GET", f"{base}/file")[2] == pictures[-1].read_bytes()
    status, headers, content = client.ask("GET", f"{base}/map?format=png")
    assert (status, headers["x-glass-version"], headers["content-type"]) == (200, "1", "image/png")
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(found / 65535, expected.map, atol=1e-4)
    outline = client.ask("GET", f"{base}/outline")[2]
    assert cv2.imdecode(np.frombuffer(outline, np.uint8), cv2.IMREAD_UNCHANGED).shape == (64, 64, 4)
    for kind, shape in (("heatmap", (64, 64, 3)), ("overlay", (64, 64, 3)), ("view?side=16", (16, 16, 3))):
        image = client.ask("GET", f"{base}/{kind}")[2]
        assert cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).shape == shape


def test_scores_and_drift(fresh, pictures):
    client, _ = fresh
    scores = client.json("GET", f"{client.base}/scores?last=2")
    assert len(scores["recent"]) == 2
    assert len(scores["training"]["good"]) == 3  # the good test images of the training
    dark = io.BytesIO()
    with Image.open(pictures[0]) as image:
        image.point(lambda value: value // 3).save(dark, "PNG")
    for _ in range(25):
        client.predict(dark.getvalue())
    drift = client.json("GET", f"{client.base}/drift?last=20")
    figure = drift["figures"]["brightness"]
    assert drift["moved"]
    assert "brightness is lower than before" in drift["line"]
    assert sum(figure["recent"]["histogram"]) == figure["recent"]["count"] == 20
