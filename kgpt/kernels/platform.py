"""What the kernels ask of the backend: its device, an order of computation, a custom gradient."""

import contextlib
import functools
import os
import re
import weakref

import keras
import numpy as np
from keras import ops

from kgpt.distribution import axis_name, num_devices, pin, process


@functools.cache
def device() -> str:
    """Returns what the active backend runs on: "cpu", "gpu" (CUDA), "tpu" or the backend's name."""
    if keras.config.backend() == "torch":
        name = ops.zeros(()).device.type
        return "gpu" if name == "cuda" else name
    names = [name.split(":")[0].lower() for name in keras.distribution.list_devices()]
    return next((name for name in names if name != "cpu"), "cpu")


def has_accelerator() -> bool:
    """Returns whether the active backend runs on a GPU or TPU."""
    return device() != "cpu"


def is_jax_on_cpu() -> bool:
    """Returns whether the active backend is JAX on a CPU."""
    return keras.config.backend() == "jax" and not has_accelerator()


def cuda_compute_capability() -> tuple[int, int]:
    """Returns the compute capability of the GPU that JAX runs on; (0, 0) without a CUDA device."""
    import jax

    found = re.fullmatch(r"(\d+)\.(\d+)", getattr(jax.local_devices()[0], "compute_capability", ""))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def is_static_length(length, at_least: int = 1) -> bool:
    """Returns whether a length is known when the step is compiled, and at least so large.

    Elsewhere it is None, a tensor, or a symbol of JAX's export.
    """
    return isinstance(length, int) and length >= at_least


def checked_policy(dtype=None):
    """Returns a dtype policy; Keras's own if None.

    Args:
        dtype: name of a dtype policy, or the policy.

    Raises:
        ValueError: for a policy of another kind than floats, and for float64 on JAX while it has
            32-bit numbers only.
    """
    try:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    except (TypeError, ValueError):
        raise ValueError(
            "dtype must be a dtype policy of Keras, or the name of one. "
            f'Received: dtype={dtype!r:.80}. Try "float32" or "mixed_bfloat16".'
        ) from None
    if isinstance(policy, keras.dtype_policies.QuantizedDTypePolicy):
        raise ValueError(
            f"A model is quantized once it is made. Received: dtype={policy.name!r}. Try "
            f'dtype="float32", and model.quantize({policy.quantization_mode!r}) afterwards.'
        )
    dtypes = {policy.compute_dtype, policy.variable_dtype}
    if not dtypes <= {"float16", "bfloat16", "float32", "float64"}:
        raise ValueError(
            f"A model computes with floats. Received: dtype={policy.name!r}. Try one of "
            '"float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float64".'
        )
    if "float64" in dtypes and keras.config.backend() == "jax":
        import jax

        if not jax.config.jax_enable_x64:
            raise ValueError(
                "JAX has 32-bit numbers unless it is told otherwise, and would compute in float32. "
                f"Received: dtype={policy.name!r}. Try JAX_ENABLE_X64=1 in the environment, or "
                'jax.config.update("jax_enable_x64", True), before the model is made.'
            )
    return policy


