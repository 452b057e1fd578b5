"""Problems of a data set: each kind is found, by the quick check as by the full one, and the command line says so."""

import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import ROOT, make_mvtec
from PIL import Image
from tqdm import tqdm

from datasets import MVTecLayout, Sample, check
from datasets.check import Problem, check_pictures, drop_bad, full_check, quick_check
from datasets.check_report import COLUMNS
from datasets.headers import Header
from datasets.listing import list_images
from main import main

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture
def data(tmp_path):
    return make_mvtec(tmp_path)[0]


def samples(data, name="disc"):
    layout = MVTecLayout(data)
    return layout.train(name), layout.test(name)


def both(data, name="disc"):
    """The problems, the same from either check."""
    train, test = samples(data, name)
    quick, full = quick_check(name, train, test)[0], full_check(name, train, test)[0]
    assert quick == full
    return quick


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


# --------------------------------------------------------------------------------- kinds of problems


def test_a_good_set_has_no_problem_and_known_sizes(data):
    train, test = samples(data)
    Image.new("L", (40, 30)).save(train[0].path)
    problems, sizes = quick_check("disc", train, test)
    assert problems == []
    assert sizes == {s.path: (64, 64) for s in train + test} | {train[0].path: (40, 30)}
    problems, headers = full_check("disc", train, test)
    assert problems == []
    assert headers[train[0].path] == Header((40, 30), "1×8 bit")
    assert set(headers) == {s.path for s in train + test} | {s.mask for s in test if s.mask}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_cut_off_files_of_every_format(data, suffix, share):
    path = data / "disc" / "train" / "good" / f"x{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    assert both(data) == []
    cut(path, share)
    (problem,) = both(data)
    assert (problem.path, problem.kind) == (path, "unreadable")
    assert str(problem).startswith(f"{path}: cannot be read: ")
    assert str(problem).count(path.name) == 1


def test_unreadable_images_and_masks_are_found_and_dropped(data):
    train, test = samples(data)
    cut(train[1].path)
    train[2].path.write_bytes(b"")
    cut(test[0].mask)
    cut(test[3].path)
    problems = both(data)
    assert {p.path for p in problems} == {train[1].path, train[2].path, test[0].mask, test[3].path}
    assert {p.kind for p in problems} == {"unreadable"}
    assert f"{train[2].path}: cannot be read: the file is empty" in map(str, problems)
    assert drop_bad(train, problems) == [train[0], *train[3:]]
    assert drop_bad(test, problems) == [*test[1:3], *test[4:]]  # a bad mask takes its image along
    assert set(quick_check("disc", train, test)[1]) == {s.path for s in train + test} - {p.path for p in problems}


def test_only_the_unreadable_may_be_left_out(data):
    train, _ = samples(data)
    others = [
        Problem(train[0].path, "", kind) for kind in ("mask_size", "empty", "same_stem", "train_and_test", "layout")
    ]
    assert drop_bad(train, others) == train


def test_the_quick_check_decodes_only_what_is_suspect(data, monkeypatch):
    train, test = samples(data)
    cut(train[1].path)
    decoded = []
    read_rgb = check.read_rgb
    monkeypatch.setattr(check, "read_rgb", lambda path, *how: decoded.append(path) or read_rgb(path, *how))
    monkeypatch.setattr(check, "read_mask", lambda path: decoded.append(path))
    assert [p.path for p in quick_check("disc", train, test)[0]] == [train[1].path]
    assert decoded == [train[1].path]


def test_a_suspect_that_can_be_read_is_no_problem(data):
    train, _ = samples(data)
    path = train[0].path.with_suffix(".jpg")
    Image.open(train[0].path).save(path, quality=90)
    train[0].path.unlink()
    path.write_bytes(path.read_bytes() + b"what some cameras append")
    assert both(data) == []


def test_a_kind_of_pixels_that_cannot_be_read(data):
    """Its header is sound: only decoding it shows that a run would stop there."""
    path = data / "disc" / "train" / "good" / "x.tif"
    Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(path)
    assert list(map(str, both(data))) == [f"{path}: cannot be read: neither 8 nor 16 bits a channel"]
    Image.fromarray(np.full((64, 64), 500, np.int32)).save(path)
    assert both(data) == []


