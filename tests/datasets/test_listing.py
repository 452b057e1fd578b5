"""Finding image files in folders."""

from datasets.listing import list_folders, list_images


def test_listing_takes_every_suffix_and_no_hidden_file(tmp_path):
    wanted = ["a.png", "b.PNG", "c.jpg", "d.JPEG", "e.bmp", "f.tif", "g.TIFF", "h.webp"]
    unwanted = ["Thumbs.db", ".DS_Store", "._a.png", ".hidden.jpg", "note.txt", "png", "i.gif"]
    for name in wanted + unwanted:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == wanted
    assert list_images(tmp_path / "nothing") == []


def test_recursive_listing_leaves_out_hidden_folders_below_alone(tmp_path):
    top = tmp_path / ".cache" / "textures"  # hidden above the folder: the user chose it
    for name in ("x/y/b.png", "a.png", ".thumbs/c.png", "x/.git/d/e.png", "x/._f.png"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    assert [p.relative_to(top).as_posix() for p in list_images(top, recursive=True)] == ["a.png", "x/y/b.png"]
    assert [p.name for p in list_folders(top)] == ["x"]
