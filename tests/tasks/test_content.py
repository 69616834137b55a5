from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from permissions import as_nobody, superuser
from PIL import Image

from harness.api.errors import UsageError
from harness.io.remembered import cache_folder
from tasks.files import content
from tasks.files.images import incomplete, undecodable


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DFQBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_SETTLED", -3600.0)  # files that a test has just made count as settled
    return tmp_path / "cache" / "contents"


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    for i, name in enumerate(("a.png", "b.png", "c.bmp", "d.jpg")):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that are read."""
    seen: list[str] = []
    real = content._read
    monkeypatch.setattr(content, "_read", lambda path, check: (seen.append(path.name), real(path, check))[1])
    return seen


def test_hashes_are_those_of_the_bytes(folder):
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files_of(folder)]
    for check in (None, undecodable, None, incomplete):
        assert content.hash_files(folder, files_of(folder), check) == expected


def test_untouched_files_are_read_once(folder, reads):
    first = content.hash_files(folder, files_of(folder), undecodable)
    assert sorted(reads) == ["a.png", "b.png", "c.bmp", "d.jpg"]
    reads.clear()
    assert content.hash_files(folder, files_of(folder), undecodable) == first
    assert content.hash_files(folder, files_of(folder)) == first
    assert not reads
    assert content.hash_files(folder, files_of(folder), incomplete) == first  # another check: looked at again
    assert len(reads) == 4


def _edit_keeping_size_and_mtime(path: Path) -> None:
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _swap(path: Path) -> None:
    other = path.with_name("b.png")
    path.rename(path.with_name("third"))
    other.rename(path)
    path.with_name("third").rename(other)


@pytest.mark.parametrize("change", [_edit_keeping_size_and_mtime, _swap, lambda p: p.write_bytes(b"new")])
def test_changed_files_are_read_again(folder, change):
    before = dict(zip(files_of(folder), content.hash_files(folder, files_of(folder)), strict=True))
    change(folder / "a.png")
    after = dict(zip(files_of(folder), content.hash_files(folder, files_of(folder)), strict=True))
    assert after[folder / "a.png"] != before[folder / "a.png"]
    assert after[folder / "d.jpg"] == before[folder / "d.jpg"]


def test_a_file_that_was_changed_just_now_is_not_remembered(folder, reads, monkeypatch):
    """It may change again within the same tick of the file system's clock."""
    monkeypatch.setattr(content, "_SETTLED", 3600.0)
    for _ in range(2):
        content.hash_files(folder, files_of(folder))
    assert len(reads) == 8


def _flip(raw: bytes) -> bytes:
    place = raw.index(b'"a.png":[') + 60
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


@pytest.mark.parametrize(
    "damage", [_flip, lambda raw: raw[:50], lambda raw: b"", lambda raw: b"[]", lambda raw: raw.partition(b"\n")[2]]
)
def test_damaged_memory_is_ignored(folder, cache, reads, damage):
    first = content.hash_files(folder, files_of(folder))
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    reads.clear()
    assert content.hash_files(folder, files_of(folder)) == first
    assert len(reads) == 4


