"""A training run in numbers before it begins: parameters, arithmetic, memory, time, cost."""

import math
from dataclasses import dataclass

import keras

from kgpt import recipes
from kgpt.arguments import checked, is_int, one_of, refuse
from kgpt.distribution import STYLES, divisors
from kgpt.initializers import without_values
from kgpt.kernels.platform import checked_policy
from kgpt.kernels.training_step import TrainingStep, check_compiler, compiled_step
from kgpt.models import CausalLM, GPTBackbone, changes
from kgpt.models.presets import PRESETS
from kgpt.models.step_costs import Memory, flops, memory, optimizer_flops
from kgpt.models.task import Task

_NEEDED = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim")
_STEPS = 1000  # of a schedule whose length does not matter here


@dataclass(frozen=True)
class Plan:
    """What `kgpt.plan` returns; `print` shows it as a table.

    Attributes:
        parameters: int. All weights.
        trainable_parameters: int. Those that are trained.
        devices: int. How many there are.
        style: str. How they share the weights.
        tokens_per_step: int. Tokens of a batch, over all devices.
        flops_per_token: float. Floating-point operations of a step for each of its tokens.
        flops_per_step: int. Those of a step, over all devices, the optimizer's included.
        memory: `Memory`, in bytes on each device: `weights`, `gradients`, `optimizer`,
            `activations`, `loss`, `working`, and the `peak`, at which not all are there.
        steps: int or None. Batches in the run.
        tokens: int or None. Tokens in the run.
        hours: float or None. How long the run takes.
        cost: float or None. What all devices cost in that time.
        compiled: None, or what the compiler says of the step: `flops` of its matrix products,
            bytes of `arguments` and of `temporaries`, and `memory`, their sum.
    """

    parameters: int
    trainable_parameters: int
    devices: int
    style: str
    tokens_per_step: int
    flops_per_token: float
    flops_per_step: int
    memory: Memory
    steps: int | None
    tokens: int | None
    hours: float | None
    cost: float | None
    compiled: TrainingStep | None

    def __str__(self):
        return "\n".join(f"{name:<24}{value:>12}" for name, value in _table(self))


