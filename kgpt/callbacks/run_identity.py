"""Which run it is: all that decides what a training run computes, so that no other continues it."""

import hashlib
import json

import keras

from kgpt.callbacks.data_identity import data_identity
from kgpt.callbacks.descriptions import described, layers_of, numbered_names, wiring
from kgpt.data.text_sources import TextDataset
from kgpt.models.freezing import body_of
from kgpt.models.quantization import quantization_config
from kgpt.models.task import Task

_DEFAULT_SCHEDULE = "that of compile()"
_A_NUMBER = "a number"
_ON_THEIR_OWN = ("quantization", "trainable_layers")
_LONGEST = 80  # characters of a value in a message


def identity(model, data, settings: dict) -> dict:
    """Returns what a run is, as a JSON-serializable dict.

    Under `"run"` is what must be the same in a run that goes on from a checkpoint, under
    `"may_change"` what is worth a line if it is not; what is in neither does no harm.

    Args:
        model: a compiled Keras model; of one that is not kgpt's, only its config, its optimizer and
            its loss are known.
        data: what `fit` was given: batches, or arrays as `x` or `(x, y, sample_weight)`.
        settings: dict of the arguments of `fit`: `epochs`, `steps_per_epoch`, `batch_size`,
            `shuffle` and `class_weight`, where they are known.
    """
    from kgpt import __version__

    optimizer, learning_rate = _optimizer(model)
    run = {
        **_model(model),
        "optimizer": optimizer,
        "loss": _loss(model),
        "data": {**data_identity(data), **_reading(model, data)},
        "fit": {
            "batch_size": settings.get("batch_size") or 32,
            "steps_per_epoch": settings.get("steps_per_epoch"),
            "shuffle": settings.get("shuffle"),
            "class_weight": _class_weight(model, settings.get("class_weight")),
            "steps_per_execution": model.steps_per_execution,
        },
    }
    may_change = {"epochs": settings.get("epochs"), "learning_rate": learning_rate}
    versions = {"keras": keras.__version__, "kgpt": __version__}
    # As it comes back from a file: keys are str, tuples are lists.
    return json.loads(json.dumps({"run": run, "may_change": may_change, "versions": versions}))


def differences(saved: dict | None, now: dict) -> list[str]:
    """Returns in what a run differs from the one that a checkpoint is of, a line for each thing.

    Args:
        saved: dict from `identity`, when the checkpoint was saved; None for a checkpoint that has
            none, of which nothing is known.
        now: dict from `identity`.
    """
    if saved is None:
        return []
    # Another version may have options that this one lacks.
    one_sided = saved["versions"] == now["versions"]
    return list(_differences(saved["run"], now["run"], "", one_sided))


def new_learning_rate(saved: dict | None, now: dict) -> float | None:
    """Returns the learning rate that the user has set since the checkpoint; None if it is the same.

    It counts, whatever the optimizer's variable in the checkpoint says. Schedules may not change.
    """
    if saved is None or differences(saved, now):
        return None
    rate = now["may_change"]["learning_rate"]
    return None if rate == saved["may_change"]["learning_rate"] else rate


def notes(saved: dict | None, now: dict) -> list[str]:
    """Returns what has changed and is allowed to, a line for each thing."""
    if saved is None:
        return []
    lines = []
    before, after = saved["may_change"]["epochs"], now["may_change"]["epochs"]
    if before != after and None not in (before, after):
        line = f"epochs: {before} in the checkpoint, {after} now"
        if saved["run"]["optimizer"].get("learning_rate") == _DEFAULT_SCHEDULE:
            line += "; the learning rate's schedule is laid over all of them anew"
        lines.append(line)
    rate = new_learning_rate(saved, now)
    if rate is not None:
        before = saved["may_change"]["learning_rate"]
        lines.append(f"learning_rate: {before:.6g} in the checkpoint, {rate:.6g} now, which counts")
    return lines


def _differences(saved, now, name, one_sided):
    if saved == now:
        return
    are_dicts = isinstance(saved, dict) and isinstance(now, dict)
    if not are_dicts or saved.get("type") != now.get("type"):
        yield f"{name}: {_shown(saved)} in the checkpoint, {_shown(now)} now"
        return
    for key in {**saved, **now}:
        if one_sided or (key in saved and key in now):
            path = f"{name}.{key}" if name else key
            yield from _differences(saved.get(key), now.get(key), path, one_sided)


def _shown(value):
    """Returns a value as a message shows it: what a dict is of, and the beginning of a long one."""
    if isinstance(value, dict) and "type" in value:
        value = value["type"]
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


