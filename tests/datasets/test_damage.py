"""What is wrong with a data set: found before the training, reported in one line, left out where requested."""

import gc
import shutil
import weakref

import cv2
import numpy as np
import pytest
from helpers import DATASET, cli, last_line, make_mvtec, shape_of_part, spoil
from PIL import Image
from test_runs import make_defects, run

from datasets import FolderLayout, ImageSettings, MVTecLayout, cache, textures
from datasets.defects import Defects, list_defects, of_class, refuse_test_images
from datasets.masks import read_mask
from training import reading
from utils import InputError


@pytest.fixture
def two(tmp_path):
    """Two classes, PNG textures, known defects, foreground masks of the second class."""
    data, patterns = make_mvtec(tmp_path, ("cup", "disc"))
    for path in patterns.rglob("*.jpg"):
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    for sample in MVTecLayout(data).train("disc"):
        place = data / "fg_mask" / "disc" / sample.path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), np.random.default_rng(0).integers(1, 256, (64, 64)).astype(np.uint8))
    return data, patterns, make_defects(tmp_path / "known")


@pytest.mark.parametrize(
    ("what", "place", "listed"),
    [
        ("data", "disc/train/good/002.png", "folder_disc"),
        ("data", "disc/test/blot/001.png", "folder_disc"),
        ("data", "disc/ground_truth/blot/001_mask.png", "folder_disc"),
        ("textures", "kind1/3.png", "textures"),
        ("known", "scratch/1.png", "defects"),
        ("data", "fg_mask/disc/003.png", None),
    ],
)
def test_damage_within_a_file_stops_before_the_first_class_trains(two, tmp_path, what, place, listed):
    data, patterns, known = two
    broken = {"data": data, "textures": patterns, "known": known}[what] / place
    if place.startswith("disc/ground_truth"):  # one large enough to have a middle
        noise = np.random.default_rng(1).integers(0, 256, (64, 64)).astype(np.uint8)
        cv2.imwrite(str(broken), noise)
    spoil(broken)
    flags = ("--defects", known, "--fg", 1)
    done = run(data, patterns, tmp_path / "r", *flags)
    assert done.exit_code == 1, done.output
    assert str(broken) in last_line(done)
    assert ("--skip_bad" in last_line(done)) == (listed is not None)
    assert not list((tmp_path / "r").rglob("*.pth"))
    done = run(data, patterns, tmp_path / "r", *flags, "--skip_bad")
    if listed is None:  # the training needs a mask of each image
        assert done.exit_code == 1
        return
    assert done.exit_code == 0, done.output
    assert str(broken) in (tmp_path / "r" / "skipped" / f"{listed}.txt").read_text()
    # mended: an earlier run's list is not left behind
    broken.unlink()
    if what == "data":
        (tmp_path / "r" / "models" / "backbone_0" / "folder_disc").rename(tmp_path / "away")
    else:
        shutil.rmtree(tmp_path / "r" / "models")
    done = run(data, patterns, tmp_path / "r", *flags)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "r" / "skipped" / f"{listed}.txt").exists()


def test_a_damaged_test_image_is_left_out_of_a_test_too(tmp_path):
    data, patterns = make_mvtec(tmp_path)
    assert run(data, patterns, tmp_path / "r").exit_code == 0
    broken = spoil(data / "disc/test/good/001.png")
    main = ("--test", "test", "--models_path", tmp_path / "r/models")
    done = run(data, patterns, tmp_path / "t", main=main)
    assert done.exit_code == 1
    assert str(broken) in last_line(done)
    done = run(data, patterns, tmp_path / "t", "--skip_bad", main=main)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "t/eval/folder_disc").iterdir())) == 5


@pytest.mark.parametrize(("shape", "value", "says"), [((40, 64), 255, "another shape"), ((64, 64), 0, "is empty")])
def test_foreground_masks_that_cannot_be_right(two, tmp_path, shape, value, says):
    data, patterns, _ = two
    mask = data / "fg_mask" / "disc" / "004.png"
    cv2.imwrite(str(mask), np.full(shape, value, np.uint8))
    done = run(data, patterns, tmp_path / "r", "--fg", 1)
    assert done.exit_code == 1
    assert str(mask) in last_line(done)
    assert says in last_line(done)
    assert not list((tmp_path / "r").rglob("*.pth"))
    done = cli("check", "folder", data)
    assert done.returncode == 1
    assert f"{mask}: the foreground mask" in done.stdout
    cv2.imwrite(str(mask), np.full((128, 128), 255, np.uint8))  # another scale is no other shape
    assert cli("check", "folder", data).returncode == 0


# -------------------------------------------------------------------------------------------- masks


