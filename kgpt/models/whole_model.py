"""What Keras does with a model as a whole, where its own way would lose the model's class."""

import functools
import gc
from typing import Self

import keras

from kgpt.models import freezing, lora, lora_files, resize
from kgpt.models.presets import from_preset, preset_names, push_to_hub, save_to_preset


class WholeModel:
    """The base of `GPTBackbone` and `Task`: cloning, LoRA, freezing, presets, export.

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

    enable_lora = lora.enable_lora
    merge_lora = lora.merge_lora
    save_lora_weights = lora_files.save_lora_weights
    load_lora_weights = lora_files.load_lora_weights
    freeze = freezing.freeze
    unfreeze = freezing.unfreeze
    with_max_sequence_length = resize.with_max_sequence_length

    from_preset = from_preset
    presets = classmethod(preset_names)
    save_to_preset = save_to_preset
    push_to_hub = push_to_hub

    def quantize(self, mode=None, config=None, filters=None, **kwargs) -> None:
        """Replaces the matrices by smaller ones, as `keras.Model.quantize` does.

        Args:
            mode: `"int8"` or `"int4"`.
            config: optional `keras.quantizers.QuantizationConfig`, in place of `mode`.
            filters: optional patterns of layers' names, or a function that chooses layers.
            **kwargs: as for `keras.Model.quantize`.

        Example:
            lm.quantize("int8")
        """
        gc.freeze()  # Keras collects garbage after each matrix: all that was imported takes a while
        try:
            super().quantize(mode, config=config, filters=filters, **kwargs)
        finally:
            gc.unfreeze()

    def export(
        self, filepath, format: str = "tf_saved_model", verbose: bool = True, **kwargs
    ) -> None:
        """Writes the forward pass for other runtimes, as `kgpt.convert.export.export` does."""
        from kgpt.convert.export import export

        export(self, filepath, format, verbose=verbose, **kwargs)


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

    vars(complete).pop("__signature__", None)  # `init` may have one; Keras would look at it
    return complete


def _is_clone(cls, args):
    """Whether a constructor's arguments are inputs and a clone in place of the outputs."""
    return len(args) == 2 and type(args[1]) is cls


def _signature(tensor):
    return tensor.name, tuple(tensor.shape), tensor.dtype