# === The parts ===


def _model(model):
    """Returns what a model is made of, and what of it is trained."""
    if not isinstance(model, Task):
        layers = layers_of(model)
        parts = {"model": {"type": type(model).__name__, "layers": layers, **wiring(model)}}
        return {**parts, "frozen": _frozen(model)}
    body = body_of(model)
    config = described(model)
    for name in ("backbone", "tokenizer", "sequence_length", "truncate", *_ON_THEIR_OWN):
        config.pop(name, None)
    if not type(model).__module__.startswith("kgpt."):
        config["layers"] = layers_of(model, without=body)
    backbone = described(body)
    for name in ("num_frozen_blocks", "dtype", "recompute", *_ON_THEIR_OWN):
        backbone.pop(name, None)
    lora = {name: backbone.pop(name, None) for name in list(backbone) if name.startswith("lora_")}
    return {
        "model": config,
        "backbone": {**backbone, "dtype": _dtype(body)},
        "tokenizer": _tokenizer(model.tokenizer),
        "lora": _lora(**lora),
        "quantization": _quantization(model),
        "frozen": _frozen(model),
    }


def _dtype(body):
    policy = body.dtype_policy
    return getattr(policy, "_source_name", None) or policy.name


def _tokenizer(tokenizer):
    if tokenizer is None:
        return None
    content = hashlib.sha256(json.dumps(described(tokenizer)).encode()).hexdigest()
    return f"{tokenizer.vocabulary_size} tokens, sha256 {content[:16]}"


def _lora(lora_rank=None, lora_alpha=None, lora_target_layer_names=None):
    if lora_rank is None:
        return None
    return f"rank {lora_rank}, lora_alpha {lora_alpha}, in {', '.join(lora_target_layer_names)}"


def _quantization(model):
    groups = {}
    for number, group in enumerate(quantization_config(model)):
        config = described(group["config"])
        mode = config["type"].removesuffix("QuantizationConfig").lower()
        groups[str(number)] = {**config, "type": mode, "layers": len(group["layers"])}
    return groups.get("0") if len(groups) < 2 else groups


def _frozen(model) -> list[str]:
    """Returns the layers that are not trained, without those inside them, and single weights."""
    body = body_of(model) if isinstance(model, Task) else None
    seen, frozen = set(), []

    def look(name, layer):
        if id(layer) in seen:
            return
        if not layer.trainable:
            seen.update(map(id, layer._flatten_layers()))
            frozen.append(name)
            return
        seen.add(id(layer))
        has_lora = getattr(layer, "lora_enabled", False) or (body and body.lora_rank is not None)
        frozen.extend(
            f"{name}/{v.name}" for v in layer._trainable_variables if not (v.trainable or has_lora)
        )
        for part_name, part in numbered_names(layer._layers):
            look(f"{name}/{part_name}" if name else part_name, part)

    if body is not None:
        look("backbone", body)
    look("", model)
    return [name or "the model" for name in frozen]


def _optimizer(model):
    """Returns what an optimizer is, without its learning rate if that is a number, and the rate."""
    optimizer = described(model.optimizer)
    holder, inner = optimizer, model.optimizer
    while isinstance(holder.get("inner_optimizer"), dict):
        holder, inner = holder["inner_optimizer"], inner.inner_optimizer
    # An optimizer has no config where the schedule is of a class without one.
    rate = holder.setdefault("learning_rate", described(getattr(inner, "_learning_rate", None)))
    if getattr(model, "_optimizer_is_default", False):
        holder["learning_rate"], rate = _DEFAULT_SCHEDULE, None
    elif isinstance(rate, float | int):
        holder["learning_rate"] = _A_NUMBER
    else:
        rate = None
    return optimizer, rate


def _loss(model):
    if isinstance(model, Task) and model._uses_own_loss:
        return "the model's own"
    config = model._compile_config.config
    loss = described(config.get("loss"))
    weights = described(config.get("loss_weights"))
    return loss if weights is None else {"loss": loss, "loss_weights": weights}


def _reading(model, data):
    """Returns how texts are read that are encoded while the model is trained."""
    if not isinstance(data, TextDataset):
        return {}
    return {"sequence_length": model.sequence_length, "truncate": model.truncate}


def _class_weight(model, given):
    weights = getattr(model, "_class_weight", None)
    if weights is None and isinstance(given, dict):
        weights = {str(name): float(weight) for name, weight in given.items()}
    return None if weights is None else str(weights)