def test_damage_in_the_middle_is_found_by_the_full_check_alone(data):
    train, test = samples(data)
    raw = bytearray(train[0].path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 200] = b"\xff" * 200
    train[0].path.write_bytes(raw)
    assert quick_check("disc", train, test)[0] == []
    (problem,), headers = full_check("disc", train, test)
    assert (problem.path, problem.kind) == (train[0].path, "unreadable")
    assert train[0].path not in headers


def test_mask_of_another_size(data):
    _, test = samples(data)
    Image.new("L", (60, 64)).save(test[1].mask)
    assert both(data) == [
        Problem(test[1].mask, f"the mask has 64x60 pixels (HxW), its image {test[1].path} has 64x64", "mask_size")
    ]


@pytest.mark.parametrize(("image_turned", "mask_turned", "fits"), [(1, 0, True), (1, 1, True), (0, 1, False)])
def test_mask_sizes_count_upright(data, image_turned, mask_turned, fits):
    _, test = samples(data)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path, turned in ((test[0].path, image_turned), (test[0].mask, mask_turned)):
        Image.new("L", (60, 40)).save(path, exif=exif if turned else None)
    assert [p.kind for p in both(data)] == ([] if fits else ["mask_size"])
    assert quick_check("disc", *samples(data))[1][test[0].path] == ((40, 60) if image_turned else (60, 40))


def test_two_images_of_one_stem(data):
    train, test = samples(data)
    twin = train[0].path.with_suffix(".BMP")
    Image.open(train[0].path).save(twin)
    (problem,) = both(data)
    assert problem.kind == "same_stem"
    assert problem.path == min(twin, train[0].path)
    assert f"another image of the same name is beside it: {max(twin, train[0].path).name}" in str(problem)
    # in different folders there is nothing to confuse: train/good/000.png, test/good/000.png, test/blot/000.png
    twin.unlink()
    assert len({s.path.stem for s in train + test}) < len(train + test)
    assert both(data) == []


def test_two_masks_of_one_stem(data):
    _, test = samples(data)
    shutil.copy(test[0].mask, test[0].mask.with_suffix(".tif"))
    (test[0].mask.parent / "other.png").write_bytes(b"belongs to no image")
    (test[0].mask.parent / "other.bmp").write_bytes(b"belongs to no image")
    (problem,) = both(data)
    assert problem.kind == "same_stem"
    assert problem.path == test[0].mask
    assert "another mask of the same name is beside it: 000_mask.tif" in problem.what


def test_a_mask_beside_its_image_may_have_its_name(tmp_path):
    for suffix in (".jpg", ".png"):
        Image.new("L", (8, 8)).save(tmp_path / f"a{suffix}")
    assert quick_check("x", [], [Sample(tmp_path / "a.jpg", "blot", tmp_path / "a.png")])[0] == []


def test_an_image_in_train_and_in_test(data):
    train, test = samples(data)
    shutil.copy(train[2].path, test[4].path)
    shutil.copy(train[2].path, train[3].path)  # twice in train is no matter of this check
    assert both(data) == [
        Problem(
            test[4].path, f"the test image has the same bytes as the training image {train[2].path}", "train_and_test"
        )
    ]
    same = quick_check("disc", train, [*test[:3], train[0]])[0]
    assert same == [Problem(train[0].path, "is in train and in test", "train_and_test")]


