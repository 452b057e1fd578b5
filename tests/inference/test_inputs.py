"""Lists of paths on standard input, in the encodings and with the quotes that other programs write."""

import io
import os
import sys
from pathlib import Path

import pytest

from inference.inputs import find_pictures, parse_path_list, paths_from_stdin
from utils import InputError

LISTED = ["/p/a b.png", "/p/ü 検.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_path_lists_in_every_encoding(encoding, end):
    assert parse_path_list((end.join(LISTED) + end).encode(encoding)) == LISTED
    assert parse_path_list(end.join(LISTED).encode(encoding)) == LISTED


def test_path_lists_with_quotes_and_line_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_path_list(b'a\nb.png\0c\r.png\0"q".png\0') == ["a\nb.png", "c\r.png", '"q".png']
    assert parse_path_list(b"\"a b.png\"\r\n'c d.png'\n\n \n") == ["a b.png", "c d.png"]
    assert parse_path_list(b"caf\xe9.png\n") == [os.fsdecode(b"caf\xe9.png")]
    assert parse_path_list(b"") == parse_path_list(b"\xff\xfe") == parse_path_list(b"\xef\xbb\xbf\r\n") == []
    for name in ('"both".png"', "it''s.png", 'q"q.png', " lead.png", "cr\r", "'x'"):
        Path(name).touch()
    assert parse_path_list(b"'x'\ncr\r\n lead.png\n  q\"q.png\t\n") == ["'x'", "cr\r", " lead.png", 'q"q.png']
    assert parse_path_list(b'"q\\"q.png"\n"q""q.png"\n') == ['q"q.png'] * 2


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa.png\r\n", "a.png\r\n".encode("utf-16"), b"a.png\0", b'"a.png"\n'])
def test_a_path_list_on_standard_input_finds_its_files(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [str(one.path) for one in find_pictures(["-"], paths_from_stdin())] == ["a.png"]


def test_a_closed_standard_input_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="which is closed"):
        paths_from_stdin()


def test_names_too_long_for_a_file_are_reported():
    with pytest.raises(InputError, match="no such file or folder"):
        find_pictures(["x" * 5000])
    assert len(find_pictures(["-"], ["x" * 5000])) == 1
