"""Files that are written whole or not at all."""

import contextlib
import os
import threading
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | os.PathLike):
    """Gives a path beside the one asked for, to write to: the file is renamed when all went well.

    Args:
        path: path of the file; an existing one is replaced.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
