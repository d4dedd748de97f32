import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from power_cut import recorded

from kgpt import files
from kgpt.files import (
    DamagedError,
    check_free_space,
    check_manifest,
    folder_written_whole,
    free_bytes,
    make_folder,
    write_manifest,
    written_whole,
)

OLD, NEW = b"old" * 100, b"new" * 1000
# printf 'new%.0s' {1..1000} | sha256sum
NEW_SHA256 = "a8f5ddf0621a169a4c9119a870f381312b76e9b27d09e2790479b2ac8f87b1c3"


no_windows = pytest.mark.skipif(os.name == "nt", reason="asks for what Windows has not")


def write(path, content=NEW):
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)


def write_folder(path):
    with folder_written_whole(path) as unfinished:
        (unfinished / "a").write_bytes(NEW)
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "b").write_bytes(OLD)


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# === A power cut ===


def test_the_recorder_finds_a_file_that_is_not_synced(tmp_path):
    live = tmp_path / "live"
    live.mkdir()
    (live / "file").write_bytes(OLD)

    with recorded(live) as cuts:
        (live / "unfinished").write_bytes(NEW)
        os.replace(live / "unfinished", live / "file")

    found = {(disk / "file").read_bytes() for disk in cuts.disks(tmp_path / "disk")}
    assert found == {OLD, b""}


def test_the_recorder_finds_a_name_that_is_not_synced(tmp_path):
    live = tmp_path / "live"
    live.mkdir()

    with recorded(live) as cuts, open(live / "file", "wb") as file:
        file.write(NEW)
        file.flush()
        os.fsync(file.fileno())

    assert {tuple(names_in(d)) for d in cuts.disks(tmp_path / "disk")} == {(), ("file",)}


@pytest.mark.parametrize("old", [OLD, None])
def test_a_power_cut_leaves_the_earlier_file_or_the_new_one(tmp_path, old):
    live = tmp_path / "live"
    live.mkdir()
    if old is not None:
        (live / "file.keras").write_bytes(old)

    with recorded(live) as cuts:
        write(live / "file.keras")

    found = []
    for disk in cuts.disks(tmp_path / "disk"):
        path = disk / "file.keras"
        found.append(path.read_bytes() if path.exists() else None)
    assert set(found) == {old, NEW}
    assert found[-1] == NEW


def test_a_power_cut_leaves_a_whole_folder_or_none(tmp_path):
    live = tmp_path / "live"
    live.mkdir()

    with recorded(live) as cuts:
        write_folder(live / "model")

    whole = []
    for disk in cuts.disks(tmp_path / "disk"):
        whole.append((disk / "model").exists())
        if whole[-1]:
            assert names_in(disk / "model") == ["a", "inner", "inner/b", files.MANIFEST]
            check_manifest(disk / "model")
    assert not whole[0]
    assert whole[-1]


def test_folders_that_are_made_are_there_after_a_power_cut(tmp_path):
    live = tmp_path / "live"
    live.mkdir()

    with recorded(live) as cuts:
        make_folder(live / "a" / "b")

    last = [names_in(disk) for disk in cuts.disks(tmp_path / "disk")][-1]
    assert last == ["a", "a/b"]
    assert [call[0] for call in cuts.calls].count("fsync") == 2


# === Errors ===


def test_an_error_keeps_the_earlier_file_and_leaves_nothing(tmp_path):
    write(tmp_path / "file", OLD)

    for writer in (written_whole, folder_written_whole):
        with contextlib.suppress(RuntimeError), writer(tmp_path / writer.__name__):
            raise RuntimeError("on fire")
    with contextlib.suppress(RuntimeError), written_whole(tmp_path / "file") as unfinished:
        unfinished.write_bytes(NEW)
        raise RuntimeError("on fire")

    assert names_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == OLD


def is_one_line(error, *parts):
    text = str(error.value)
    return "\n" not in text and all(part in text for part in parts)


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.ENOSPC, OSError, "the disk is full. Free some space"),
        (errno.EDQUOT, OSError, "quota"),
        (errno.EFBIG, OSError, "ulimit"),
        (errno.EROFS, OSError, "read-only"),
        (errno.EACCES, PermissionError, "there is no permission"),
    ],
)
@pytest.mark.parametrize("write", [write, write_folder])
def test_what_the_disk_refuses_is_one_line(tmp_path, monkeypatch, number, kind, reason, write):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(kind) as error:
        write(tmp_path / "new")

    assert is_one_line(error, f"Can't write {tmp_path / 'new'}: ", reason)
    assert error.value.errno == number
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("write", [write, write_folder])
def test_a_folder_that_is_gone_is_one_line(tmp_path, write):
    with pytest.raises(FileNotFoundError) as error:
        write(tmp_path / "gone" / "new")

    assert is_one_line(error, str(tmp_path / "gone" / "new"), "its folder does not exist. Make")


def test_errors_of_other_files_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as error, written_whole(tmp_path / "new"):
        (tmp_path / "another").read_text()

    assert error.value.filename == str(tmp_path / "another")


@no_windows
def test_a_folder_and_a_device_are_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(IsADirectoryError, match=r"folder: there is a folder of this name\. Take"):
        write(tmp_path / "folder")
    with pytest.raises(OSError, match=r"pipe: it is no file\. Take"):
        write(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="folder already"):
        write_folder(tmp_path / "folder")

    assert names_in(tmp_path) == ["folder", "pipe"]