def wide(dtype) -> str:
    """Returns what sums and exponentials of a dtype are computed in: float32, or its float64.

    Keras's own `result_type` gives float32 for float64 and float32.
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def matmul(x, y):
    """`ops.matmul`, which on PyTorch would compute in float32 what is float64."""
    return x @ y if keras.config.backend() == "torch" else ops.matmul(x, y)


def to_logits(embedding, hidden_states):
    """Returns `h E^T` as a `keras.layers.ReversibleEmbedding` does, in float64 too."""
    if embedding.compute_dtype != "float64" or embedding.quantization_mode:
        return embedding(hidden_states, reverse=True)
    return matmul(hidden_states, ops.transpose(embedding.embeddings))


def custom_gradient(function):
    """`ops.custom_gradient` with one signature on all backends.

    Args:
        function: takes tensors (no variables: TensorFlow refuses them) and returns its output and a
            function from the gradient of the output to the gradients of the tensors.

    Returns:
        The function from the tensors to the output.
    """

    def with_keyword(*inputs):
        output, gradient = function(*inputs)

        def keras_gradient(*args, upstream=None):
            return gradient(args[0] if upstream is None else upstream)

        return output, keras_gradient

    run = ops.custom_gradient(with_keyword)

    def run_in_graph(*inputs):
        with gradients_freed_with_graph():
            return run(*inputs)

    return run_in_graph if keras.config.backend() == "tensorflow" else run


@contextlib.contextmanager
def gradients_freed_with_graph():
    """Lets TensorFlow free custom gradients with the graph that they are made in, inside it.

    It registers each by a name of its own, for ever; a gradient holds tensors and so its graph, of
    each model that ever was. Here the graph holds the gradient, to which the registry refers
    weakly. Does nothing outside a graph, and on other backends.
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

    if keras.config.backend() != "tensorflow" or tf.executing_eagerly():
        yield
        return
    from tensorflow.python.framework.ops import gradient_registry

    entries = gradient_registry._registry  # nothing public takes an entry back
    before = set(entries)
    yield
    graph = tf.compat.v1.get_default_graph()
    graph.gradients_held = held = getattr(graph, "gradients_held", [])
    for name in entries.keys() - before:
        held.append(entries[name]["type"])
        entries[name]["type"] = _weakly(held[-1], functools.partial(entries.pop, name, None))


def _weakly(function, when_gone):
    """Returns a function that calls another one as long as somebody else holds that."""
    weak = weakref.ref(function, lambda _: when_gone())
    return lambda *args: weak()(*args)


def barrier(x, after):
    """Returns `x`, but not before `after` has been computed: an optimization barrier.

    For backward passes that recompute what the forward pass computed, or that take slices of its
    arrays. TensorFlow runs each operation as soon as its inputs are there, which would be in the
    forward pass, and keeps the result. XLA finds that it has computed the same before and keeps
    that; on TensorFlow it still may. PyTorch runs operations in the order of the program.

    Args:
        x: tensor.
        after: float tensor to wait for: in a backward pass, the upstream gradient.

    Returns:
        `x`.
    """
    backend = keras.config.backend()
    if is_jax_on_cpu():  # where XLA drops barriers before it looks for equal expressions
        one_entry = after[(slice(1),) * len(after.shape)]
        return x + ops.cast(ops.any(ops.isnan(one_entry)), x.dtype)  # plus zero
    if backend == "jax":
        import jax

        return jax.lax.optimization_barrier((x, after))[0]
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.control_dependencies([after]):
            return tf.identity(x)
    return x


def has_static_rank(x) -> bool:
    """Returns False for tensors in a TensorFlow function that has been called with several ranks.

    Such a function (`reduce_retracing=True`, as Keras's steps are) is traced again without a rank.
    """
    return getattr(x.shape, "rank", 0) is not None


def check_axes(name: str, shape, *axes: str):
    """Raises ValueError for a shape with another number of axes, if that is known."""
    if getattr(shape, "rank", 0) is not None and len(shape) != len(axes):
        raise ValueError(
            f"{name} must have shape ({', '.join(axes)}). Received: shape {tuple(shape)}."
        )


def check_shape_of(name: str, x, rank: int | None = None, **others):
    """Raises ValueError for arrays or tensors of another shape than `x`, as far as it is known.

    Args:
        name: str. What `x` is called.
        x: array or tensor; what has no shape passes, in its place and in that of the others.
        rank: optional int. How many of the first axes of `x` the others have; None for all.
        **others: arrays or tensors, or None.
    """
    for other, value in others.items():
        if not all(hasattr(part, "shape") and has_static_rank(part) for part in (x, value)):
            continue
        expected, received = tuple(x.shape)[:rank], tuple(value.shape)
        pairs = [
            p for p in zip(expected, received, strict=False) if all(isinstance(n, int) for n in p)
        ]
        if len(expected) != len(received) or any(a != b for a, b in pairs):
            raise ValueError(
                f"{other} must have a number for each position of {name}, shape {expected}. "
                f"Received: shape {received}."
            )


