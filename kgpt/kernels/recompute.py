"""Recomputation: of a layer's forward pass its input alone is kept, the rest is computed again."""

import functools

import keras
from keras import ops, tree
from keras.src.backend import AutocastScope, get_stateless_scope

from kgpt.kernels.platform import barrier, gradients_freed_with_graph

_SEED = "seed_generator_state"  # as Keras names it


def recomputed(call):
    """Decorates the `call` of a layer, whose attribute `recompute` turns recomputation on.

    The backward pass then runs the layer again (Chen et al. 2016, section 3): memory for one array
    of the input's size, for the time of a second forward pass. That has the random numbers of the
    first, so gradients are the same to the last digit.

    `keras.RematScope` fails on JAX and TensorFlow here, and on PyTorch its second pass draws other
    numbers for dropout.

    Args:
        call: the method, of a float tensor `x`, of further tensors, without a gradient, or None,
            and of `training`.
    """

    @functools.wraps(call)
    def with_recomputation(layer, x, *args, training=None, **kwargs):
        is_second = isinstance(get_stateless_scope(), _Scope)
        if not (layer.recompute and training) or is_second:
            return call(layer, x, *args, training=training, **kwargs)
        ways = {"jax": _on_jax, "tensorflow": _on_tensorflow, "torch": _on_torch}
        passes = _Passes(call, layer)
        y, states = ways[keras.config.backend()](passes, x, (args, kwargs))
        for seed, state in zip(passes.seeds, states, strict=True):
            seed.assign(state)
        return y

    return with_recomputation


class _Scope(keras.StatelessScope):
    """In which variables have given values, and the layer runs without recomputation."""


class _Passes:
    """The two forward passes of a layer as functions of all that they depend on.

    Attributes:
        weights: the layer's trainable variables.
        seeds: the states of its random numbers.
        fixed: its other variables.
    """

    def __init__(self, call, layer):
        self.layer = layer
        self.first = functools.partial(call, layer)
        others = layer.non_trainable_variables
        self.weights = layer.trainable_variables
        self.seeds = [v for v in others if v.name == _SEED]
        self.fixed = [v for v in others if v.name != _SEED]

    def values(self):
        """Returns the values of weights, seeds and fixed variables, each a list."""
        with AutocastScope(None):
            groups = self.weights, self.seeds, self.fixed
            return [[ops.convert_to_tensor(v.value) for v in group] for group in groups]

    def run(self, values, x, others, second=False):
        """Returns the layer's output, and the states of its random numbers afterwards."""
        args, kwargs = others
        variables = self.weights + self.seeds + self.fixed
        # A backward pass is outside of the contexts that Keras's call of the layer opens.
        function = self.layer if second else self.first
        with _Scope(list(zip(variables, tree.flatten(values), strict=False))) as scope:
            y = function(x, *args, training=True, **kwargs)
            return y, [scope.get_current_value(seed) for seed in self.seeds]


def _on_jax(passes, x, others):
    import jax

    # Not `jax.checkpoint`: on a CPU XLA merges its second pass with the first (see `barrier`).
    run = jax.custom_vjp(lambda *inputs: passes.run(*inputs))

    def first(*inputs):
        return passes.run(*inputs), inputs

    def gradient(inputs, upstream):
        (weights, seeds, fixed), x, others = inputs
        d_y, _ = upstream
        x, seeds, others = _after(d_y, (x, seeds, others))

        def second(weights, x):
            return passes.run([weights, seeds, fixed], x, others, second=True)[0]

        d_weights, d_x = jax.vjp(second, weights, x)[1](d_y)
        return [d_weights, None, None], d_x, None

    run.defvjp(first, gradient)
    return run(passes.values(), x, others)


def _on_tensorflow(passes, x, others):
    import tensorflow as tf

    # Keras hands over TensorFlow's variables, which change.
    x, (weights, seeds, fixed) = tree.map_structure(tf.identity, (x, passes.values()))

    @tf.custom_gradient
    def run(x, *weights):
        y, states = passes.run([list(weights), seeds, fixed], x, others)

        def gradient(d_y, *_):
            again = _after(d_y, (x, seeds, others))
            with tf.GradientTape() as tape:
                tape.watch([again[0], *weights])
                y, _ = passes.run([list(weights), again[1], fixed], again[0], again[2], second=True)
            return tape.gradient(
                y, [again[0], *weights], d_y, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )

        return (y, *states), gradient

    with gradients_freed_with_graph():
        y, *states = run(x, *weights)
    return y, states


def _on_torch(passes, x, others):
    from torch.utils.checkpoint import checkpoint

    weights, seeds, fixed = passes.values()
    values = [weights, [seed.clone() for seed in seeds], fixed]  # seeds are assigned in place
    is_second = iter([False])
    # It keeps PyTorch's own random state too, which fused attention draws its dropout from.
    return checkpoint(
        lambda x: passes.run(values, x, others, second=next(is_second, True)),
        x,
        use_reentrant=False,
    )


def _after(event, tensors):
    """Returns a structure of tensors and None, of which nothing is computed before `event`."""
    return tree.map_structure(lambda t: None if t is None else barrier(t, after=event), tensors)
