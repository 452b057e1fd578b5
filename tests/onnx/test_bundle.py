"""`bundle`: one zip file that `onnx/ort.py` runs as it runs the graph; damaged and foreign ones are refused."""

import contextlib
import csv
import hashlib
import io
import json
import shlex
import stat
import zipfile

import pytest
import torch
from helpers import cli
from hypothesis import given
from hypothesis import strategies as st

from glass import load_checkpoint
from inference import bundle, checkpoint
from inference.thresholds import Thresholds
from tools import script
from utils import InputError, WorkError


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0] / "models" / "backbone_0" / "custom_disc"


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """A bundle, and what the command printed."""
    out = tmp_path_factory.mktemp("bundle") / "my part.zip"
    done = cli("bundle", folder, "--out", out, "--min_area", 7)
    assert done.returncode == 0, done.stdout
    return out, done.stdout


@pytest.fixture(scope="module")
def ort():
    return script("ort")


def content_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_bundle_holds_all_that_is_needed(packed, folder):
    path, printed = packed
    assert "largest difference to torch: score" in printed
    contents, model = content_of(path), load_checkpoint(folder)
    assert set(contents) == {*bundle.NAMES, bundle.MANIFEST}
    manifest = json.loads(contents[bundle.MANIFEST])
    assert manifest["class_name"] == "custom_disc"
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": len(contents[name]), "sha256": hashlib.sha256(contents[name]).hexdigest()}
    assert contents[bundle.LICENSE].startswith(b"MIT License")
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left
    read = bundle.read(path)
    assert (read.min_area, read.class_name) == (7, "custom_disc")
    assert read.thresholds.plain() == pytest.approx(model.thresholds.plain(), nan_ok=True)


def test_the_same_checkpoint_gives_the_same_bytes(packed, folder, tmp_path):
    again = tmp_path / packed[0].name
    assert cli("bundle", folder, "--out", again, "--min_area", 7).returncode == 0
    assert again.read_bytes() == packed[0].read_bytes()


def test_the_last_line_of_the_readme_runs(packed, tiny, folder, ort, tmp_path, monkeypatch):
    lines = content_of(packed[0])[bundle.README].decode().split("\n\n")[2].splitlines()
    assert len(lines) == 3
    words = shlex.split(lines[2])
    assert words[1:3] == ["onnx/ort.py", "my part.zip"]
    monkeypatch.chdir(packed[0].parent)
    out = tmp_path / "judged"
    arguments = [{"IMAGES": str(tiny[0] / "disc/test"), "judged": str(out)}.get(word, word) for word in words[2:]]
    assert ort.main(arguments) == 0
    model = load_checkpoint(folder, min_area=7)
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        result = model.predict_image(row["path"])
        assert float(row["score"]) == pytest.approx(result.score, abs=1e-3)
        assert int(row["decision"]) == result.decision
    assert json.loads((out / "predictions.json").read_text()) == model.identity()
    assert (out / "overlays").is_dir()


def test_the_thresholds_and_regions_of_the_bundle_count(packed, ort, tmp_path):
    whole = bundle.read(packed[0])
    other = bundle.Bundle(whole.graph, Thresholds(0.25, 0.125), 3, "part")
    bundle.write(tmp_path / "other.zip", other, {bundle.LICENSE: "l", bundle.README: "r"})
    judge = ort.GraphJudge(tmp_path / "other.zip")
    assert (judge.thresholds.image, judge.thresholds.pixel, judge.min_area) == (0.25, 0.125, 3)
    assert ort.GraphJudge(tmp_path / "other.zip", min_area=9).min_area == 9


def test_a_checkpoint_without_thresholds_can_be_packed(folder, ort, tmp_path):
    state = torch.load(checkpoint.find_best(folder)[0], weights_only=True)
    del state["thresholds"]
    torch.save(state, tmp_path / "ckpt_best_0.pth")
    done = cli("bundle", tmp_path / "ckpt_best_0.pth", "--out", tmp_path / "b.zip")
    assert done.returncode == 0, done.stdout
    assert ort.GraphJudge(tmp_path / "b.zip").thresholds is None


# ----------------------------------------------------------------------------------- what is refused


def small():
    """The bytes of a bundle whose graph is a few bytes, and its parts."""
    contents = {
        bundle.GRAPH: b"graph", bundle.THRESHOLDS: b'{"image": 0.5, "pixel": 0.5}', bundle.REGIONS: b'{"min_area": 1}',
        bundle.LICENSE: b"MIT", bundle.README: b"run",
    }  # fmt: skip
    return contents


