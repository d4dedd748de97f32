"""The weights that Keras takes out of a model while it runs on JAX."""

import contextlib

_PARTS = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)


@contextlib.contextmanager
def weights_come_back(model):
    """Inside, an error or an interrupt between two steps leaves the model its weights.

    Keras takes them out of the variables before the first batch is read, and gives them back at the
    end; of an evaluation or a prediction that raises, never.
    """
    take = getattr(model, "_get_jax_state", None)
    if take is None or "_get_jax_state" in vars(model):  # in the validation of a fit
        yield
        return

    def take_and_keep(**which):
        state = take(**which)
        names = [name for name in _PARTS if which.get(name)]
        model._jax_state, model._jax_state_synced = dict(zip(names, state, strict=True)), False
        return state

    model._get_jax_state = take_and_keep
    try:
        yield
    except BaseException:
        model.jax_state_sync()
        raise
    finally:
        del model._get_jax_state
