"""The papers' optimizers and schedules, made of Keras's own, and the fastest settings."""

import keras
from keras import ops

from kgpt.adamw import AdamW
from kgpt.arguments import checked, number
from kgpt.muon import Muon
from kgpt.settings import Settings, fastest_settings

__all__ = [
    "AdamW",
    "Settings",
    "WarmupCosine",
    "WarmupLinear",
    "fast_optimizer",
    "fastest_settings",
    "finetuning_optimizer",
    "pretraining_optimizer",
]

PRETRAINING_RATE = 2.5e-4  # the peak, for 117 million parameters (GPT-1, section 4.1)
FINETUNING_RATE = 6.25e-5  # the peak (GPT-1, section 4.1)
FAST_RATE = 1e-2  # the peak, for small models
_FINETUNING_WARMUP = 0.002  # as a share of all updates

_OUTSIDE_OF_BLOCKS = r"^(?!.*decoder_block)"


@keras.saving.register_keras_serializable(package="kgpt")
class WarmupCosine(keras.optimizers.schedules.CosineDecay):
    """Linear warm-up from 0, then a cosine down to `alpha` times the peak (GPT-1, section 4.1).

    Args:
        learning_rate: float. The peak.
        steps: int. Length of the whole schedule, warm-up included.
        warmup_steps: int. Length of the warm-up; the paper's 2000 if None, but at most a tenth of
            `steps`.
        alpha: float in [0, 1]. Rate at the end, as a share of the peak.
        start: int. The optimizer's step at which the schedule begins.

    Raises:
        ValueError: for arguments out of range, and if `warmup_steps` do not fit in `steps`.

    Example:
        schedule = kgpt.recipes.WarmupCosine(2.5e-4, steps=2000, alpha=0.1)
        float(schedule(1000))
    """

    @checked(alpha=number("[0, 1]"))
    def __init__(self, learning_rate, steps, warmup_steps=None, alpha: float = 0.0, start: int = 0):
        if warmup_steps is None:
            warmup_steps = min(2000, steps // 10)
        if warmup_steps > steps:
            raise ValueError(
                "warmup_steps must not be more than steps. "
                f"Received: warmup_steps={warmup_steps}, steps={steps}."
            )
        super().__init__(
            initial_learning_rate=0.0,
            decay_steps=max(1, steps - warmup_steps),
            alpha=alpha,
            warmup_target=learning_rate,
            warmup_steps=warmup_steps,
        )
        self.learning_rate = learning_rate
        self.steps = steps
        self.start = start

    def __call__(self, step):
        return super().__call__(keras.ops.cast(step, "int32") - self.start)

    def get_config(self):
        """Returns the arguments as a dict."""
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "alpha": self.alpha,
            "start": self.start,
        }


@keras.saving.register_keras_serializable(package="kgpt")
class WarmupLinear(keras.optimizers.schedules.LearningRateSchedule):
    """The peak times `x / w` up to the share `w` of all steps, then times `1 - x` down to 0.

    `x` is the share of the steps that is done, from 0: the first update has rate 0, or the peak if
    `w` is 0. The warm-up too is multiplied by `1 - x`, as in GPT-1's released fine-tuning code.

    Args:
        learning_rate: float. The peak.
        steps: int. Length of the whole schedule, warm-up included.
        warmup: float in [0, 1]. Share of the steps that is warm-up.
        start: int. The optimizer's step at which the schedule begins.

    Raises:
        ValueError: for arguments out of range.

    Example:
        schedule = kgpt.recipes.WarmupLinear(6.25e-5, steps=600)
        float(schedule(300))
    """

    @checked
    def __init__(self, learning_rate, steps, warmup: float = _FINETUNING_WARMUP, start: int = 0):
        super().__init__()
        self.learning_rate = learning_rate
        self.steps = steps
        self.warmup = warmup
        self.start = start

    def __call__(self, step):
        x = ops.cast(step - self.start, "float32") / self.steps
        rise = ops.where(x < self.warmup, x / max(self.warmup, 1e-12), 1.0)
        return self.learning_rate * rise * ops.maximum(1 - x, 0.0)

    def get_config(self):
        """Returns the arguments as a dict."""
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup": self.warmup,
            "start": self.start,
        }


def _share_at_end(final_learning_rate: float, learning_rate: float) -> float:
    if final_learning_rate > learning_rate:
        raise ValueError(
            "final_learning_rate must not be above the peak. Received: "
            f"final_learning_rate={final_learning_rate}, learning_rate={learning_rate}."
        )
    return final_learning_rate / learning_rate


