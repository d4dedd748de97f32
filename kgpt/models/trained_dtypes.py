"""The dtypes of the weights that a fit trains: what is refused, and several in one optimizer."""

import functools

from keras import ops

from kgpt import recipes
from kgpt.kernels.platform import wide


def check_trained_dtypes(model):
    """Raises ValueError for what can't learn, and lets the optimizer clip several dtypes.

    Args:
        model: a compiled model, before it is trained.
    """
    backbone = model.backbone
    if backbone.variable_dtype == "float16" and backbone.trainable_variables:
        raise ValueError(
            "A backbone in float16 can't be trained: small gradients and the optimizer's epsilon "
            f"are 0 there. Received: a backbone with dtype={backbone.dtype_policy.name!r}. Make it "
            'with dtype="mixed_float16", whose weights are float32 and whose loss Keras scales, '
            "and give it this one's weights with set_weights; or freeze it."
        )
    dtypes = {v.dtype for v in model.trainable_variables}
    beta = getattr(model.optimizer, "beta_2", None)
    is_own = isinstance(model.optimizer, recipes.AdamW)  # which computes in float32
    if "bfloat16" in dtypes and beta and not is_own and float(ops.cast(beta, "bfloat16")) == 1:
        raise ValueError(
            f"In bfloat16 a beta_2 of {beta} is 1, and each update of Adam's is 0. Received: "
            f"{type(model.optimizer).__name__} for weights in bfloat16. Try "
            "kgpt.recipes.AdamW, which computes in float32, or make the backbone with "
            'dtype="mixed_bfloat16".'
        )
    if len(dtypes) > 1 and model.optimizer is not None:
        # Keras multiplies all gradients by one number, which TensorFlow does not for another dtype.
        clip = type(model.optimizer)._clip_gradients.__get__(model.optimizer)
        widest = max(map(wide, dtypes))
        model.optimizer._clip_gradients = functools.partial(_clip_in, widest, clip)


def _clip_in(dtype, clip, gradients):
    clipped = clip([None if g is None else ops.cast(g, dtype) for g in gradients])
    return [
        c if g is None else ops.cast(c, g.dtype) for c, g in zip(clipped, gradients, strict=True)
    ]