@no_windows
def test_a_link_is_followed(tmp_path):
    write(tmp_path / "file", OLD)
    (tmp_path / "link").symlink_to("file")

    write(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == NEW


def test_long_names_and_endings_are_kept(tmp_path):
    name = "a" * 240 + ".weights.h5"

    with written_whole(tmp_path / name) as unfinished:
        assert unfinished.name.endswith(".weights.h5")
        unfinished.write_bytes(NEW)

    assert names_in(tmp_path) == [name]


def test_threads_do_not_disturb_each_other(tmp_path):
    def write_often(content):
        for _ in range(20):
            write(tmp_path / "file", content)

    threads = [threading.Thread(target=write_often, args=[bytes([i]) * 1000]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set((tmp_path / "file").read_bytes())) == 1
    assert names_in(tmp_path) == ["file"]


@no_windows
def test_a_kill_leaves_the_earlier_file(tmp_path):
    write(tmp_path / "file", OLD)
    script = """
import os, signal, sys
from kgpt.files import written_whole
with written_whole(sys.argv[1]) as unfinished:
    unfinished.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""

    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)

    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == OLD


def test_an_open_file_that_windows_keeps_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "file", OLD)

    def refuse(source, target):
        raise PermissionError(errno.EACCES, "Access is denied", str(source), 5, str(target))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(files, "_IS_WINDOWS", True)

    with pytest.raises(PermissionError) as error:
        write(tmp_path / "file")

    assert is_one_line(error, f"Can't replace {tmp_path / 'file'}", "that is open", "`del`")
    assert names_in(tmp_path) == ["file"]


# === Free space ===


def test_free_space_is_that_of_the_folder_that_will_hold_the_file(tmp_path):
    free = free_bytes(tmp_path / "not" / "yet" / "there")

    assert free > 0
    check_free_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(
        OSError, match=r"there: it needs .* bytes, and the disk has .*Free"
    ) as error:
        check_free_space(tmp_path / "there", 10**18)
    assert error.value.errno == errno.ENOSPC


# === The manifest ===


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "model")
    return tmp_path / "model"


def test_a_manifest_names_each_file_with_size_and_hash(folder):
    manifest = json.loads((folder / files.MANIFEST).read_text())

    assert manifest["files"].keys() == {"a", "inner/b"}
    assert manifest["files"]["a"]["size"] == len(NEW)
    assert manifest["files"]["a"]["sha256"] == NEW_SHA256


def test_a_whole_folder_and_one_without_a_manifest_pass(folder):
    check_manifest(folder)
    (folder / files.MANIFEST).unlink()
    (folder / "a").unlink()
    check_manifest(folder)


def test_a_card_and_further_files_are_the_users(folder):
    (folder / "README.md").write_text("a")
    write_manifest(folder)

    (folder / "README.md").write_text("another")
    (folder / "notes").write_text("new")

    check_manifest(folder)


@pytest.mark.parametrize("position", range(0, len(NEW), 500))
def test_a_changed_bit_is_found(folder, position):
    content = bytearray(NEW)
    content[position] ^= 1
    (folder / "a").write_bytes(content)

    with pytest.raises(DamagedError) as error:
        check_manifest(folder)

    assert is_one_line(error, f"{folder / 'a'} is damaged: its content is not", "Fetch or write")
    check_manifest(folder, ["inner/b", "not there"])


@pytest.mark.parametrize("size", [0, 1, len(NEW) - 1, len(NEW) + 1])
def test_another_size_is_found(folder, size):
    (folder / "a").write_bytes((NEW + NEW)[:size])

    with pytest.raises(DamagedError, match=f"has {size:,} bytes in place of 3,000") as error:
        check_manifest(folder)

    assert is_one_line(error, str(folder / "a"))


@no_windows
def test_a_missing_file_and_one_that_is_no_file_are_found(folder):
    (folder / "inner" / "b").unlink()
    with pytest.raises(DamagedError, match=r"b is missing"):
        check_manifest(folder)

    os.mkfifo(folder / "inner" / "b")
    with pytest.raises(DamagedError, match=r"b is damaged: it is no file"):
        check_manifest(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "{",
        '{"files": []}',
        '{"files": {"a": {"size": 1}}}',
        '{"files": {"a": {"size": "1", "sha256": "%s"}}}' % ("0" * 64),
        '{"files": {"../a": {"size": 1, "sha256": "%s"}}}' % ("0" * 64),
        '{"files": {"/etc/passwd": {"size": 1, "sha256": "%s"}}}' % ("0" * 64),
        '{"files": {"C:a": {"size": 1, "sha256": "%s"}}}' % ("0" * 64),
        "[" * 100_000,
    ],
)
def test_a_damaged_manifest_is_said(folder, text):
    (folder / files.MANIFEST).write_text(text)

    with pytest.raises(DamagedError) as error:
        check_manifest(folder)

    assert is_one_line(error, str(folder / files.MANIFEST), "is no manifest", "Fetch or write")


def test_each_changed_bit_of_a_manifest_is_found_or_changes_nothing(folder):
    path = folder / files.MANIFEST
    text = path.read_bytes()
    entries = files._read_manifest(folder)

    for position in range(len(text)):
        path.write_bytes(text[:position] + bytes([text[position] ^ 4]) + text[position + 1 :])
        try:
            check_manifest(folder)
        except DamagedError:
            continue
        assert files._read_manifest(folder) == entries
