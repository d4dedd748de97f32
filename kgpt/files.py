"""Files and folders that are written whole or not at all, and hashes that show damage."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MANIFEST = "kgpt_manifest.json"
# People edit a model's card and its settings.
_NOT_IN_MANIFEST = (MANIFEST, "README.md", "config.json", "generation_config.json")
_IS_WINDOWS = os.name == "nt"
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync ends at the drive's own memory
_MOST_MANIFEST_BYTES = 2**24

# What is said of the errors of a file system, and what to do.
_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space, or take another folder."),
    errno.EDQUOT: ("your quota of the disk is used up", "Free some space, or take another folder."),
    errno.EFBIG: ("the file is larger than is allowed here", "Raise the limit (ulimit -f)."),
    errno.EROFS: ("the file system is read-only", "Take another folder."),
    errno.EACCES: ("there is no permission", "Take another folder, or change its permissions."),
    errno.EPERM: ("it is not permitted", "Take another folder, or change its permissions."),
    errno.ENOENT: ("its folder does not exist", "Make the folder, or take another one."),
    errno.EEXIST: ("what should be a folder is a file", "Take another folder."),
    errno.ENOTDIR: ("what should be its folder is a file", "Take another folder."),
    errno.EISDIR: ("there is a folder of this name", "Take another name."),
    errno.ENAMETOOLONG: ("the name is too long", "Take a shorter one."),
    errno.EIO: ("the disk reports an error", "Check the disk, or take another folder."),
}


class DamagedError(ValueError):
    """A file is not what was written: missing, of another size, or of another content."""


# === Written whole ===


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path beside the one asked for, to write to: the file is renamed when all went well.

    Before and after the renaming all is brought to the disk, so that a power cut leaves the earlier
    file or the new one. What the disk refuses ends in an `OSError` of one line that names the path;
    the earlier file stays, and nothing of the new one. A link is followed.

    Args:
        path: path of the file, in a folder that exists; an existing file is replaced.

    Example:
        from kgpt.files import written_whole

        with written_whole("notes.txt") as unfinished:
            unfinished.write_text("whole")
    """
    real = Path(os.path.realpath(path))
    # The ending stays the same, since writers look at it; the name stays short enough.
    own = f".{os.getpid()}.{threading.get_ident()}.partial."
    unfinished = real.with_name(own + real.name[-40:])
    try:
        with errors_of_writing(path, real, unfinished):
            _check_replaceable(real)
            yield unfinished
            sync(unfinished)
            replace(unfinished, real)
            sync(real.parent)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a folder beside the one asked for, to write to: it is renamed when all went well.

    A manifest is written into it at the end. Power cuts and errors are as for `written_whole`. A
    process that is killed leaves the unfinished folder, `NAME.PID.partial`.

    Args:
        path: path of the folder, which must not exist, in a folder that exists.

    Example:
        from kgpt.files import folder_written_whole

        with folder_written_whole("step-10") as unfinished:
            (unfinished / "state.txt").write_text("whole")
    """
    real = Path(os.path.realpath(path))
    unfinished = real.with_name(f"{real.name}.{os.getpid()}.partial")
    try:
        with errors_of_writing(path, real, unfinished):
            if os.path.lexists(real):
                raise FileExistsError(f"There is {path} already. Take another name.")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a dead process of this number
            unfinished.mkdir()
            yield unfinished
            write_manifest(unfinished)
            _sync_all(unfinished)
            os.rename(unfinished, real)
            sync(real.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def files_written_whole(
    folder: str | os.PathLike, last: str, outdated: Iterable[str] = (), manifest: bool = True
) -> Iterator[Path]:
    """Gives a folder to write to, whose files take their places in one that may exist already.

    A folder that does not exist is written by `folder_written_whole`. In one that does, the files
    of the user stay, and those of the earlier manifest go. Each file is replaced whole, but not all
    at one moment: the file `last`, without which no reader takes the others, is removed before the
    first is replaced and written after the last. So a power cut leaves the earlier files, the new
    ones, or a folder that is refused.

    Args:
        folder: the folder; made if need be, with those above it.
        last: name of the file that comes last.
        outdated: names or patterns of files that go where no new one has their name.
        manifest: bool. Whether the folder has a manifest.
    """
    real = Path(os.path.realpath(folder))
    if manifest and not os.path.lexists(real):
        make_folder(real.parent)
        with folder_written_whole(folder) as unfinished:
            yield unfinished
        return
    unfinished = make_folder(real) / f".{os.getpid()}.partial"
    try:
        with errors_of_writing(folder, real):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            yield unfinished
            if manifest:
                outdated = [*outdated, *_names_in_earlier_manifest(real)]
                write_manifest(unfinished)
            _sync_all(unfinished)
            _move_files(unfinished, real, last, outdated)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _names_in_earlier_manifest(folder):
    try:
        return [glob.escape(name) for name in _read_manifest(folder)]
    except DamagedError:
        return []


def _move_files(source, target, last, outdated):
    new = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    old = {p.relative_to(target) for one in outdated for p in target.glob(one) if p.is_file()}
    (target / last).unlink(missing_ok=True)
    sync(target)
    for name in sorted(old.difference(new)):
        (target / name).unlink(missing_ok=True)
    sync(target)
    for name in new:
        if name != Path(last):
            make_folder((target / name).parent)
            replace(source / name, target / name)
    for parent in {(target / name).parent for name in new}:
        sync(parent)
    replace(source / last, target / last)
    sync(target)


def make_folder(path: str | os.PathLike) -> Path:
    """Makes a folder and those above it as far as they lack, on the disk too; returns its path."""
    path = Path(path)
    with errors_of_writing(path, path):
        lacking = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(lacking):
            sync(folder.parent)
    return path


def replace(source: Path, target: Path):
    """Renames a file over another one; says so where it can't be, since somebody has it open."""
    try:
        os.replace(source, target)
    except PermissionError as error:
        if not _IS_WINDOWS or not target.exists():
            raise
        raise PermissionError(
            errno.EBUSY,
            f"Can't replace {target}: Windows lets no file be replaced that is open. "
            "End what reads it (`del` its data), or take another name.",
        ) from error


