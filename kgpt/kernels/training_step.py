"""What JAX and XLA say of a model's training step: its products and its memory."""

import math
from typing import NamedTuple

import keras


class TrainingStep(NamedTuple):
    """A compiled training step, in numbers.

    Attributes:
        flops: int. Floating-point operations of its matrix products, loops counted as often as
            they run.
        arguments: int. Bytes of what it takes: weights, optimizer, batch.
        temporaries: int. Bytes of what it computes on the way.
    """

    flops: int
    arguments: int
    temporaries: int

    @property
    def memory(self) -> int:
        """The bytes of arguments and temporaries together, the peak of the step."""
        return self.arguments + self.temporaries


def check_compiler():
    """Raises ValueError on backends whose step is not asked."""
    if keras.config.backend() != "jax":
        raise ValueError(
            "A compiler is asked on the JAX backend. Received: "
            f"compile=True on {keras.config.backend()}. Leave it out, or set KERAS_BACKEND=jax."
        )


def compiled_step(model, batch_size: int, sequence_length: int) -> TrainingStep:
    """Returns what the compiler says of the training step of a compiled language model, on JAX.

    The model needs no values (`kgpt.initializers.without_values`).

    Args:
        model: compiled `keras.Model` of token ids, with its optimizer built.
        batch_size: int. Rows in a batch.
        sequence_length: int. Tokens in a row.
    """
    import jax

    step = jax.jit(model.train_step, donate_argnums=0)
    traced = step.trace(*_arguments(model, batch_size, sequence_length))
    memory = traced.lower().compile().memory_analysis()
    return TrainingStep(
        count_flops(traced.jaxpr), memory.argument_size_in_bytes, memory.temp_size_in_bytes
    )


def traced_flops(model, batch_size: int, sequence_length: int) -> int:
    """Returns `compiled_step(...).flops` without compiling.

    Args:
        model: as for `compiled_step`.
        batch_size: int. Rows in a batch.
        sequence_length: int. Tokens in a row.
    """
    import jax

    arguments = _arguments(model, batch_size, sequence_length)
    return count_flops(jax.make_jaxpr(model.train_step)(*arguments))


def _arguments(model, batch_size, sequence_length):
    from jax import ShapeDtypeStruct

    groups = (
        *(model.trainable_variables, model.non_trainable_variables),
        *(model.optimizer.variables, model.metrics_variables),
    )
    state = tuple([ShapeDtypeStruct(v.shape, v.dtype) for v in group] for group in groups)
    token_ids = ShapeDtypeStruct((batch_size, sequence_length), "int32")
    return state, ({"token_ids": token_ids},)


def count_flops(jaxpr) -> int:
    """Returns the floating-point operations of the matrix products whose results are used.

    XLA's own count (`cost_analysis`) has the body of a loop once.

    Args:
        jaxpr: `jax.core.ClosedJaxpr`.
    """
    from jax.interpreters.partial_eval import dce_jaxpr

    used, _ = dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _count(used)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _flops_of_product(equation)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # of a closed one
            if hasattr(inner, "eqns"):
                total += times * _count(inner)
    return total


def _flops_of_product(equation) -> int:
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    summed = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * summed
