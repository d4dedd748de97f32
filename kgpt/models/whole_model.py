"""What Keras does with a model as a whole, where its own way would lose the model's class."""

import contextlib
import functools
import gc
import math
import os
from pathlib import Path
from typing import Self

import keras
import numpy as np
from keras.src.saving.saving_lib import is_memory_sufficient
from keras.src.utils.file_utils import is_remote_path
from keras.src.utils.io_utils import ask_to_proceed_with_overwrite

from kgpt.arguments import refuse, refuse_assignment
from kgpt.distribution import process
from kgpt.files import check_free_space, files_written_whole, written_whole
from kgpt.hdf5 import SafeFile, check_layers, check_numbers
from kgpt.kernels.platform import is_in_parts
from kgpt.locks import locked
from kgpt.models import freezing, lora, lora_files, resize
from kgpt.models.inputs import check_known
from kgpt.models.presets import from_preset, preset_names, push_to_hub, save_to_preset
from kgpt.models.quantization import check_float8, quantization_config


class WholeModel:
    """The base of `GPTBackbone` and `Task`: cloning, files, LoRA, freezing, presets, export.

    `keras.models.clone_model` copies a functional model layer by layer. From the inputs and outputs
    of the copy it makes a model of the same class if the constructor takes any arguments, `*args`
    and `**kwargs`, and else a plain functional model. Constructors are wrapped here, which is
    what Keras looks at, while readers see the signature within; the copy is made from the config.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _completed(cls.__init__)

    def __new__(cls, *args, **kwargs) -> Self:
        if _is_clone(cls, args):
            return args[1]
        return super().__new__(cls, *args, **kwargs)

    # What the constructor builds into the model beside its layers: a subclass names its own.
    _fixed = ()
    _is_made = False

    def __setattr__(self, name, value):
        if self._is_made and _is_built_in(self, name) and getattr(self, name) != value:
            refuse_assignment(type(self).__name__, name, value, _other_way(self, name))
        if name != "trainable":
            return super().__setattr__(name, value)
        # On TensorFlow an attribute that has the value already is left alone, and so would be the
        # layers that `freeze` has frozen.
        return type(self).trainable.fset(self, value)

    def __call__(self, inputs, *args, **kwargs):
        check_known(inputs, freezing.body_of(self).vocabulary_size)
        return super().__call__(inputs, *args, **kwargs)

    def _run_through_graph(self, inputs, **functions):
        # Keras asks `operation_fn` for something to call, and only to clone for a new operation.
        operation_fn = functions.get("operation_fn")
        if operation_fn is None or not isinstance(
            operation_fn(self._operations[-1]), keras.Operation
        ):
            return super()._run_through_graph(inputs, **functions)
        self._check_clone(keras.tree.flatten(inputs), **functions)
        return type(self).from_config(self.get_config())

    def _check_clone(self, inputs, operation_fn, call_fn=None):
        """Raises ValueError for what a copy from the config can't follow."""
        advice = (
            f"A {type(self).__name__} is cloned from its config, with new weights. {{}} Clone it "
            "with no further arguments, or, if a plain Keras model will do, clone "
            "keras.Model(model.input, model.output)."
        )
        if call_fn is not None:
            raise ValueError(advice.format("Received: a call_function."))
        if [_signature(x) for x in inputs] != [_signature(x) for x in self.inputs]:
            received = [f"{x.name} {x.shape}" for x in inputs]
            raise ValueError(advice.format(f"Received: other input_tensors, {received}."))
        for operation in self._operations:
            if isinstance(operation, keras.layers.InputLayer):
                continue
            new = operation_fn(operation)
            same = type(new) is type(operation) and new.get_config() == operation.get_config()
            if new is operation or not same:
                raise ValueError(
                    advice.format(
                        "Received: a clone_function that does not give the layer "
                        f"{operation.name!r} once more, with its class and config."
                    )
                )

    def save(
        self,
        filepath,
        overwrite: bool = True,
        zipped: bool | None = None,
        include_optimizer: bool = True,
        **kwargs,
    ) -> None:
        """Writes a `.keras` file, as `keras.Model.save` does, whole or not at all.

        An earlier file stays until the new one is on the disk: a full disk, a kill or a power cut
        leaves the one or the other.

        Args:
            filepath: the file, which ends in `.keras`, in a folder that exists.
            overwrite: bool. False asks before an existing file is replaced.
            zipped: bool. False writes a folder with the parts of the file, whose name must not end
                in `.keras`.
            include_optimizer: bool. False leaves out what `compile` was given and the optimizer's
                state, which is two thirds of the file with Adam. The loaded model is not compiled.
            **kwargs: as for `keras.Model.save`.

        Raises:
            ValueError: for names of files that could not be loaded.
            OSError: if it can't be written, with the reason.
            RuntimeError: where several processes hold different parts of the weights. Where each
                has them whole, the first one writes.

        Example:
            lm.save("lm.keras")
        """
        is_folder = zipped is False
        check_name(filepath, is_folder)
        if not include_optimizer:
            with _not_compiled(self):
                return self.save(filepath, overwrite, zipped, **kwargs)
        if not _is_written_here(self):
            return
        if not _is_local(filepath, "" if is_folder else ".keras"):
            super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        elif _may_write(filepath, overwrite):
            # Without the memory for it Keras writes the weights to a second file first.
            copies = 1 if is_memory_sufficient(self) else 2
            check_free_space(filepath, copies * num_bytes(_saved_variables(self)))
            to_folder = functools.partial(files_written_whole, last="config.json")
            with (to_folder if is_folder else written_whole)(filepath) as unfinished:
                super().save(unfinished, zipped=zipped, **kwargs)

    def save_weights(
        self, filepath, overwrite: bool = True, max_shard_size: float | None = None
    ) -> None:
        """Writes all weights, as `keras.Model.save_weights` does, whole or not at all.

        Args:
            filepath: the file, which ends in `.weights.h5`, in a folder that exists.
            overwrite: bool. False asks before an existing file is replaced.
            max_shard_size: optional number of gigabytes, to write several files. `filepath` is then
                their index, which ends in `.weights.json`.

        Raises:
            OSError: if it can't be written, with the reason; an earlier file stays.

        Example:
            lm.save_weights("lm.weights.h5")
        """
        if not _is_written_here(self):
            return
        if not _is_local(filepath, (".weights.h5", ".weights.json")):
            super().save_weights(filepath, overwrite=overwrite, max_shard_size=max_shard_size)
        elif _may_write(filepath, overwrite):
            check_free_space(filepath, num_bytes(_saved_variables(self)))
            if max_shard_size is None:
                with written_whole(filepath) as unfinished, SafeFile(unfinished) as file:
                    super().save_weights(file)
            else:
                path = Path(filepath).with_suffix(".json")
                with files_written_whole(path.parent, last=path.name, manifest=False) as unfinished:
                    super().save_weights(unfinished / path.name, max_shard_size=max_shard_size)

    def load_own_variables(self, store):
        """Reads what is the model's own from a file, which Keras calls first of a whole one."""
        check_numbers(store)
        check_layers(store, freezing.body_of(self))
        super().load_own_variables(store)

    @locked
    def load_weights(self, filepath, skip_mismatch: bool = False, **kwargs):
        """Reads the weights that `save_weights` wrote, as `keras.Model.load_weights` does.

        Args:
            filepath: a file `*.weights.h5`, or a `*.weights.json` of several.
            skip_mismatch: bool. Whether layers whose weights have other shapes are left out, with a
                warning.
            **kwargs: further arguments of `keras.Model.load_weights`.

        Raises:
            ValueError: for weights of layers that the model lacks or that the file lacks, of other
                shapes, and for NaN or infinity.

        Example:
            lm.save_weights("lm.weights.h5")
            lm.load_weights("lm.weights.h5")
        """
        super().load_weights(filepath, skip_mismatch, **kwargs)
        lora.revive_lora(freezing.body_of(self))

    # A backbone's; a task has its own.
    fit = locked(keras.Model.fit, training=True)
    evaluate = locked(keras.Model.evaluate)
    predict = locked(keras.Model.predict)

    enable_lora = locked(lora.enable_lora)
    merge_lora = locked(lora.merge_lora)
    save_lora_weights = lora_files.save_lora_weights
    load_lora_weights = locked(lora_files.load_lora_weights)
    freeze = freezing.freeze
    unfreeze = freezing.unfreeze
    with_max_sequence_length = resize.with_max_sequence_length

    from_preset = from_preset
    presets = classmethod(preset_names)
    save_to_preset = save_to_preset
    push_to_hub = push_to_hub

    @locked
    def quantize(self, mode=None, config=None, filters=None, **kwargs) -> None:
        """Replaces the matrices by smaller ones, as `keras.Model.quantize` does.

        Args:
            mode: `"int8"` or `"int4"`; others as Keras has them.
            config: optional `keras.quantizers.QuantizationConfig`, in place of `mode`.
            filters: optional patterns of layers' names, or a function that chooses layers.
            **kwargs: as for `keras.Model.quantize`.

        Raises:
            ValueError: for modes and patterns that Keras refuses, float8 over LoRA, and filters
                that leave no layer to quantize.

        Example:
            lm.quantize("int8")
        """
        check_float8(getattr(config, "mode", mode), freezing.body_of(self).lora_rank is not None)
        before = quantization_config(self)
        gc.freeze()  # Keras collects garbage after each matrix: all that was imported takes a while
        try:
            super().quantize(mode, config=config, filters=filters, **kwargs)
        finally:
            gc.unfreeze()
        if filters is not None and quantization_config(self) == before:
            refuse("filters", filters, "a choice of layers that can be quantized")

    def export(
        self, filepath, format: str = "tf_saved_model", verbose: bool = True, **kwargs
    ) -> None:
        """Writes the forward pass for other runtimes, as `kgpt.convert.export.export` does.

        Args:
            filepath: where to write: a folder for TensorFlow, else a file.
            format: `"tf_saved_model"`, `"onnx"` or `"litert"`.
            verbose: bool. Whether to print where it was written.
            **kwargs: `padding_mask`, and what the format takes, as for that function.

        Raises:
            ValueError: if the backend can't make the format, and for an unsuitable path.
            ImportError: if the converter is not installed.
            OSError: if there is no room or no permission.

        Example:
            import onnxruntime

            backbone.export("body.onnx", format="onnx")
            session = onnxruntime.InferenceSession("body.onnx")
        """
        from kgpt.convert.export import export

        export(self, filepath, format, verbose=verbose, **kwargs)