def test_palette_masks_count_by_their_colours(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 5:20] = 1
    image = Image.fromarray(mask * 255).convert("RGB")
    image.quantize(2).save(tmp_path / "a.png")  # its first colour is white
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, 0] == 1
    assert np.array_equal(read_mask(tmp_path / "a.png"), mask)
    coloured = Image.fromarray(mask).convert("P")
    coloured.putpalette([40, 90, 10, 200, 0, 0])  # no black in it: the index tells
    coloured.save(tmp_path / "b.png")
    assert np.array_equal(read_mask(tmp_path / "b.png"), mask)


def test_check_notes_what_is_strange_about_masks(tmp_path):
    data, _ = make_mvtec(tmp_path)
    folder = data / "disc/ground_truth/blot"
    shutil.copy(folder / "000_mask.png", folder / "999_mask.png")
    cv2.imwrite(str(folder / "001_mask.png"), np.zeros((64, 64), np.uint8))
    Image.open(folder / "002_mask.png").save(folder / "002_mask.jpg")
    (folder / "002_mask.png").unlink()
    done = cli("check", "mvtec", data)
    assert done.returncode == 0, done.stdout  # strange, but it may be meant
    notes = [line for line in done.stdout.splitlines() if line.startswith("note: ")]
    assert len(notes) == 3
    assert "999_mask.png: a mask that belongs to no image" in notes[0]
    assert "002_mask.jpg: a lossy mask" in notes[1]
    assert "001_mask.png: marks no pixel" in notes[2]


# ------------------------------------------------------------------------------------------ folders


def test_the_folder_of_a_class_is_no_data_path(tmp_path):
    data, patterns = make_mvtec(tmp_path)
    for name in ("mvtec", "folder"):
        done = run(data / "disc", patterns, tmp_path / "r", name=name)
        assert done.exit_code == 2
        assert f"is the folder of one class: give {data}, with -d disc" in str(done.exception) + done.output


def test_folders_that_are_not_classes_are_reported(tmp_path):
    data, patterns = make_mvtec(tmp_path)
    (data / "lid").mkdir()
    with pytest.raises(InputError, match=r"class lid: .*lid holds no file.*-d"):
        MVTecLayout(data).choose([])
    assert MVTecLayout(data).choose(["disc"]) == ["disc"]
    (data / "lid" / "Good").mkdir()
    shutil.copy(data / "disc/train/good/000.png", data / "lid/Good/0.png")
    done = run(data, patterns, tmp_path / "r", name="mvtec", net=("--meta_epochs", 1))
    assert done.exit_code == 0, done.output
    assert f"{data / 'lid'} holds images, but is not a class: a class is a folder with train/good" in done.output
    with pytest.raises(InputError, match="is a file, not a folder"):
        MVTecLayout(data / "lid/Good/0.png")
    shutil.rmtree(data / "disc")
    (data / "lid/Good").rename(data / "lid/pieces")
    with pytest.raises(InputError, match=r"no class folder found in it; .*good or train/good \(or ok, normal\)"):
        FolderLayout(data).choose([])


def test_images_beside_folders_of_images_are_no_plain_class(tmp_path):
    data, _ = make_mvtec(tmp_path)
    (tmp_path / "own").mkdir()
    own = (data / "disc/train/good").rename(tmp_path / "own" / "disc")
    (data / "disc/test/blot").rename(own / "blot")
    with pytest.raises(InputError, match=r"class disc: images lie in .* itself and in blot/ there; put the good ones"):
        FolderLayout(own.parent).train("disc")


# ------------------------------------------------------------------------------------------- memory


