"""HDF5 files on a disk that may be full, and what was read from them."""

import io
import os

import ml_dtypes  # comes with Keras
import numpy as np
from keras.src.backend.common import global_state

from kgpt.reading import check_finite

_EMBEDDING = "token_and_position_embedding/token_embedding/vars"


class SafeFile(io.BytesIO):
    """A file to write HDF5 to: the first error is raised at the end, when HDF5 is done.

    HDF5 ends the process with a segmentation fault where it can't write to a full disk. It is a
    `BytesIO` since Keras takes nothing else for an open file; Keras reads the ending off its name.

    Example:
        import h5py
        from kgpt.hdf5 import SafeFile

        with SafeFile("a.h5") as file, h5py.File(file, "w") as weights:
            weights["a"] = np.ones(3)
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.name = os.fspath(path)
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self._error = None

    def __str__(self):
        return self.name

    def seek(self, *args):
        return self._file.seek(*args)

    def tell(self):
        return self._file.tell()

    def readinto(self, buffer):
        return self._file.readinto(buffer)

    def write(self, data):
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest) and self._error is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._error = error
        return size

    def truncate(self, size=None):
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error

    def __exit__(self, *exception):
        self._file.close()
        self._file = io.BytesIO()  # for what HDF5 writes of a file that it was not asked to close
        if self._error is not None:
            raise self._error


def check_numbers(store):
    """Raises ValueError if weights in an HDF5 file that Keras reads are NaN or infinite.

    Args:
        store: what Keras gives to `load_own_variables` of the model that a file is of. Of its other
            formats, and of what is inside the model, nothing is looked at.
    """
    file = getattr(store, "h5_file", None)
    if file is None or getattr(store, "_h5_entry_path", None):
        return

    def check(name, found):
        if not hasattr(found, "dtype") or found.dtype.kind not in "fV" or not found.size:
            return
        values = np.asarray(found)
        if found.attrs.get("dtype") == "bfloat16":
            values = values.view(ml_dtypes.bfloat16).astype("float32")
        if values.dtype.kind == "f":
            check_finite(values, f"{name} of the file", "Try an earlier file.")

    file.visititems(check)


def check_layers(store, body):
    """Raises ValueError if an HDF5 file has weights of layers that a body lacks.

    Keras refuses a file in which a layer's weights are missing, and leaves out what is too much: a
    body with fewer blocks, or with another kind of blocks, would be neither model.

    Args:
        store: as for `check_numbers`.
        body: the `GPTBackbone` inside the model.
    """
    file = getattr(store, "h5_file", None)
    if file is None or getattr(store, "_h5_entry_path", None):
        return
    found = []

    def note(name, group):
        if name.endswith("/vars") and len(group):
            found.append(name)

    file.visititems(note)
    starts = [name.removesuffix(_EMBEDDING) for name in found if name.endswith(_EMBEDDING)]
    if len(starts) != 1:
        return  # which Keras refuses
    layers = {id(layer): layer for layer in body._flatten_layers(include_self=False)}.values()
    expected = sum(bool(x._trainable_variables or x._non_trainable_variables) for x in layers)
    found = [name.removesuffix("/vars") for name in found if name.startswith(starts[0])]
    if len(found) > expected:
        raise ValueError(
            "The file must be of a model with the same layers, and has more. Received: a file with "
            f"weights in {len(found)} layers of the body, {', '.join(found)[:300]}, for a model "
            f"with {expected}: num_layers={body.num_layers}, norm_first={body.norm_first}, "
            f"rotary_positions={body.rotary_positions}, query_key_norm={body.query_key_norm}."
        )


def refuse_whole_model(model):
    """Raises ValueError if Keras asks for a model's config to write all of it into HDF5."""
    if global_state.get_global_attribute("use_legacy_config"):
        raise ValueError(
            "In HDF5 Keras can't load models of classes of their own. Received: a "
            f"{type(model).__name__} for such a file. Try model.save('model.keras'), or, for the "
            "weights alone, model.save_weights('model.weights.h5')."
        )
