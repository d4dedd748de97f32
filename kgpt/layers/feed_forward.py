"""The position-wise network of a decoder block."""

import math

import keras
from keras import ops

from kgpt.kernels.platform import barrier
from kgpt.layers.dense import Dense
from kgpt.layers.embedding import normal_initializer


@keras.saving.register_keras_serializable(package="kgpt")
def gelu_tanh(x):
    """GELU by its tanh approximation, as GPT-1 and GPT-2 have it.

    `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (Hendrycks & Gimpel 2016, section 2).

    PyTorch has one kernel for it. On TensorFlow its derivative is made in the forward pass, by the
    few operations that the two have in common, and it is all that is kept for the backward pass.
    On JAX, where XLA makes them cheaply, both passes do, and what is kept is `x`.
    """
    if keras.config.backend() == "torch":
        return keras.activations.gelu(x, approximate=True)
    return _gelu_tanh(x)


@ops.custom_gradient
def _gelu_tanh(x):
    y, derivative = _gelu_tanh_and_derivative(x)

    def gradient(*args, upstream=None):
        upstream = args[0] if upstream is None else upstream
        if keras.config.backend() == "jax":
            return _gelu_tanh_and_derivative(barrier(x, after=upstream))[1] * upstream
        return derivative * upstream

    return y, gradient


def _gelu_tanh_and_derivative(x):
    # 0.5 (1 + tanh(z)) is sigmoid(2 z).
    scale = 2 * math.sqrt(2 / math.pi)
    cubic = (0.044715 * scale) * ops.square(x)
    gate = ops.sigmoid(x * (cubic + scale))
    y = x * gate
    return y, gate + y * (1 - gate) * (3 * cubic + scale)


@keras.saving.register_keras_serializable(package="kgpt")
def relu_squared(x):
    """`max(x, 0)^2` (So et al. 2021, section 4.1)."""
    return keras.ops.square(keras.ops.relu(x))


_ACTIVATIONS = {"gelu_tanh": gelu_tanh, "relu_squared": relu_squared}


@keras.saving.register_keras_serializable(package="kgpt")
class FeedForward(keras.layers.Layer):
    """Two linear maps with an activation between them: `W_2 gelu(W_1 x + b_1) + b_2`.

    Applied to each position alone (GPT-1, section 4.1; Vaswani et al. 2017, equation 2).

    Args:
        intermediate_dim: int. Width between the two maps; GPT has 4 times the input's.
        activation: name or function; `"gelu_tanh"` is GPT's. Beside Keras's names there is
            `"relu_squared"`.
        kernel_initializer: initializer of the first map; N(0, 0.02) if None.
        output_initializer: initializer of the second map; `kernel_initializer` if None.

    Call arguments:
        hidden_states: float tensor `(batch, length, hidden_dim)`.

    Returns:
        float tensor `(batch, length, hidden_dim)`.
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation="gelu_tanh",
        kernel_initializer=None,
        output_initializer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        is_own = isinstance(activation, str) and activation in _ACTIVATIONS
        self.activation = _ACTIVATIONS[activation] if is_own else keras.activations.get(activation)
        self.kernel_initializer = normal_initializer(kernel_initializer)
        self.output_initializer = normal_initializer(output_initializer or kernel_initializer)
        self.supports_masking = True

    def build(self, hidden_states_shape):
        self.expansion = Dense(
            self.intermediate_dim,
            activation=self.activation,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="expansion",
        )
        self.expansion.build(hidden_states_shape)
        self.output_projection = Dense(
            hidden_states_shape[-1],
            kernel_initializer=self.output_initializer,
            dtype=self.dtype_policy,
            name="output_projection",
        )
        self.output_projection.build((*hidden_states_shape[:-1], self.intermediate_dim))
        self.built = True

    def call(self, hidden_states):
        return self.output_projection(self.expansion(hidden_states))

    def compute_output_shape(self, hidden_states_shape):
        return hidden_states_shape

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
