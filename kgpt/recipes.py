"""The papers' optimizers and schedules, made of Keras's own."""

import keras

PRETRAINING_RATE = 2.5e-4  # the peak, for 117 million parameters (GPT-1, section 4.1)


@keras.saving.register_keras_serializable(package="kgpt")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW, with weight decay on matrices only.

    Biases and the gains of layer norms, which are vectors, do not decay (GPT-1, section 4.1).
    Unlike `exclude_from_weight_decay`, the rule survives saving and loading.
    """

    def build(self, variables):
        self.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
        super().build(variables)


@keras.saving.register_keras_serializable(package="kgpt")
class WarmupCosine(keras.optimizers.schedules.CosineDecay):
    """Linear warm-up from 0, then a cosine down to `alpha` times the peak (GPT-1, section 4.1).

    Args:
        learning_rate: float. The peak.
        steps: int. Length of the whole schedule, warm-up included.
        warmup_steps: int. Length of the warm-up; the paper's 2000 if None, but at most a tenth of
            `steps`.
        alpha: float. Rate at the end, as a share of the peak.
        start: int. The optimizer's step at which the schedule begins.

    Raises:
        ValueError: if `steps` is not a positive int or `warmup_steps` does not fit in it.
    """

    def __init__(self, learning_rate, steps, warmup_steps=None, alpha=0.0, start=0):
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(
                "steps must be the number of updates, an int of at least 1. "
                f"Received: steps={steps!r}."
            )
        if warmup_steps is None:
            warmup_steps = min(2000, steps // 10)
        if not 0 <= warmup_steps <= steps:
            raise ValueError(
                "warmup_steps must lie between 0 and steps. "
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
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "alpha": self.alpha,
            "start": self.start,
        }


def pretraining_optimizer(
    steps: int,
    learning_rate: float = PRETRAINING_RATE,
    warmup_steps: int | None = None,
    final_learning_rate: float = 0.0,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    gradient_accumulation_steps: int | None = None,
) -> AdamW:
    """The optimizer of GPT-1's pretraining (section 4.1).

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
        ValueError: if `steps` is not a positive int or `warmup_steps` does not fit in it.
    """
    # Keras counts a step for every batch, accumulated or not.
    batches = gradient_accumulation_steps or 1
    if warmup_steps is not None:
        warmup_steps *= batches
    return AdamW(
        WarmupCosine(
            learning_rate, steps * batches, warmup_steps, alpha=final_learning_rate / learning_rate
        ),
        weight_decay=weight_decay,
        beta_1=beta_1,
        beta_2=beta_2,
        epsilon=1e-8,
        global_clipnorm=clip_norm,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