def test_one_class_is_kept_at_a_time_and_textures_are_made_once(tmp_path, monkeypatch):
    data, _ = make_mvtec(tmp_path, ("cup", "disc"))
    made, alive, most = [], [], []
    draw, allocate = textures.BuiltinTextures.read, cache.ImageCache.allocate

    def read(self, index):
        made.append(index)
        return draw(self, index)

    def count(self):
        allocate(self)
        if self._memory is not None:
            alive.append(weakref.ref(self._memory))
        gc.collect()
        most.append(sum(one() is not None for one in alive))

    monkeypatch.setattr(textures, "BUILTIN_COUNT", 10)
    monkeypatch.setattr(textures.BuiltinTextures, "read", read)
    monkeypatch.setattr(cache.ImageCache, "allocate", count)
    monkeypatch.setattr(reading, "WORTH_READING", 0)
    done = run(data, "builtin", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert "10 of 10 textures" in done.output
    assert sorted(made) == list(range(10))
    assert most == [1, 2, 2]  # the textures, and the images of one class


def test_training_goes_on_with_the_same_textures_alone(tmp_path):
    data, patterns = make_mvtec(tmp_path)
    assert run(data, patterns, tmp_path / "r").exit_code == 0
    moved = patterns.rename(tmp_path / "elsewhere")
    done = run(data, moved, tmp_path / "r", net=("--meta_epochs", 3))
    assert done.exit_code == 0, done.output
    next(moved.rglob("*.jpg")).unlink()
    done = run(data, moved, tmp_path / "r", net=("--meta_epochs", 4))
    assert done.exit_code == 2
    assert "textures" in last_line(done)


# ---------------------------------------------------------------------------------- known defects


def test_defects_of_a_class_lie_in_its_folder(tmp_path):
    make_defects(tmp_path / "cup")
    make_defects(tmp_path / "all", masks=False)
    pairs = list_defects(tmp_path)
    assert len(pairs) == 4
    assert {p.relative_to(tmp_path).parts[0] for p, _ in of_class(pairs, tmp_path, "cup", ["cup", "disc"])} == {"cup"}
    assert {p.relative_to(tmp_path).parts[0] for p, _ in of_class(pairs, tmp_path, "disc", ["cup", "disc"])} == {"all"}


def test_a_patch_keeps_its_size_in_relation_to_the_images(tmp_path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "patch.png"), rng.integers(0, 256, (40, 20, 3)).astype(np.uint8))
    settings = ImageSettings(resize=64, imagesize=64)
    defects = Defects([(tmp_path / "patch.png", None)], settings, image_size=(256, 256))
    areas = [defects.draw(np.random.default_rng(seed))[1].sum() for seed in range(40)]
    # an ellipse of 10×5 pixels at a scale of 0.7 to 1.3, where the border cuts none of it
    assert np.pi / 4 * 50 * 0.49 * 0.7 < np.median(areas) < np.pi / 4 * 50 * 1.69
    assert max(areas) < np.pi / 4 * 50 * 1.69 * 1.5


def piece(rng):
    """A photograph of one piece of many: the same part, its own grain."""
    image, _ = shape_of_part(rng, 300, True)
    grain = cv2.resize(rng.normal(0, 12, (75, 75)), (300, 300), interpolation=cv2.INTER_CUBIC)
    return (cv2.GaussianBlur(image, (5, 5), 0) + grain[..., None]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("how", ["jpeg", "part"])
def test_parts_and_copies_of_test_images_are_no_known_defects(tmp_path, how):
    rng = np.random.default_rng(3)
    data, _ = make_mvtec(tmp_path, size=64)
    for path in (data / "disc/test/blot").iterdir():
        cv2.imwrite(str(path), piece(rng))
    test = MVTecLayout(data).test("disc")
    image = Image.open(next(s.path for s in test if s.is_anomaly))
    (tmp_path / "known").mkdir()
    if how == "jpeg":
        image.save(tmp_path / "known" / "a.jpg", quality=90)
    else:
        image.crop((100, 90, 190, 200)).save(tmp_path / "known" / "a.png")
    with pytest.raises(InputError, match=r"a\.(jpg|png) is (a part of )?the test image .*; remove it"):
        refuse_test_images(list_defects(tmp_path / "known"), test)
    other = piece(rng)
    shutil.rmtree(tmp_path / "known")
    (tmp_path / "known").mkdir()
    cv2.imwrite(str(tmp_path / "known" / "b.png"), other)  # another part of the same kind may be used
    cv2.imwrite(str(tmp_path / "known" / "c.png"), other[90:200, 100:190])
    refuse_test_images(list_defects(tmp_path / "known"), test)


def test_masks_of_defects_must_fit(tmp_path):
    data, patterns = make_mvtec(tmp_path)
    known = make_defects(tmp_path / "known")
    cv2.imwrite(str(known / "scratch" / "alone_mask.png"), np.full((64, 64), 255, np.uint8))
    cv2.imwrite(str(known / "scratch" / "1_mask.png"), np.full((32, 64), 255, np.uint8))
    done = run(data, patterns, tmp_path / "r", "--defects", known)
    assert done.exit_code == 1
    assert "1 masks belong to no image" in done.output
    assert "1_mask.png: the mask has 32x64 pixels" in last_line(done)


# ----------------------------------------------------------------------------------------- preview


def test_preview_leaves_out_what_cannot_be_read_and_refuses_test_images(tmp_path):
    data, patterns = make_mvtec(tmp_path)
    broken = data / "disc/train/good/002.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200])
    arguments = ["--out", tmp_path / "p", *DATASET[1:], "mvtec", data, patterns]
    done = cli("preview", *arguments)
    assert done.returncode == 1
    assert str(broken) in done.stdout
    assert not (tmp_path / "p").exists()
    done = cli("preview", "--skip_bad", *arguments)
    assert done.returncode == 0, done.stdout
    broken.write_bytes(whole)
    known = tmp_path / "known"
    known.mkdir()
    shutil.copy(data / "disc/test/blot/001.png", known / "a.png")
    done = cli("preview", "--defects", known, *arguments)
    assert done.returncode == 2
    assert "is the test image" in done.stdout