def num_bytes(variables) -> int:
    """Returns the size of variables in a file."""
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables)


def _saved_variables(model) -> list:
    optimizer = getattr(model, "optimizer", None)
    return [*model.variables, *getattr(optimizer, "variables", ())]


def _is_written_here(model) -> bool:
    """Returns whether this process writes a model's files: the first of several does.

    Raises:
        RuntimeError: where the processes hold different parts of the weights.
    """
    if any(map(is_in_parts, _saved_variables(model))):
        raise RuntimeError(
            "No process has the whole of a model whose weights several processes divide. Received: "
            f"{process()[1]} processes. Train with kgpt.callbacks.ResumableCheckpoint, and run the "
            "same script in one process then: it restores the end of the run, and saves the model."
        )
    return process()[0] == 0


def check_name(path, is_folder: bool = False):
    """Raises ValueError for a model's file that `keras.models.load_model` could not read."""
    root, ending = os.path.splitext(str(path))
    if ending in (".h5", ".hdf5"):
        name = root.removesuffix(".weights")
        raise ValueError(
            "In HDF5 Keras can't load models of classes of their own. Received: "
            f"filepath={str(path)!r}. Try {name + '.keras'!r}, or, for the weights alone, "
            f"save_weights({name + '.weights.h5'!r})."
        )
    if is_folder and ending == ".keras":
        raise ValueError(
            "What ends in .keras must be a file. Received: "
            f"filepath={str(path)!r}, zipped=False, which writes a folder. Try {root!r}, or leave "
            "zipped out."
        )


