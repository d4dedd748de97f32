"""Files that somebody else may have made: what they are and how large is checked before reading."""

import contextlib
import json
import os
import stat
from pathlib import Path

import numpy as np

_MOST_JSON_BYTES = 2**28  # the largest vocabularies have some 10 MB
_KINDS = {
    "a folder": stat.S_ISDIR,
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


def check_file(path: str | os.PathLike, hint: str = "") -> Path:
    """Returns the path of an ordinary file, or of a link to one.

    Args:
        path: path of the file.
        hint: what to do, for the message.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a folder, and for a pipe or a device, which would have to be waited for.
    """
    hint = f" {hint}" if hint else ""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"There is no file {path}.{hint}") from None
    except ValueError:  # a NUL in it
        raise ValueError(f"path must be the name of a file. Received: {path!r}.{hint}") from None
    if not stat.S_ISREG(mode):
        kind = next((kind for kind, is_kind in _KINDS.items() if is_kind(mode)), "no file")
        raise ValueError(f"{path} must be an ordinary file. Received: {kind}.{hint}")
    return Path(path)


def read_text(path: str | os.PathLike, hint: str = "") -> str:
    """Returns the text of a small UTF-8 file such as a config or a vocabulary.

    Args:
        path: path of the file.
        hint: what to do if it is no such file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for no ordinary file, one that is too large, and other encodings.
    """
    path = check_file(path, hint)
    size = path.stat().st_size
    if size > _MOST_JSON_BYTES:
        raise ValueError(
            f"{path} must have at most {_MOST_JSON_BYTES} bytes. Received: {size} bytes. {hint}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8. Received: {one_line(error)}. "
            f"{hint or 'Try another copy.'}"
        ) from None


def read_json(path: str | os.PathLike, kind: type = dict, hint: str = ""):
    """Returns what is in a JSON file.

    Args:
        path: path of the file.
        kind: `dict` or `list`, which the file must hold.
        hint: what to do if it does not.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds something else.
    """
    text = read_text(path, hint)
    hint = hint or "Try another copy."
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no JSON: {one_line(error)}. {hint}") from None
    if not isinstance(content, kind):
        raise ValueError(
            f"{path} must hold a JSON {'object' if kind is dict else 'array'}. "
            f"Received: {type(content).__name__}. {hint}"
        )
    return content


def map_npy(path: str | os.PathLike) -> np.ndarray:
    """Returns the array in a .npy file, mapped: read when it is used, and never written to.

    Args:
        path: path of the file.

    Raises:
        ValueError: if the file is damaged, holds no plain array of numbers, has bytes that the
            header does not speak of, or another byte order than the machine.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is Python, of which any part may be wrong
        if isinstance(error, FileNotFoundError | MemoryError):
            raise
        raise ValueError(one_line(error)) from None
    if not isinstance(array, np.memmap):
        raise ValueError("several arrays in place of one")
    size, expected = os.path.getsize(path), array.offset + array.nbytes
    if size != expected:
        raise ValueError(f"it has {size:,} bytes, and its header speaks of {expected:,}")
    if not array.dtype.isnative:
        raise ValueError(f"its byte order is not this machine's, dtype {array.dtype.str!r}")
    return array


def check_finite(values: np.ndarray, where: str, hint: str):
    """Raises ValueError for weights with NaN or infinity.

    Args:
        values: float array.
        where: what they are, for the message.
        hint: what to do.
    """
    if not np.isfinite(values).all():
        raise ValueError(
            f"Weights must be finite numbers. Received: NaN or infinity in {where}. {hint}"
        )


@contextlib.contextmanager
def errors_name(path: str | os.PathLike):
    """Inside, an error says in one line which file it comes from.

    TypeError, KeyError and the like, from values of another kind than the format has, become
    ValueError. What is no fault of the file, such as a package that is missing, passes.
    """
    try:
        yield
    except (FileNotFoundError, ImportError, MemoryError):
        raise
    except Exception as error:
        text = one_line(error)
        if not isinstance(error, ValueError | OSError) and "Received: " not in text:
            text = f"is damaged, or in another format: {type(error).__name__}, {text}."
        if str(path) not in text:
            text = f"{path}: {text}" if "Received: " in text else f"{path} {text}"
        raise ValueError(text) from None


def one_line(error, limit: int = 600) -> str:
    """Returns the message of an error on one line."""
    return " ".join(str(error).split())[:limit].removesuffix(".") + (
        "." if "Received: " in str(error) else ""
    )
