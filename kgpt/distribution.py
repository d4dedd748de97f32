"""Many devices: which of a model's weights and activations each of them holds.

`keras.distribution` moves the data and runs the step (on the JAX backend); here stands what it
can't know of a GPT: along which dimension each matrix divides, and which activations stay where.
"""

import re

import keras
from keras.src.distribution import distribution_lib

from kgpt.arguments import checked, one_of, refuse
from kgpt.console import warn

__all__ = ["layout_map", "pin"]

BATCH, MODEL = "batch", "model"  # what the axes of any mesh are called in `pin`
STYLES = ("data", "fsdp", "tensor", "tensor_fsdp")
# The matrices, by the ends of their paths: their sizes, and the dimensions that the model axis and
# the batch axis divide, the first that they can. Biases and norms stay whole: of GPT-2 they are a
# thousandth, and many small transfers take longer than one large one.
_MATRICES = {
    "token_embedding/embeddings": (("vocabulary_size", "hidden_dim"), (0, 1), (1, 0)),
    "position_embedding/embeddings": (("max_sequence_length", "hidden_dim"), (0, 1), (1, 0)),
    # By rows, which move less than columns when queries, keys and values go to their heads.
    "attention/query_key_value/kernel": (("hidden_dim", "query_key_value_dim"), (0,), (1,)),
    "attention/output_projection/kernel": (("hidden_dim", "hidden_dim"), (0,), (1,)),
    "feed_forward/expansion/kernel": (("hidden_dim", "intermediate_dim"), (1,), (0,)),
    "feed_forward/output_projection/kernel": (("intermediate_dim", "hidden_dim"), (0,), (1,)),
}
_OF_HEAD = "output_projection/kernel"  # (hidden_dim, outputs)


@checked(style=one_of(*STYLES))
def layout_map(model, mesh, style: str = "data"):
    """Returns which devices hold which part of each weight, for `keras.distribution.ModelParallel`.

    The mesh's first axis divides the batch. The styles are

    - `"data"`: all devices have all weights.
    - `"fsdp"`: each matrix, its gradient and its optimizer state are divided among the devices of
      the batch; a layer's matrix is gathered while the layer computes (Rajbhandari et al. 2020;
      Zhao et al. 2023).
    - `"tensor"`: the mesh's second axis divides heads, inner widths and vocabulary, and with them
      the arithmetic of each layer (Shoeybi et al. 2019).
    - `"tensor_fsdp"`: both.

    Nothing is allocated, so that a model too large for one device gets a map too. What does not
    divide is said in a warning or refused.

    Args:
        model: a preset's name, the config of a `GPTBackbone` or of a model over one, or a model.
        mesh: `keras.distribution.DeviceMesh` of one axis, `(batch,)`, or of two, `(batch, model)`,
            with names of your choice. The styles with `tensor` need two.
        style: `"data"`, `"fsdp"`, `"tensor"` or `"tensor_fsdp"`.

    Returns:
        `keras.distribution.LayoutMap` of the mesh.

    Raises:
        ValueError: for a model without sizes, for a mesh that the style has no use for, and if the
            widths of the model do not divide by an axis.

    Example:
        mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
        layout_map = kgpt.distribution.layout_map("gpt2", mesh, style="tensor_fsdp")
        distribution = keras.distribution.ModelParallel(layout_map=layout_map)
        # keras.distribution.set_distribution(distribution) comes before the model is made.
    """
    sizes, axes = _sizes(model), _axes(mesh, style)
    _check_divides(sizes, axes)
    layouts = keras.distribution.LayoutMap(mesh)
    for path, (dimensions, *preferred) in _MATRICES.items():
        shape = [sizes[name] for name in dimensions]
        layout = _divided(shape, axes, dict(zip((MODEL, BATCH), preferred, strict=True)))
        if not any(layout):
            continue
        layouts[f"(.*/)?{re.escape(path)}"] = layout
        if path.endswith("kernel"):  # LoRA's factors go with the rows and the columns
            scope = re.escape(path.removesuffix("kernel"))
            layouts[f"(.*/)?{scope}lora_kernel_a"] = (layout[0], None)
            layouts[f"(.*/)?{scope}lora_kernel_b"] = (None, layout[1])
    if BATCH in axes:
        layouts[_OF_HEAD] = (axes[BATCH][0], None)
    return layouts


def _sizes(model) -> dict:
    """Returns the sizes of a model that divide, by the names that they have in `GPTBackbone`."""
    from kgpt.models.presets import PRESETS, SIZES

    if isinstance(model, str) and model in PRESETS:
        config = PRESETS[model]
    elif isinstance(model, dict):
        config = model.get("backbone", model)
        config = config.get("config", config)
    else:
        backbone = getattr(model, "backbone", model)
        config = {name: getattr(backbone, name, None) for name in SIZES}
    needed = ("vocabulary_size", "num_heads", "hidden_dim")
    if not all(isinstance(config.get(name), int) for name in needed):
        expected = "a preset's name, a GPTBackbone's config, or a model of kgpt"
        refuse("model", model, expected, f"Presets are {', '.join(PRESETS)}.")
    inner = config.get("intermediate_dim") or 4 * config["hidden_dim"]
    length = config.get("max_sequence_length") or 1024
    sizes = {"intermediate_dim": inner, "max_sequence_length": length}
    return {**config, **sizes, "query_key_value_dim": 3 * config["hidden_dim"]}


