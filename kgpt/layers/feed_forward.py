"""The position-wise network of a decoder block."""

import keras
from keras import ops

from kgpt.arguments import FixedOnceBuilt, checked
from kgpt.initializers import normal_initializer
from kgpt.kernels.gelu import gelu
from kgpt.layers.dense import built_dense


@keras.saving.register_keras_serializable(package="kgpt")
def gelu_tanh(x):
    """Returns GELU by its tanh approximation, GPT's activation."""
    return gelu(x)


@keras.saving.register_keras_serializable(package="kgpt")
def relu_squared(x):
    """Returns `max(x, 0)^2` (So et al. 2021, section 4.1)."""
    return ops.square(ops.relu(x))


_ACTIVATIONS = {"gelu_tanh": gelu_tanh, "relu_squared": relu_squared}


@keras.saving.register_keras_serializable(package="kgpt")
class FeedForward(FixedOnceBuilt, keras.layers.Layer):
    """Two linear maps with an activation between them: `W_2 gelu(W_1 x + b_1) + b_2`.

    Applied to each position alone (GPT-1, section 4.1; Vaswani et al. 2017, equation 2).

    Args:
        intermediate_dim: int. Width between the two maps; GPT has 4 times the input's.
        activation: name or function; `"gelu_tanh"` is GPT's. Beside Keras's names there is
            `"relu_squared"`.
        kernel_initializer: initializer of the first map; N(0, 0.02) if None.
        output_initializer: initializer of the second map; `kernel_initializer` if None.
        **kwargs: `name`, `dtype` and `trainable`, as for `keras.layers.Layer`.

    Call arguments:
        hidden_states: float tensor `(batch, length, hidden_dim)`.

    Returns:
        float tensor `(batch, length, hidden_dim)`.

    Raises:
        ValueError: for a width below 1, and an activation that is neither a function nor known.
        TypeError: for keywords that are no arguments, with the one that was probably meant.

    Example:
        feed_forward = kgpt.layers.FeedForward(48, activation="relu_squared")
        hidden_states = feed_forward(np.ones((1, 5, 12), "float32"))
    """

    @checked(passes_on=keras.layers.Layer)
    def __init__(
        self,
        intermediate_dim: int,
        activation: object = "gelu_tanh",
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
        """Makes the two linear maps."""
        shape, units = hidden_states_shape, self.intermediate_dim
        self.expansion = built_dense(
            self, units, shape, self.kernel_initializer, "expansion", "outputs", self.activation
        )
        shape, units = (*shape[:-1], units), shape[-1]
        self.output_projection = built_dense(
            self, units, shape, self.output_initializer, "output_projection", "inputs"
        )
        self.built = True

    def call(self, hidden_states):
        """Returns the hidden states after the network, `(batch, length, hidden_dim)`."""
        return self.output_projection(self.expansion(hidden_states))

    def compute_output_shape(self, hidden_states_shape):
        """Returns the shape of the output."""
        return hidden_states_shape

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "output_initializer": keras.initializers.serialize(self.output_initializer),
        }
