"""AdamW as GPT-1's code has it: decay on matrices, layer-wise rates, weights of 16 bits."""

import re

import keras
from keras import ops

from kgpt.arguments import checked, learning_rate_or_schedule
from kgpt.kernels.platform import wide

_BLOCK = re.compile(r"(?:^|/)decoder_block_(\d+)/")
_EMBEDDING = re.compile(r"(?:^|/)(?:token|position)_embedding/")


class ByUpdate:
    """An optimizer whose schedule stands still while the gradients of an update are averaged.

    Keras's goes on with each batch: an update would have the rate of its last one.
    """

    def _get_current_learning_rate(self):
        batches, rate = self.gradient_accumulation_steps, self._learning_rate
        if batches and isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return rate(self.iterations * batches)  # the first batch of the update
        return super()._get_current_learning_rate()


@keras.saving.register_keras_serializable(package="kgpt")
class AdamW(ByUpdate, keras.optimizers.AdamW):
    """Keras's AdamW, with weight decay on matrices only, and two options for fine-tuning.

    Biases and the gains of layer norms, which are vectors, do not decay (GPT-1, section 4.1).
    Unlike `exclude_from_weight_decay`, which excludes more, the rule survives saving and loading.

    Args:
        learning_rate: as for `keras.optimizers.AdamW`.
        *args: likewise.
        **kwargs: likewise.
        layer_decay: float in (0, 1]. The rate and the decay of each decoder block are this times
            those of the block above it. The topmost block has it once, the embedding once more
            than the first block, and what is above the blocks has the full rate (Howard and Ruder
            2018, section 3.2; Clark et al. 2020, appendix B).
        exact: bool. Whether the decay is multiplied by Adam's bias correction as well, as in
            GPT-1's released code. In the first 100 to 200 updates it is then 3 to 6 times smaller.

    Raises:
        ValueError: for arguments out of range.
        TypeError: for keywords that are no arguments, with the one that was probably meant.

    Example:
        lm.compile(kgpt.recipes.AdamW(1e-3, weight_decay=0.01, layer_decay=0.9))
    """

    @checked(passes_on=keras.optimizers.AdamW, learning_rate=learning_rate_or_schedule)
    def __init__(
        self,
        learning_rate: object = 0.001,
        *args,
        layer_decay: float = 1.0,
        exact: bool = False,
        **kwargs,
    ):
        super().__init__(learning_rate, *args, **kwargs)
        self.layer_decay = layer_decay
        self.exact = exact

    def build(self, variables):
        self._shares = _shares_by_depth([v.path for v in variables], self.layer_decay)
        super().build(variables)

    def add_variable(self, *args, dtype=None, name=None, **kwargs):
        if (name or "").endswith(("momentum", "velocity", "velocity_hat")):
            dtype = wide(dtype)
        return super().add_variable(*args, dtype=dtype, name=name, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = learning_rate * self._share(variable)
        super().update_step(gradient, _InFloat32.where_narrow(variable), learning_rate)

    def _var_key(self, variable):
        return super()._var_key(getattr(variable, "narrow", variable))

    def _use_weight_decay(self, variable):
        return len(variable.shape) > 1 and super()._use_weight_decay(variable)

    def _share(self, variable):
        """Returns the share of the learning rate that a variable has."""
        return self._shares[self._get_variable_index(variable)]

    def _apply_weight_decay(self, variables):
        if self.weight_decay is None:
            return
        weight_decay, correction = self.weight_decay, 1.0
        if self.exact:
            step = ops.cast(self.iterations + 1, "float32")
            correction = ops.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        by_share = {}
        for variable in filter(self._use_weight_decay, variables):
            by_share.setdefault(self._share(variable), []).append(variable)
        try:
            for share, group in by_share.items():
                self.weight_decay = weight_decay * share * correction
                super()._apply_weight_decay(group)
        finally:
            self.weight_decay = weight_decay

    def get_config(self):
        return {**super().get_config(), "layer_decay": self.layer_decay, "exact": self.exact}


class _InFloat32:
    """A variable of 16 bits as an optimizer sees it that computes in float32.

    In bfloat16 Adam's `beta_2` of 0.999 is 1: its bias correction would make each update 0.
    """

    def __init__(self, narrow):
        self.narrow, self.dtype = narrow, "float32"

    @classmethod
    def where_narrow(cls, variable):
        return cls(variable) if variable.dtype in ("bfloat16", "float16") else variable

    def __getattr__(self, name):
        return getattr(self.narrow, name)

    def assign_sub(self, value):
        new = ops.cast(self.narrow, "float32") - value
        self.narrow.assign(ops.cast(new, self.narrow.dtype))  # rounded once


def _shares_by_depth(paths: list[str], layer_decay: float) -> list[float]:
    blocks = [_BLOCK.search(path) for path in paths]
    num_blocks = 1 + max((int(found[1]) for found in blocks if found), default=-1)
    depths = [
        num_blocks - int(block[1]) if block else (num_blocks + 1) * bool(_EMBEDDING.search(path))
        for path, block in zip(paths, blocks, strict=True)
    ]
    return [layer_decay**depth for depth in depths]