@pytest.mark.parametrize("kind", ["fifo", "file", "missing home"])
def test_memory_that_cannot_be_kept_is_no_failure(folder, tmp_path, monkeypatch, kind):
    if kind == "fifo":  # as the memory itself
        content.hash_files(folder, files_of(folder))
        (file,) = (tmp_path / "cache" / "contents").iterdir()
        file.unlink()
        os.mkfifo(file)
    elif kind == "file":
        (tmp_path / "cache").write_text("in the way")
    else:
        monkeypatch.delenv("DFQBENCH_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError()))
    for _ in range(2):
        assert len(content.hash_files(folder, files_of(folder))) == 4


def test_memory_lies_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("DFQBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert cache_folder() == Path("/some/where/dfqbench")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its specification says to ignore
    assert cache_folder() == Path.home() / ".cache" / "dfqbench"


def test_two_sets_of_one_folder_are_both_remembered_and_files_that_went_forgotten(folder, cache, reads):
    files = files_of(folder)
    for part in (files[:2], files[2:], files[:2], files[2:]):
        content.hash_files(folder, part)
    assert len(reads) == 4
    (folder / "a.png").unlink()
    (folder / "e.png").write_bytes(b"new")
    content.hash_files(folder, files_of(folder))
    (file,) = cache.iterdir()
    assert set(json.loads(file.read_bytes().partition(b"\n")[2])["files"]) == {"b.png", "c.bmp", "d.jpg", "e.png"}


def test_many_at_once_leave_a_whole_memory(folder, cache, reads):
    def work() -> None:
        for _ in range(10):
            content.hash_files(folder, files_of(folder))
            for file in cache.glob("*.json"):
                file.unlink(missing_ok=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content.hash_files(folder, files_of(folder))
    reads.clear()
    content.hash_files(folder, files_of(folder))
    assert not reads
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_links_to_files_are_files(folder, tmp_path):
    os.link(folder / "a.png", tmp_path / "hard.png")
    (folder / "e.png").symlink_to(tmp_path / "hard.png")
    hashes = content.hash_files(folder, files_of(folder), undecodable)
    assert hashes[0] == hashes[4]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as own, tempfile.TemporaryDirectory() as short:
        own.bind(f"{short}/s")
        Path(f"{short}/s").rename(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.symlink_to("/nowhere/x"), r"a symbolic link to /nowhere/x, which does not exist"),
        (lambda p: p.symlink_to(p), "Too many levels of symbolic links"),
        (os.mkfifo, "a FIFO"),
        (lambda p: p.symlink_to("/dev/zero"), "a device"),
        (lambda p: p.mkdir(), "a folder"),
        (_socket, "a socket"),
        (lambda p: None, "No such file"),
    ],
)
def test_k3_k5_what_is_not_a_regular_file_is_named(folder, make, message):
    """FAULTS K3 "ln -s /nowhere val/c000/x.png" and K5 "a FIFO, a device or a link to one": a sentence, at once."""
    make(folder / "x.png")
    with pytest.raises(UsageError, match=rf"^{folder}/x\.png cannot be used: .*{message}"):
        content.hash_files(folder, [*files_of(folder), folder / "x.png"][-1:])


@superuser
def test_k5_an_unreadable_file_is_named(tmp_path):
    """FAULTS K5 "folders that may not be read"."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "x.png").write_bytes(b"secret")
        (folder / "x.png").chmod(0)
        with as_nobody(), pytest.raises(UsageError, match=r"x\.png cannot be used: Permission denied$"):
            content.hash_files(folder, [folder / "x.png"])


def test_how_many_more_are_bad_is_said_once(folder, reads):
    for name in ("b.png", "c.bmp", "d.jpg"):
        (folder / name).write_bytes(b"")
    for _ in range(2):  # what is bad is not remembered
        with pytest.raises(UsageError, match=r"b\.png cannot be used: it is empty; 2 more in .*data cannot either$"):
            content.hash_files(folder, files_of(folder), undecodable)
    assert sorted(reads) == ["a.png", "b.png", "b.png", "c.bmp", "c.bmp", "d.jpg", "d.jpg"]


def test_a_file_that_changes_while_it_is_read_is_named(folder):
    def growing(file) -> str:
        with (folder / "a.png").open("ab") as more:
            more.write(b"x")
        return ""

    with pytest.raises(UsageError, match=r"a\.png cannot be used: it changes while it is read"):
        content.hash_files(folder, [folder / "a.png"], growing)


def test_identity_follows_names_order_and_content(folder):
    files = files_of(folder)
    hashes = content.hash_files(folder, files)
    base = content.identity(folder, files, hashes, ["class"])
    assert base == content.identity(folder, files, hashes, ["class"])
    assert len(base) == 16
    others = [
        content.identity(folder, files, hashes[::-1], ["class"]),
        content.identity(folder, files[::-1], hashes[::-1], ["class"]),
        content.identity(folder, files[:3], hashes[:3], ["class"]),
        content.identity(folder, files, hashes, ["other"]),
        content.identity(folder, files, hashes),
    ]
    assert len({base, *others}) == 6


def test_names_that_are_no_text_are_taken(folder, reads):
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png"))
    odd.write_bytes((folder / "a.png").read_bytes())
    for _ in range(2):
        hashes = content.hash_files(folder, [odd])
    assert len(reads) == 1
    assert content.identity(folder, [odd], hashes) != content.identity(folder, [folder / "a.png"], hashes)


def test_reading_much_is_announced(folder, monkeypatch, capsys):
    content.hash_files(folder, files_of(folder)[:1])
    assert not capsys.readouterr().err
    monkeypatch.setattr(content, "_LONG", 1)
    content.hash_files(folder, files_of(folder))
    assert "Reading 3 files (0.0 GiB)" in capsys.readouterr().err
    content.hash_files(folder, files_of(folder))
    assert not capsys.readouterr().err