def _axes(mesh, style) -> dict:
    """Returns the name and the size of the axes that divide weights: of the batch, of the model."""
    if not isinstance(mesh, keras.distribution.DeviceMesh):
        hint = 'Try keras.distribution.DeviceMesh((8,), ("batch",)).'
        refuse("mesh", mesh, "a keras.distribution.DeviceMesh", hint)
    needed = 2 if "tensor" in style else 1
    if len(mesh.shape) != needed:
        what = "of two axes, (batch, model)" if needed == 2 else "of one axis, (batch,)"
        refuse("mesh", mesh, f"{what} for style={style!r}")
    axes = dict(zip((BATCH, MODEL), zip(mesh.axis_names, mesh.shape, strict=True), strict=False))
    return {kind: axis for kind, axis in axes.items() if kind == MODEL or "fsdp" in style}


def _check_divides(sizes, axes):
    for kind, (name, devices) in axes.items():
        for size in ("hidden_dim", "intermediate_dim"):
            if sizes[size] % devices:
                raise ValueError(
                    f"The devices of an axis must divide {size}. Received: {devices} devices in "
                    f"axis {name!r} and {size}={sizes[size]}. Try {divisors(sizes[size])}."
                )
        for size, what in (("num_heads", "attention"), ("vocabulary_size", "token embedding")):
            if kind == MODEL and sizes[size] % devices:
                warn(_fallback(size, sizes[size], name, devices, what))


def _fallback(size, value, name, devices, what):
    said = f"The {devices} devices of axis {name!r} do not divide {size}={value}: "
    if size == "num_heads":
        return f"{said}each of them computes all of the {what}. Try {divisors(value)} devices."
    rounded = -(-value // devices) * devices
    return (
        f"{said}the {what} is divided by its width and moves in each step. For one that stays, "
        f"make the model with vocabulary_size={rounded}, or call with_vocabulary_size({rounded})."
    )


def divisors(value: int) -> str:
    """Returns into how many parts a width can be divided, up to 64, for a message."""
    return " or ".join(str(d) for d in range(1, min(value, 64) + 1) if value % d == 0)


def _divided(shape, axes, preferred) -> tuple:
    """Returns the name of the axis that divides each dimension, or None."""
    layout = [None] * len(shape)
    for kind in (MODEL, BATCH):
        if kind in axes:
            name, devices = axes[kind]
            free = [d for d in preferred[kind] if layout[d] is None and shape[d] % devices == 0]
            if free:
                layout[free[0]] = name
    return tuple(layout)


# === Activations ===


def pin(x, *axes):
    """Returns a tensor whose dimensions are divided among the devices by name; without them, `x`.

    The weights' layout alone leaves open whether weights or activations move between devices.
    Pinned activations don't move.

    Args:
        x: tensor.
        *axes: for each dimension `"batch"`, `"model"` or None, which keeps it whole; `...` stands
            for all that lie between, and those at the end may be left out. A dimension that the
            devices don't divide stays whole, as does one of an axis that the mesh does not have.

    Returns:
        tensor of the same shape and values.

    Raises:
        ValueError: for axes of other names.

    Example:
        hidden_states = kgpt.distribution.pin(backbone(token_ids), "batch")
    """
    for axis in axes:
        if not any(axis is known for known in (None, ...)) and axis not in (BATCH, MODEL):
            refuse("axes", axis, 'each "batch", "model", None or ...')
    distribution = current()
    if distribution is None:
        return x
    axes = axes if ... in axes else (*axes, ...)
    first, last = axes[: axes.index(...)], axes[axes.index(...) + 1 :]
    between = len(x.shape) - len(first) - len(last)
    axes = (*first, *[None] * between, *last)
    layout = [_axis(*pair) for pair in zip(axes, x.shape, strict=True)]
    layout = keras.distribution.TensorLayout(layout, distribution.device_mesh)
    return keras.distribution.distribute_tensor(x, layout)


def _axis(axis, size):
    is_divided = axis is not None and isinstance(size, int) and size % num_devices(axis) == 0
    return axis_name(axis) if is_divided else None


# === The current mesh ===


def current():
    """Returns the current `keras.distribution`; None where there is none, or the backend has none.

    Keras has it on JAX; on other backends a distribution that is set does nothing.
    """
    acts = hasattr(distribution_lib.distribution_lib, "distribute_tensor")
    return keras.distribution.distribution() if acts else None


def axis_name(axis: str) -> str | None:
    """Returns the name of an axis in the current mesh; None if there is none."""
    distribution = current()
    if distribution is None or axis == BATCH:
        return getattr(distribution, "batch_dim_name", None)
    names = distribution.device_mesh.axis_names
    others = [name for name in names if name != distribution.batch_dim_name]
    return others[0] if len(others) == 1 else None


def num_devices(axis: str) -> int:
    """Returns how many devices an axis of the current mesh has, `"batch"` or `"model"`; or 1."""
    name = axis_name(axis)
    if name is None:
        return 1
    mesh = current().device_mesh
    return mesh.shape[list(mesh.axis_names).index(name)]


# === Processes ===


def process() -> tuple[int, int]:
    """Returns the number of this process, and how many there are, as Keras's backend knows them."""
    library = distribution_lib.distribution_lib  # of the backend; None on PyTorch
    if not hasattr(library, "process_id"):
        return 0, 1
    return library.process_id(), library.num_processes()


def data_shard() -> tuple[int, int]:
    """Returns which shard of the data this process reads, and the number of shards.

    Processes that hold parts of one replica of the model read the same.
    """
    distribution = current()
    if distribution is None:
        return process()
    shards = min(distribution.num_processes, distribution.num_model_replicas)
    return distribution.data_shard_id, shards


def num_own_shards() -> int:
    """Returns how many parts this process's batches are divided into among its devices."""
    distribution = current()
    if distribution is None:
        return 1
    return max(1, distribution.num_model_replicas // distribution.num_processes)