def test_the_same_size_is_not_the_same_image(tmp_path):
    """Uncompressed pictures of one size that differ in one pixel somewhere."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (120, 130, 3)).astype(np.uint8)
    assert picture.nbytes > check.BLOCKS * check.BLOCK
    paths = []
    for i in range(60):
        picture[2 * i, i] ^= 1
        paths.append(tmp_path / f"{i}.bmp")
        Image.fromarray(picture).save(paths[-1])
    assert len({p.stat().st_size for p in paths}) == 1
    assert len({check._some_bytes(p) for p in paths}) < len(paths)  # so that the last look decides
    train, test = [Sample(p) for p in paths[:30]], [Sample(p) for p in paths[30:]]
    assert quick_check("x", train, test)[0] == []
    shutil.copy(paths[7], paths[41])
    assert [p.path for p in quick_check("x", train, test)[0]] == [paths[41]]


def test_an_empty_class():
    (problem,), sizes = quick_check("disc", [], [])
    assert (str(problem), problem.kind, sizes) == (
        "disc: the class has no training image and no test image", "empty", {},
    )  # fmt: skip
    assert full_check("disc", [], []) == ([problem], {})


def test_parts_of_a_class_are_enough(data):
    train, test = samples(data)
    assert quick_check("disc", train, [])[0] == []
    assert quick_check("disc", [], test)[0] == []


def test_textures(tmp_path):
    textures = list_images(make_mvtec(tmp_path)[1], recursive=True)
    assert check_pictures(textures) == check_pictures(textures, full="textures") == []
    cut(textures[2])
    for full in (None, "textures"):
        (problem,) = check_pictures(textures, full)
        assert (problem.path, problem.kind) == (textures[2], "unreadable")


def test_many_files_in_order(tmp_path):
    """More files than are looked at together; every result belongs to its own file."""
    paths = []
    for i in range(3 * check.AT_ONCE + 5):
        paths.append(tmp_path / f"{i:03d}.png")
        Image.new("L", (i + 1, 4)).save(paths[-1])
    sizes = quick_check("x", [Sample(p) for p in paths], [])[1]
    assert list(sizes) == paths
    assert [width for width, _ in sizes.values()] == list(range(1, len(paths) + 1))
    assert [h.size for h in full_check("x", [Sample(p) for p in paths], [])[1].values()] == list(sizes.values())


@pytest.mark.parametrize("where", ["work", "bar"])
def test_an_interruption_does_not_wait_for_the_rest(tmp_path, monkeypatch, where):
    paths = [tmp_path / f"{i}.png" for i in range(200)]
    seen = []

    def look(path, *_):
        seen.append(path)
        if where == "work" and len(seen) == 3:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return Header((1, 1), "")

    def update(_bar, _count):
        if where == "bar":
            raise KeyboardInterrupt

    monkeypatch.setattr(check, "read_header", look)
    monkeypatch.setattr(check, "read_rgb", lambda path, *_: Image.new("L", (1, 1)))
    monkeypatch.setattr(tqdm, "update", update)
    with pytest.raises(KeyboardInterrupt):
        full_check("x", [Sample(p) for p in paths], [])
    assert len(seen) < 100


# ------------------------------------------------------------------------------------- command line


def run(*arguments):
    """Exit code and standard output; the bars go elsewhere."""
    done = CliRunner().invoke(main, ["check", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def cells(output, name):
    (line,) = (line for line in output.splitlines() if line.startswith(f"{name} "))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_table_of_a_good_set(tiny):
    code, output = run("mvtec", *tiny)
    assert code == 0
    assert cells(output, "class") == list(COLUMNS)
    for name in ("disc", "plate"):
        assert cells(output, name) == [name, "6", "3", "3", "64x64", "3×8 bit", "3/3", "0"]
    assert "textures: 4 files, problems: 0" in output
    assert "\nproblems: 0\n" in output
    assert "file/s" not in output
    assert "plate" not in run("mvtec", tiny[0], "-d", "disc")[1]
    assert "textures" not in run("mvtec", tiny[0], "builtin")[1]


def test_table_and_problems_of_a_bad_set(tmp_path):
    data, textures = make_mvtec(tmp_path, classes=("disc", "plate"))
    train, test = samples(data)
    Image.new("L", (30, 50)).save(train[0].path)
    Image.new("RGB", (90, 40)).save(train[1].path)
    cut(train[2].path)
    test[1].mask.unlink()
    Image.new("L", (9, 9)).save(test[2].mask)
    texture = list_images(textures, recursive=True)[0]
    cut(texture)
    code, output = run("mvtec", data, textures)
    assert code == 1
    assert cells(output, "disc") == ["disc", "6", "3", "3", "40x30–64x90", "1×8 bit, 3×8 bit", "2/3", "2"]
    assert cells(output, "plate")[-1] == "0"
    assert "textures: 4 files, problems: 1" in output
    listed = output[output.index("\nproblems: 3\n") :].splitlines()[2:]
    assert [line.split(": ")[0] for line in listed] == [str(train[2].path), str(test[2].mask), str(texture)]


def test_classes_that_lack_a_part(tmp_path):
    data, _ = make_mvtec(tmp_path, classes=("disc", "plate", "empty", "half"))
    shutil.rmtree(data / "disc" / "train")  # as MAD-man
    shutil.rmtree(data / "plate" / "test")
    for path in list_images(data / "half" / "train" / "good"):
        path.unlink()
    for path in list_images(data / "empty", recursive=True):
        path.unlink()
    code, output = run("mvtec", data, "-d", "disc", "-d", "plate")
    assert code == 0
    assert cells(output, "disc")[1:4] == ["0", "3", "3"]
    assert cells(output, "plate")[1:] == ["6", "0", "0", "64x64", "3×8 bit", "0/0", "0"]
    code, output = run("mvtec", data, "-d", "half")
    assert code == 1
    assert f"{data / 'half'}: class half: no good training image in {data / 'half' / 'train' / 'good'}\n" in output
    code, output = run("mvtec", data, "-d", "empty")
    assert code == 1
    assert cells(output, "empty")[1:7] == ["0", "0", "0", "-", "-", "0/0"]
    assert "empty: the class has no training image and no test image\n" in output


def test_a_folder_of_good_images_alone(tmp_path):
    data, _ = make_mvtec(tmp_path)
    for path in list_images(data / "disc" / "train" / "good"):
        path.rename(data / "disc" / path.name)
    for part in ("train", "test", "ground_truth"):
        shutil.rmtree(data / "disc" / part)
    code, output = run("folder", data)
    assert code == 0
    assert cells(output, "disc")[1:] == ["6", "0", "0", "64x64", "3×8 bit", "0/0", "0"]


def test_a_file_that_a_table_names_and_that_is_not_there(tmp_path):
    (tmp_path / "split_csv").mkdir()
    rows = ["object,split,label,image,mask", "candle,train,normal,a.png,", "candle,test,normal,b.png,"]
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(rows))
    code, output = run("visa", tmp_path)
    assert code == 1
    for name in "ab":
        assert f"1cls.csv names {tmp_path / name}.png, which is not there" in output
    assert "\nproblems: 2\n" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "{data}"), "unknown data set 'nothing'; possible: .*mvtec, visa"),
        (("mvtec", "{data}/gone"), "DATA_PATH .*gone: no such folder"),
        (("mvtec", "{data}", "{data}/gone"), "AUG_PATH .*gone: no such folder"),
        (("mvtec", "{data}", "-d", "disk"), "unknown class 'disk'; .* has disc"),
        (("mvtec",), "Missing argument 'DATA_PATH'"),
        (("mvtec", "{data}", "--nothing"), "No such option.*--nothing"),
    ],
)
def test_wrong_input_is_one_line(data, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["check", *(a.format(data=data) for a in arguments)])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert re.match(f"Error: {message}", printed.err)


def test_as_a_process(data):
    """The real thing once, with a bad file whose name is no text."""
    bad = os.fsencode(data / "disc" / "train" / "good") + b"/\xff.png"
    with open(bad, "wb") as file:
        file.write(b"no image")
    command = [sys.executable, "main.py", "check", "mvtec", str(data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].endswith(
        ".png: cannot be read: not an image of a supported format, or cut off within its header"
    )
    assert "Traceback" not in done.stderr
    assert "disc: 100%" in done.stderr


def test_what_the_crop_leaves_out_is_said(tmp_path):
    (tmp_path / "data" / "long").mkdir(parents=True)
    for i in range(3):
        Image.new("L", (100, 300), i).save(tmp_path / "data" / "long" / f"{i}.png")
    code, output = run("folder", tmp_path / "data")
    assert code == 0
    assert "problems: 0" in output
    assert "note: long: unless told otherwise the crop of the centre leaves out 67 % of a picture on average" in output
