"""A linear map that low-rank additions can be trained in (LoRA, Hu et al. 2021)."""

import contextlib

import keras
import numpy as np
from keras import ops

_FACTORS = ("lora_kernel_a", "lora_kernel_b")


class LowRankDense(keras.layers.Dense):
    """Keras's `Dense`, with additions to a part of its columns, which files keep as they are.

    With LoRA the kernel is `W + lora_alpha / rank x A B`. Keras writes this sum to files and loads
    additions of 0: training would not go on as it was, and quantized weights would be rounded once
    more. Here `W`, `A` and `B` are written.
    """

    lora_parts = (True,)
    _lora_b = None

    def enable_lora(self, rank, lora_alpha=None, parts=(True,), **kwargs):
        """Adds LoRA's factors as `keras.layers.Dense.enable_lora` does.

        Args:
            rank: int. Inner width of the addition.
            lora_alpha: optional float; `rank` if None.
            parts: tuple of bools. The columns are divided into as many equal parts; those that are
                True have an addition.
            **kwargs: initializers, as for Keras's method.
        """
        super().enable_lora(rank, lora_alpha, **kwargs)
        self.lora_parts = parts
        if all(parts):
            return
        self._tracker.unlock()
        self._untrack_variable(self._lora_b)
        self.lora_kernel_b = self.add_weight(
            name="lora_kernel_b",
            shape=(rank, self.units // len(parts) * sum(parts)),
            initializer=kwargs.get("b_initializer", "zeros"),
            dtype="float32",
            regularizer=self.kernel_regularizer,
        )
        self._tracker.lock()

    def merge_lora(self):
        """Adds the product to the kernel for good and removes the factors."""
        self._kernel.assign(self.kernel)
        self.lora_enabled = False
        for factor in self.lora_factors:
            self._untrack_variable(factor)
        self.lora_kernel_a = self.lora_kernel_b = self.lora_rank = self.lora_alpha = None
        self._kernel.trainable = True

    @property
    def lora_factors(self):
        """Returns LoRA's two variables, the second one without the columns that it has not."""
        return self.lora_kernel_a, self._lora_b

    @property
    def lora_kernel_b(self):
        """Returns LoRA's second factor, `(rank, units)`, with 0 where a column has no addition."""
        return self._lora_b if all(self.lora_parts) else _widened(self._lora_b, self.lora_parts)

    @lora_kernel_b.setter
    def lora_kernel_b(self, variable):
        self._lora_b = variable

    # === Files ===

    def save_own_variables(self, store):
        with self._without_lora():
            super().save_own_variables(store)
        if self.lora_enabled:
            store["lora_scale"] = np.array(self.lora_alpha / self.lora_rank)
            store["lora_parts"] = np.array(self.lora_parts)
            for name, factor in zip(_FACTORS, self.lora_factors, strict=True):
                store[name] = factor

    def load_own_variables(self, store):
        values = {key: store[key] for key in store.keys()}  # noqa: SIM118
        saved = {key: values.pop(key) for key in list(values) if key.startswith("lora_")}
        counted = _FACTORS if self.lora_enabled and values else ()  # by Keras, as variables
        with self._without_lora():
            super().load_own_variables({**values, **dict.fromkeys(counted)})
        if self.lora_enabled:
            self._check_same_additions(saved)
            for name, factor in zip(_FACTORS, self.lora_factors, strict=True):
                factor.assign(saved.get(name, np.zeros(factor.shape, "float32")))
        elif saved:
            self._add_product(saved)

    def _check_same_additions(self, saved):
        own = self.lora_rank, self.lora_alpha / self.lora_rank, tuple(self.lora_parts)
        if saved and own != _described(saved):
            raise ValueError(
                "The model and the file must have the same LoRA. Received, as rank, scale and "
                f"parts of the columns: {_described(saved)} in the file, {own} in {self.path!r}."
            )

    def _add_product(self, saved):
        """Adds what a file has of LoRA to the kernel of a layer without it."""
        if self.quantization_mode is not None:
            raise ValueError(
                "LoRA of a file can't be added to quantized weights. Received: a file with LoRA "
                f"for {self.path!r}, which has none. Enable the same LoRA before loading."
            )
        _, scale, parts = _described(saved)
        a, b = (ops.convert_to_tensor(saved[name]) for name in _FACTORS)
        product = ops.matmul(a, _widened(b, parts))
        self._kernel.assign(self._kernel + ops.cast(scale * product, self._kernel.dtype))

    @contextlib.contextmanager
    def _without_lora(self):
        enabled, self.lora_enabled = self.lora_enabled, False
        try:
            yield
        finally:
            self.lora_enabled = enabled


def _widened(b, parts):
    """Returns a factor's columns in their places, with 0 in the parts that have none."""
    columns = iter(ops.split(ops.convert_to_tensor(b), sum(parts), axis=-1))
    zeros = ops.zeros((b.shape[0], b.shape[1] // sum(parts)), b.dtype)
    return ops.concatenate([next(columns) if part else zeros for part in parts], axis=-1)


def _described(saved):
    parts = tuple(bool(part) for part in saved["lora_parts"])
    return saved["lora_kernel_a"].shape[1], float(saved["lora_scale"]), parts