def _is_local(path, endings):
    """Whether a path is one of this machine's file system, with one of the endings."""
    if not isinstance(path, str | os.PathLike):
        return False
    name = os.fspath(path)
    return name.endswith(endings) and not name.startswith("hf://") and not is_remote_path(name)


@contextlib.contextmanager
def _not_compiled(model):
    """Inside, a model is as before `compile`, of which Keras looks at this."""
    kept = {
        name: getattr(model, name) for name in ("optimizer", "compiled") if hasattr(model, name)
    }
    try:
        for name in kept:
            setattr(model, name, None if name == "optimizer" else False)
        yield
    finally:
        for name, value in kept.items():
            setattr(model, name, value)


def _may_write(path, overwrite):
    return overwrite or not os.path.exists(path) or ask_to_proceed_with_overwrite(os.fspath(path))


def _completed(init):
    """Returns a constructor that takes a finished clone too, and freezes what is not trainable."""

    @functools.wraps(init)
    def complete(self, *args, **kwargs):
        if _is_clone(type(self), args):
            return
        init(self, *args, **kwargs)
        if not self.trainable:  # Keras's constructor says so before it knows the layers
            for layer in self._flatten_layers(include_self=False):
                layer.trainable = False
        if type(self).__init__ is complete:  # and not a subclass's, which goes on
            self._is_made = True

    vars(complete).pop("__signature__", None)  # `init` may have one; Keras would look at it
    return complete


def _is_built_in(model, name) -> bool:
    """Whether an attribute is fixed by name, or has layers that the model is made of."""
    if name in model._fixed or name.startswith("_"):
        return name in model._fixed
    value = getattr(model, name, None)
    layers = value if isinstance(value, list | tuple) else [value]
    if not any(isinstance(layer, keras.layers.Layer) for layer in layers):
        return False
    parts = [part for one in model.operations for part in getattr(one, "_flatten_layers", list)()]
    return any(layer is part for layer in layers for part in parts)


def _other_way(model, name) -> str:
    kind = type(model).__name__
    if name == "backbone":
        return f"Make another {kind} over the other body, {kind}(backbone, ...)."
    if name not in model._fixed:
        return (
            f"A {kind} runs the layers that it was made with. Their weights may be set, as by "
            "layer.set_weights(other.get_weights())."
        )
    return (
        f"{kind}.from_config({{**model.get_config(), {name!r}: ...}}) is a new model with another "
        "value, and new.set_weights(model.get_weights()) gives it what this one has learned."
    )


def _is_clone(cls, args):
    """Whether a constructor's arguments are inputs and a clone in place of the outputs."""
    return len(args) == 2 and type(args[1]) is cls


def _signature(tensor):
    return tensor.name, tuple(tensor.shape), tensor.dtype
