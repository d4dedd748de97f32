"""The product of a linear map."""

from keras import ops

from kgpt.distribution import num_devices, pin
from kgpt.kernels.platform import custom_gradient, is_jax_on_cpu
from kgpt.kernels.platform import matmul as product


def reference(inputs, kernel):
    """Returns `inputs` `(..., inputs)` times `kernel` `(inputs, units)`."""
    return product(inputs, ops.convert_to_tensor(kernel))


def matmul(inputs, kernel, training: bool = False):
    """Returns the same; on JAX's CPU with a gradient of the kernel that XLA computes faster.

    That gradient is a product of inputs and upstream gradients, summed over positions, whose left
    side XLA transposes in memory first. JAX puts the gradients there, which in a residual stream
    are sums over all later layers that XLA recomputes while it copies them. Here the inputs are on
    the left.

    Args:
        inputs: float tensor `(..., inputs)`.
        kernel: float tensor or variable `(inputs, units)`.
        training: bool. Whether the result will be differentiated.
    """
    if training and is_jax_on_cpu():
        return _with_inputs_on_the_left(inputs, ops.convert_to_tensor(kernel))
    return reference(inputs, kernel)


def affine(inputs, kernel, bias=None, training: bool = False, split: str | None = None):
    """Returns `inputs W + b`; on several devices, each one's part of the rows and of the width.

    Args:
        inputs: float tensor `(..., inputs)`.
        kernel: float tensor or variable `(inputs, units)`.
        bias: float tensor or variable `(units,)`, or None.
        training: bool. Whether the result will be differentiated.
        split: which width the devices of the model axis divide: `"inputs"`; `"outputs"`;
            `"thirds"`, each third of the outputs by itself, which are then
            `(..., 3, units / 3)` on such devices; or None.
    """
    if split == "thirds" and num_devices("model") > 1:
        return _in_thirds(inputs, kernel, bias)
    outputs = matmul(inputs, kernel, training)
    outputs = outputs if bias is None else ops.add(outputs, bias)
    return pin(outputs, "batch", ..., "model" if split == "outputs" else None)


def _in_thirds(inputs, kernel, bias):
    """Moves the kernel to the devices of its heads rather than the activations to theirs."""
    rows = pin(ops.convert_to_tensor(kernel), "model")
    thirds = pin(ops.reshape(rows, (kernel.shape[0], 3, -1)), None, None, "model")
    outputs = ops.tensordot(inputs, thirds, axes=1)
    outputs = outputs if bias is None else ops.add(outputs, ops.reshape(bias, (3, -1)))
    return pin(outputs, "batch", ..., "model")


@custom_gradient
def _with_inputs_on_the_left(inputs, kernel):
    def gradient(upstream):
        rows = ops.reshape(inputs, (-1, kernel.shape[0]))
        d_rows = ops.reshape(upstream, (-1, kernel.shape[1]))
        d_inputs = ops.matmul(upstream, ops.transpose(kernel))
        return d_inputs, ops.matmul(ops.transpose(rows), d_rows)

    return ops.matmul(inputs, kernel), gradient