@checked
def pretraining_optimizer(
    steps: int,
    learning_rate: float = PRETRAINING_RATE,
    warmup_steps: int | None = None,
    final_learning_rate: float = 0.0,
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    gradient_accumulation_steps: int | None = None,
) -> AdamW:
    """Returns the optimizer of GPT-1's pretraining (section 4.1).

    AdamW with decay on matrices only, linear warm-up, cosine to 0, and gradients clipped by their
    global norm.

    Args:
        steps: int. Number of updates in the whole run: steps per epoch x epochs, divided by
            `gradient_accumulation_steps`.
        learning_rate: float. The peak. The paper's is for 117 million parameters; models of a few
            million do better with about 1e-3.
        warmup_steps: int. Updates until the peak; the paper's 2000 if None, but at most a tenth of
            `steps`.
        final_learning_rate: float. The rate at the last step.
        weight_decay: float. Decoupled decay, per update, as a share of the learning rate.
        clip_norm: float or None. Largest global norm of the gradients.
        beta_1: float. Decay of the mean of gradients.
        beta_2: float. Decay of the mean of squared gradients.
        gradient_accumulation_steps: int or None. Batches whose gradients are averaged into one
            update.

    Returns:
        An optimizer for `compile`.

    Raises:
        ValueError: for arguments out of range, and if `warmup_steps` do not fit in `steps`.

    Example:
        lm.compile(kgpt.recipes.pretraining_optimizer(steps=2000))
    """
    # Keras counts a step for every batch, accumulated or not.
    batches = gradient_accumulation_steps or 1
    if warmup_steps is None:
        warmup_steps = min(2000, steps // 10)
    return AdamW(
        WarmupCosine(
            learning_rate,
            steps * batches,
            warmup_steps * batches,
            alpha=_share_at_end(final_learning_rate, learning_rate),
        ),
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=1e-8,
        global_clipnorm=clip_norm,
        gradient_accumulation_steps=batches if batches > 1 else None,
    )


@checked
def finetuning_optimizer(
    steps: int,
    learning_rate: float = FINETUNING_RATE,
    warmup: float = _FINETUNING_WARMUP,
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
    layer_decay: float = 1.0,
    exact: bool = False,
    gradient_accumulation_steps: int | None = None,
) -> AdamW:
    """Returns the optimizer of GPT-1's fine-tuning (section 4.1): 3 epochs, batches of 32.

    AdamW with decay on matrices only, linear warm-up, a linear way down to 0, and gradients
    clipped by their global norm.

    To train the head alone, set `backbone.trainable = False` before `compile`; to train small
    additions to the body, `backbone.enable_lora(8)`.

    Args:
        steps: int. Number of updates in the whole run: steps per epoch x epochs, divided by
            `gradient_accumulation_steps`.
        learning_rate: float. The peak. The paper's is for 117 million parameters; models of a few
            million do better with 3e-4 to 1e-3, and so do heads and LoRA alone.
        warmup: float. Share of the updates until the peak.
        weight_decay: float. Decoupled decay, per update, as a share of the learning rate.
        clip_norm: float or None. Largest global norm of the gradients.
        layer_decay: float in (0, 1]. Layer-wise decay of the learning rate: each decoder block has
            this share of the rate of the one above it. 1 is the paper's.
        exact: bool. Whether the decay follows the released code to the last digit, as `AdamW` can.
        gradient_accumulation_steps: int or None. Batches whose gradients are averaged into one
            update.

    Returns:
        An optimizer for `compile`.

    Raises:
        ValueError: for arguments out of range.

    Example:
        classifier = kgpt.TextClassifier(lm.backbone, num_classes=2, tokenizer=tokenizer)
        classifier.compile(kgpt.recipes.finetuning_optimizer(steps=600))
    """
    batches = gradient_accumulation_steps or 1
    return AdamW(
        WarmupLinear(learning_rate, steps * batches, warmup),
        weight_decay=weight_decay,
        epsilon=1e-8,
        global_clipnorm=clip_norm,
        layer_decay=layer_decay,
        exact=exact,
        gradient_accumulation_steps=batches if batches > 1 else None,
    )


@checked
def fast_optimizer(
    steps: int,
    learning_rate: float = FAST_RATE,
    warmup_steps: int | None = None,
    final_learning_rate: float | None = None,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    gradient_accumulation_steps: int | None = None,
) -> Muon:
    """Returns Muon for the matrices of decoder blocks, with Adam for everything else.

    Muon takes the nearest semi-orthogonal matrix to the momentum as the direction of an update
    (Jordan et al. 2024), here of the size that Adam's would have (Liu et al. 2025, section 2.2).
    Embeddings, heads, biases and the gains of norms are Adam's and do not decay. For the same time
    bodies of 4 and of 8 blocks of width 256 are ahead of AdamW's in loss, and fine-tuned too, by
    what was measured on film reviews: `benchmarks/README.md`.

    Args:
        steps: int. Number of updates in the whole run: steps per epoch x epochs, divided by
            `gradient_accumulation_steps`.
        learning_rate: float. The peak, of both. The default suits models of up to a few million
            parameters; larger ones need less.
        warmup_steps: int. Updates until the peak; 3% of `steps` if None.
        final_learning_rate: float. The rate at the end of the cosine; 5% of the peak if None.
        weight_decay: float. Decoupled decay of the blocks' matrices, per update, as a share of the
            learning rate.
        clip_norm: float or None. Largest global norm of the gradients.
        gradient_accumulation_steps: int or None. Batches whose gradients are averaged into one
            update.

    Returns:
        An optimizer for `compile`.

    Raises:
        ValueError: for arguments out of range, and if `warmup_steps` do not fit in `steps`.

    Example:
        lm.compile(kgpt.recipes.fast_optimizer(steps=2000))
    """
    batches = gradient_accumulation_steps or 1
    warmup_steps = 3 * steps // 100 if warmup_steps is None else warmup_steps
    alpha = 0.05
    if final_learning_rate is not None:
        alpha = _share_at_end(final_learning_rate, learning_rate)
    return Muon(
        WarmupCosine(learning_rate, steps * batches, warmup_steps * batches, alpha),
        exclude_layers=[_OUTSIDE_OF_BLOCKS],
        weight_decay=weight_decay,
        adam_weight_decay=None,
        adam_beta_2=0.95,
        epsilon=1e-8,
        global_clipnorm=clip_norm,
        gradient_accumulation_steps=batches if batches > 1 else None,
    )