def archive_of(contents, hashed=None, compression=zipfile.ZIP_STORED, manifest=None):
    """A zip of these files, with a manifest of `hashed` or of themselves."""
    files = {name: {"sha256": hashlib.sha256(value).hexdigest()} for name, value in (hashed or contents).items()}
    about = {"project": "GLASS", "kind": "bundle", "format": 1, "class_name": "part", "files": files}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(bundle.MANIFEST, json.dumps(about) if manifest is None else manifest)
        for name, value in contents.items():
            archive.writestr(name, value)
    return buffer.getvalue()


def linked():
    """A bundle whose license is a link to a file of the system."""
    buffer = io.BytesIO(archive_of({k: v for k, v in small().items() if k != bundle.LICENSE}, small()))
    with zipfile.ZipFile(buffer, "a") as archive:
        entry = zipfile.ZipInfo(bundle.LICENSE)
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


DEEP = b"[" * 100_000
REFUSED = {
    "empty": (b"", "not a zip file that can be read"),
    "text": (b"words", "not a zip file that can be read"),
    "cut": (archive_of(small())[:-30], "not a zip file that can be read"),
    "foreign": (archive_of({"a.txt": b"a"}, manifest="[]"), "it holds 'a.txt'"),
    "climbing": (archive_of({**small(), "../../evil": b"a"}), "it holds '../../evil'"),
    "absolute": (archive_of({**small(), "/etc/cron.d/evil": b"a"}), "it holds '/etc/cron.d/evil'"),
    "missing": (archive_of({k: v for k, v in small().items() if k != bundle.GRAPH}, small()), "missing or there twice"),
    "compressed": (archive_of(small(), compression=zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
    "changed": (archive_of({**small(), bundle.THRESHOLDS: b"{}"}, small()), "thresholds.json does not have the SHA-256"),
    "link": (linked(), "LICENSE does not have the SHA-256"),
    "large": (archive_of({**small(), bundle.README: b"a" * (bundle.OTHER_BYTES + 1)}), "too many for it"),
    "deep": (archive_of(small(), manifest=DEEP), "its manifest.json is not that of a bundle"),
    "other": (archive_of(small(), manifest='{"project": "other"}'), "its manifest.json is not that of a bundle"),
    "odd": (archive_of({**small(), bundle.THRESHOLDS: b"[1]"}), "its thresholds or regions cannot be read"),
    "unknown": (archive_of({**small(), bundle.THRESHOLDS: b'{"x": 1}'}), "its thresholds or regions cannot be read"),
    "words": (archive_of({**small(), bundle.THRESHOLDS: b'{"image": "a", "pixel": 1}'}), "thresholds or regions"),
    "area": (archive_of({**small(), bundle.REGIONS: b'{"min_area": true}'}), "min_area is True"),
    "outside": (archive_of({**small(), bundle.GRAPH: b"\x0a\x08location\x12\x0b/etc/passwd"}), "files outside itself"),
    "no graph": (archive_of(small()), "is not an ONNX graph that can be run"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_bundle_is_refused_in_one_line(name, tiny, ort, tmp_path, capsys):
    data, says = REFUSED[name]
    (tmp_path / "part.zip").write_bytes(data)
    assert ort.main([str(tmp_path / "part.zip"), str(tiny[0] / "disc/test"), "--json"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"Error: {tmp_path / 'part.zip'}")
    assert says in line
    assert [p.name for p in tmp_path.iterdir()] == ["part.zip"]


def test_a_checkpoint_is_no_bundle(folder, ort):
    with pytest.raises(WorkError, match=r"is not a bundle of GLASS: it holds no manifest\.json"):
        ort.GraphJudge(checkpoint.find_best(folder)[0])


@given(st.data())
def test_damage_is_found_or_harmless(tmp_path_factory, data):
    """With any byte changed, a bundle is refused or has the same content."""
    path, whole = tmp_path_factory.getbasetemp() / "damaged.zip", bytearray(archive_of(small()))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with contextlib.suppress(WorkError):  # any other error would fail
        read = bundle.read(path)
        assert (read.graph, read.thresholds.image, read.min_area) == (b"graph", 0.5, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("{f}", "--out", "{t}/part.onnx"), 2, "give a name that ends in .zip"),
        (("{f}",), 2, "Missing option '--out'"),
        (("{t}/none", "--out", "{t}/part.zip"), 2, "no checkpoint"),
        (("{f}", "--out", "{t}/file/part.zip"), 1, "cannot write"),
        (("{f}", "--out", "{t}/part.zip", "--min_area", "0"), 2, "0 is not in the range"),
    ],
)
def test_wrong_usage_of_the_command(folder, tmp_path, arguments, code, says):
    (tmp_path / "file").touch()
    done = cli("bundle", *(a.format(f=folder, t=tmp_path) for a in arguments))
    assert done.returncode == code
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert says in last
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_not_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        bundle.read(tmp_path)
    with pytest.raises(WorkError, match="files outside itself"):
        bundle.write(tmp_path / "a.zip", bundle.Bundle(b"location", None), {})