def sync(path: Path):
    """Brings a file's content, or a folder's list of names, to the disk."""
    is_folder = path.is_dir()
    if is_folder and _IS_WINDOWS:  # has no such call
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        if _FULL_SYNC is not None:
            fcntl.fcntl(descriptor, _FULL_SYNC)
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise  # some network file systems have no such call either
    finally:
        os.close(descriptor)


def _sync_all(folder):
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def _check_replaceable(path):
    """Raises an OSError for what is no file, such as a folder or a device."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, f"Can't write {path}: it is no file. Take another name.")


# === What went wrong ===


@contextlib.contextmanager
def errors_of_writing(path: str | os.PathLike, *written: Path):
    """Inside, what the system says of a file that is written becomes one line that says what to do.

    Args:
        path: the name in the message.
        *written: the file or folder that is written inside; errors of other files stay as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS or not _is_among(error.filename, (path, *written)):
            raise
        reason, advice = _REASONS[error.errno]
        message = f"Can't write {os.fspath(path)}: {reason}. {advice}"
        raise OSError(error.errno, message) from error


def _is_among(name, paths):
    """Whether a file's name is one of the paths, in one of them, or the folder that holds them."""
    if name is None:  # an open file
        return True
    if not isinstance(name, str | os.PathLike):
        return False
    name = Path(name)
    return any(name == path or path in name.parents for path in map(Path, paths))


def free_bytes(path: str | os.PathLike) -> int | None:
    """Returns the free space where a file or folder is or will be; None where nobody knows."""
    path = Path(path).absolute()
    try:
        usage = shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists()))
    except OSError:
        return None
    return usage.free if usage.total else None  # some network file systems say 0 of 0


def check_free_space(path: str | os.PathLike, needed: int):
    """Raises an `OSError` of one line if there is less space than a file or folder will need.

    Args:
        path: where to write; need not exist.
        needed: int. Bytes.
    """
    free = free_bytes(path)
    if free is not None and free < needed:
        raise OSError(
            errno.ENOSPC,
            f"Can't write {os.fspath(path)}: it needs {needed:,} bytes, and the disk has {free:,} "
            "left. Free some space, or take another folder.",
        )


# === The manifest ===


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_of(folder: Path) -> dict:
    """Returns the manifest of the files in a folder and its folders, but for what people edit."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        "format": 1,
        "files": {
            name: {"size": path.stat().st_size, "sha256": sha256(path)}
            for name, path in files.items()
            if name not in _NOT_IN_MANIFEST
        },
    }


def write_manifest(folder: str | os.PathLike):
    """Writes `kgpt_manifest.json` into a folder: size and SHA-256 of each file.

    A model's card and settings are not in it: `README.md`, `config.json`, `generation_config.json`.
    It is not on the disk yet when this returns: whoever moves the folder brings all of it there.
    """
    folder = Path(folder)
    text = json.dumps(manifest_of(folder), indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")


def check_manifest(folder: str | os.PathLike, names: Iterable[str] | None = None):
    """Compares the files of a folder with its manifest; a folder without one passes.

    Sizes are compared first, which takes no time; the hashes read every byte. Files that the
    manifest does not name are not looked at.

    Args:
        folder: the folder.
        names: optional names of the only files to check, as far as the manifest has them.

    Raises:
        DamagedError: for the first file that is missing, or has another size or content.
    """
    folder = Path(folder)
    expected = _read_manifest(folder)
    if names is not None:
        expected = {name: expected[name] for name in names if name in expected}
    for name, entry in expected.items():
        _check_size(folder / name, entry["size"])
    for name, entry in expected.items():
        if sha256(folder / name) != entry["sha256"]:
            raise DamagedError(f"{folder / name} is damaged: its content {_NOT_AS_WRITTEN}")


_NOT_AS_WRITTEN = (
    f"is not what was written, as {MANIFEST} has it. Fetch or write the folder anew; if the file "
    f"was changed on purpose, delete {MANIFEST}."
)


def _check_size(path, size):
    try:
        found = path.stat()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing: the folder {_NOT_AS_WRITTEN}") from None
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError(f"{path} is damaged: it is no file, and {_NOT_AS_WRITTEN}")
    if found.st_size != size:
        raise DamagedError(
            f"{path} is damaged: it has {found.st_size:,} bytes in place of {size:,}, and "
            f"{_NOT_AS_WRITTEN}"
        )


def _read_manifest(folder) -> dict[str, dict]:
    """Returns `{name: {"size": int, "sha256": str}}`; of a folder without a manifest, nothing."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        if not path.is_file() or path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise ValueError("no file of a manifest's size")
        entries = json.loads(path.read_text(encoding="utf-8"))["files"]
        for name, entry in entries.items():
            _check_entry(name, **entry)
        return entries
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(
            f"{path} is damaged: it is no manifest ({type(error).__name__}). Fetch or write the "
            "folder anew, or delete this file to read the others unchecked."
        ) from None


def _check_entry(name, size, sha256):
    """Raises ValueError for what no manifest has, such as a name that leads out of the folder."""
    parts = PurePosixPath(name).parts
    is_inside = parts and not PurePosixPath(name).is_absolute() and ".." not in parts
    if not is_inside or set(name) & set("\\:\0") or type(size) is not int or len(sha256) != 64:
        raise ValueError(name)