@checked(passes_on=GPTBackbone, style=one_of(*STYLES))
def plan(
    model: object = None,
    batch_size: int = 32,
    sequence_length: int | None = None,
    dtype=None,
    optimizer: object = None,
    mesh: object = 1,
    style: str = "data",
    steps: int | None = None,
    tokens: int | None = None,
    peak_flops: float | None = None,
    mfu: float | None = None,
    price: float | None = None,
    compile: bool = False,
    **backbone,
) -> Plan:
    """Returns what training a model takes; nothing is allocated for its weights.

    Parameters are exact. Floating-point operations are those of matrix products, as kgpt computes
    them on TensorFlow and on JAX without a fused attention kernel. Memory is that of a step on JAX.

    Args:
        model: a preset's name, the config of a `GPTBackbone`, a backbone, or a model over one. May
            be left out where the sizes are keywords. A body is planned as a `CausalLM`.
        batch_size: int. Sequences in a step, over all devices.
        sequence_length: int. Tokens in a sequence; the model's maximum if None.
        dtype: a dtype policy such as `"mixed_bfloat16"`; the model's, or Keras's, if None.
        optimizer: `"adamw"`, `"muon"`, or a Keras optimizer. If None, what the model is compiled
            with, or else AdamW.
        mesh: the devices, as their number, as a pair `(batch, model)`, or as a
            `keras.distribution.DeviceMesh` of one axis or two. The first divides the batch.
        style: how they share the weights. `"data"`: each device has all. `"fsdp"`: the devices of
            the first axis divide them. `"tensor"`: those of the second. `"tensor_fsdp"`: all.
        steps: int. Batches in the run. Or else `tokens`.
        tokens: int. Tokens in the run, those of later epochs included.
        peak_flops: float. Floating-point operations in a second of one device at its best, such as
            989e12 for an H100 in bfloat16. Together with `mfu`, for `hours`.
        mfu: float in (0, 1]. Model FLOPs utilization: which share of it a step without
            recomputation reaches.
        price: float. Of one device for an hour, in any currency. For `cost`.
        compile: bool. Whether to compile the step, of a language model on one device, and ask the
            compiler. On the JAX backend; takes as long as compiling for `fit`.
        **backbone: arguments of `GPTBackbone`, such as `recompute=True`; they replace those of a
            preset, a config or a backbone.

    Returns:
        `Plan`.

    Raises:
        ValueError: for a model without sizes, for arguments that are out of range or would have no
            effect, and for a batch or a style that does not fit the devices.
        TypeError: for keywords that are no arguments.

    Example:
        print(kgpt.plan("gpt2_xl", batch_size=64, dtype="mixed_bfloat16", mesh=8, style="fsdp"))
    """
    _check_run(steps, tokens, peak_flops, mfu, price)
    axes = _axes(mesh, style)
    if dtype is not None:
        backbone["dtype"] = checked_policy(dtype)
    task, optimizer = _task_and_optimizer(model, optimizer, backbone)
    length = sequence_length or task.backbone.max_sequence_length
    task.backbone.embedding.check_length(length)
    _check_divides(task.backbone, batch_size, axes, style)
    tokens_per_step = batch_size * length
    of_model = flops(task, batch_size, length)
    total = of_model + optimizer_flops(optimizer, task.trainable_variables)
    if steps is None and tokens is not None:
        steps = -(-tokens // tokens_per_step)
    devices = axes[0] * axes[1]
    hours = cost = None
    if peak_flops is not None:
        hours = steps * total / (devices * peak_flops * mfu) / 3600
        cost = None if price is None else hours * devices * price
    return Plan(
        parameters=task.count_params(),
        trainable_parameters=_count(task.trainable_variables),
        devices=devices,
        style=style,
        tokens_per_step=tokens_per_step,
        flops_per_token=total / tokens_per_step,
        flops_per_step=total,
        memory=memory(task, optimizer, batch_size, length, axes, style),
        steps=steps,
        tokens=None if steps is None else steps * tokens_per_step,
        hours=hours,
        cost=cost,
        compiled=_compiled(task, optimizer, batch_size, length, devices) if compile else None,
    )


# === Arguments ===


def _check_run(steps, tokens, peak_flops, mfu, price):
    """Raises ValueError for arguments that would have no effect."""
    if steps is not None and tokens is not None:
        raise ValueError(
            f"steps and tokens say the same. Received: steps={steps}, tokens={tokens}. Give one."
        )
    lacks_speed = peak_flops is None or mfu is None
    if (peak_flops is None) != (mfu is None) or (price is not None and lacks_speed):
        raise ValueError(
            "Hours follow from peak_flops and mfu, and the cost from these and price. Received: "
            f"peak_flops={peak_flops}, mfu={mfu}, price={price}. Try peak_flops=989e12, mfu=0.4."
        )
    if peak_flops is not None and steps is None and tokens is None:
        raise ValueError(
            f"Hours are those of a run. Received: peak_flops={peak_flops:g}, and neither steps nor "
            "tokens. Give one of them."
        )


def _axes(mesh, style) -> tuple[int, int]:
    """Returns how many devices divide the batch, and how many the model."""
    shape = mesh.shape if isinstance(mesh, keras.distribution.DeviceMesh) else mesh
    shape = tuple(shape) if isinstance(shape, list | tuple) else (shape,)
    if len(shape) not in (1, 2) or not all(is_int(size) and size > 0 for size in shape):
        hint = "Try mesh=8, or mesh=(4, 2) for 4 that divide the batch, times 2 for the model."
        refuse("mesh", mesh, "a number of devices, a pair, or a DeviceMesh of them", hint)
    if (len(shape) == 2) != style.startswith("tensor"):
        needed = "a pair (batch, model)" if len(shape) == 1 else "a number of devices"
        refuse("mesh", mesh, f"{needed} for style={style!r}")
    return (*shape, 1)[:2]


def _check_divides(body, batch_size, axes, style):
    if batch_size % axes[0]:
        refuse("batch_size", batch_size, f"a multiple of the {axes[0]} devices that divide it")
    for devices in (axes[0] if "fsdp" in style else 1, axes[1]):
        if body.hidden_dim % devices or body.intermediate_dim % devices:
            raise ValueError(
                "The devices that divide the weights must divide the model's widths. Received: "
                f"{devices} devices, hidden_dim={body.hidden_dim}, "
                f"intermediate_dim={body.intermediate_dim}. Try {divisors(body.hidden_dim)}."
            )


# === The model ===


def _task_and_optimizer(model, optimizer, options) -> tuple:
    """Returns a task, without values if it is new, and an optimizer that is not built."""
    if isinstance(model, Task):
        if options:
            raise ValueError(
                f"A {type(model).__name__} is planned as it is. Received: {sorted(options)}. Leave "
                "them out, or pass model.backbone."
            )
        task = model
        if optimizer is None and task.compiled:
            optimizer = task.optimizer
    else:
        with without_values():
            task = CausalLM(_body(model, options))
    return task, _new_optimizer(optimizer)


def _body(model, options) -> GPTBackbone:
    if model is None:
        config = {}
    elif isinstance(model, str) and model in PRESETS:
        config = PRESETS[model]
    elif isinstance(model, GPTBackbone):
        config = model.get_config()
    elif isinstance(model, dict):
        config = model
    else:
        hint = f"Presets are {', '.join(PRESETS)}."
        refuse("model", model, "a preset, a config, a kgpt.GPTBackbone or a task over one", hint)
    sizes, later = changes.split({**config, **options})
    needed = [name for name in _NEEDED if name not in sizes]
    if needed:
        raise ValueError(
            f"A plan needs the sizes of a GPTBackbone. Received: no {', '.join(needed)}. Give "
            'them, or a preset such as kgpt.plan("gpt2").'
        )
    return changes.make(GPTBackbone(**sizes), **later)


def _new_optimizer(optimizer):
    """Returns a new optimizer, which has kept nothing yet."""
    if optimizer is None or optimizer == "adamw":
        return recipes.pretraining_optimizer(_STEPS)
    if isinstance(optimizer, str) and optimizer == "muon":
        return recipes.fast_optimizer(_STEPS)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return type(optimizer).from_config(optimizer.get_config())
    hint = "Try keras.optimizers.SGD(momentum=0.9)."
    refuse("optimizer", optimizer, '"adamw", "muon" or a Keras optimizer', hint)


def _compiled(task, optimizer, batch_size, length, devices):
    if devices > 1 or not isinstance(task, CausalLM):
        raise ValueError(
            "compile=True compiles the step of a language model on one device. Received: "
            f"a {type(task).__name__}, {devices} devices. Try mesh=1 and the batch of one of them."
        )
    check_compiler()
    with without_values():
        lm = CausalLM(_body(task.backbone, {}))
    lm.compile(_new_optimizer(optimizer))
    with without_values():
        lm.optimizer.build(lm.trainable_variables)
    return compiled_step(lm, batch_size, length)


def _count(variables) -> int:
    return sum(math.prod(v.shape) for v in variables)


# === The table ===


def _table(plan):
    """Yields the lines of a plan: a name, and a figure with its unit."""
    yield "parameters", f"{plan.parameters:,}"
    if plan.trainable_parameters != plan.parameters:
        yield "  of them trained", f"{plan.trainable_parameters:,}"
    yield "devices", f"{plan.devices} ({plan.style})" if plan.devices > 1 else "1"
    yield "tokens in a step", f"{plan.tokens_per_step:,}"
    yield "FLOPs for each token", _si(plan.flops_per_token)
    yield "FLOPs in a step", _si(plan.flops_per_step)
    yield "memory on each device", _bytes(plan.memory.peak)
    for name, size in vars(plan.memory).items():
        if name != "peak":
            yield f"  {name}", _bytes(size)
    if plan.steps is not None:
        yield "steps", f"{plan.steps:,}"
        yield "tokens", _si(plan.tokens)
        yield "FLOPs in all", _si(plan.steps * plan.flops_per_step)
    if plan.hours is not None:
        yield "hours", f"{plan.hours:,.1f}"
    if plan.cost is not None:
        yield "cost", f"{plan.cost:,.2f}"
    if plan.compiled is not None:
        yield "the compiler's FLOPs", _si(plan.compiled.flops)
        yield "the compiler's memory", _bytes(plan.compiled.memory)


def _si(number) -> str:
    """Returns a number in the units of physics: 1.23 G."""
    for unit in ("", " k", " M", " G", " T", " P", " E", " Z"):
        if number < 999.5 or unit == " Z":
            return f"{number:.3g}{unit}"
        number /= 1000


def _bytes(size) -> str:
    """Returns a size in binary units: 1.23 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1023.5 or unit == "TiB":
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