def dynamic_shape(x):
    """Returns the shape of a TensorFlow tensor as a tensor; `ops.shape` needs a static rank."""
    import tensorflow as tf

    return tf.shape(x)


def sum_over_replicas(x):
    """Returns a scalar summed over the replicas of a `tf.distribute` strategy; elsewhere itself."""
    replicas = num_replicas()
    if replicas == 1:
        return x
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)


def num_replicas() -> int:
    """Returns how many replicas of a `tf.distribute` strategy run the step that is traced."""
    if keras.config.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def by_shards(function, is_sum: tuple[bool, ...]):
    """Returns a function of rows that each device of the batch axis computes for its own rows.

    Args:
        function: takes tensors `(rows, ...)` and returns a tuple of tensors, each a sum over rows
            or itself `(rows, ...)`. It may be computed for a part of the rows.
        is_sum: which of them are sums.
    """

    def of_all_rows(*tensors):
        shards = num_devices("batch")
        if shards == 1 or tensors[0].shape[0] % shards:
            return function(*tensors)
        import jax

        tensors = [pin(ops.reshape(x, (shards, -1, *x.shape[1:])), "batch") for x in tensors]
        found = jax.vmap(function, spmd_axis_name=axis_name("batch"))(*tensors)
        return tuple(
            ops.sum(x, axis=0) if adds else ops.reshape(x, (-1, *x.shape[2:]))
            for x, adds in zip(found, is_sum, strict=True)
        )

    return of_all_rows


def optimizers_take_fewer_variables() -> bool:
    """Returns whether a Keras optimizer may update a part of what it was built for."""
    return keras.config.backend() != "jax"


# === Several processes ===


def is_in_parts(variable) -> bool:
    """Returns whether the processes hold different parts of a variable."""
    value = getattr(variable, "value", None)
    is_whole = getattr(value, "is_fully_addressable", True) or value.is_fully_replicated
    return not is_whole


def in_each_process(action, *args):
    """Calls an action in all processes; returns its result when it has ended in all of them.

    Raises:
        Exception: what the action raises; where it has failed in another process alone, an OSError
            if it is one there, and else a RuntimeError.
    """
    if process()[1] == 1:
        return action(*args)
    from jax.experimental import multihost_utils

    error = result = None
    try:
        result = action(*args)
    except Exception as raised:
        error = raised
    failures = np.array([error is not None, isinstance(error, OSError)])
    failures = multihost_utils.process_allgather(failures)  # (processes, 2)
    if error is not None:
        raise error
    if failures[:, 0].any():
        number = int(failures[:, 0].argmax())
        raise (OSError if failures[number, 1] else RuntimeError)(
            f"Process {number} has failed: see there."
        )
    return result


def in_first_process(action, *args):
    """Calls an action in the first process, while the others wait; returns its result there alone.

    Raises:
        Exception: as `in_each_process`.
    """
    return in_each_process(action if process()[0] == 0 else lambda *_: None, *args)


def of_first_process(text: str) -> str:
    """Returns the text, of up to 255 bytes, that the first process gives; all of them call it."""
    if process()[1] == 1:
        return text
    from jax.experimental import multihost_utils

    letters = np.frombuffer(text.encode().ljust(255, b"\0"), "uint8")
    return bytes(multihost_utils.broadcast_one_to_all(letters)).rstrip(b"\0").decode()


def least_of_processes(number: int) -> int:
    """Returns the least of the numbers that the processes give; all of them call it."""
    if process()[1] == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.array(number)).min())


def num_torch_processes() -> int:
    """Returns how many processes PyTorch's launcher or process group has, which `fit` ignores."""
    is_torch = keras.config.backend() == "torch"
    if not is_torch or keras.distribution.distribution() is not None:
        return 1
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))  # of torchrun
