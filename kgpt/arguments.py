"""Arguments: each of them acts, or is refused by name where it is given.

An argument means the same in all of kgpt. So its rule stands here under its name, and `@checked`
applies the rules to a constructor or a function.
"""

import functools
import inspect
import math
import os
import typing
from collections.abc import Callable
from numbers import Integral, Real

import keras
import numpy as np

from kgpt.keywords import check_keywords


def is_int(value) -> bool:
    """Returns whether a value is an int, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value) -> bool:
    """Returns whether a value is a real number, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def check_is_int(name: str, ids):
    """Raises ValueError for ids, as an array, a tensor or a spec, whose dtype is no integer."""
    dtype = getattr(ids.dtype, "name", ids.dtype)
    if "int" not in str(dtype):
        raise ValueError(
            f"{name} must be ints, as a tokenizer returns them. Received: dtype {dtype}."
        )


# === Rules: each takes an argument's name and value, and returns the value ===


def integer(least: int, hint: str = "", most: int | None = None):
    """Returns the rule for an int of at least `least`, and at most `most`."""
    expected = f"an int of at least {least}" + ("" if most is None else f" and at most {most:,}")

    def rule(name, value):
        if is_int(value) and least <= value and (most is None or value <= most):
            return int(value)
        refuse(name, value, expected, hint)

    return rule


def number(interval: str, hint: str = ""):
    """Returns the rule for a number in an interval such as `"[0, 1)"`; NaN is in none."""
    low, high = map(float, interval[1:-1].split(","))

    def rule(name, value):
        ends = (low, "[") == (value, interval[0]) or (high, "]") == (value, interval[-1])
        if is_real(value) and (low < value < high or ends):
            return float(value)
        refuse(name, value, f"a number in {interval}", hint)

    return rule


def flag(name, value):
    """Returns the bool; raises ValueError for other values, which Python would take for one."""
    if not isinstance(value, bool | np.bool_):
        refuse(name, value, "a bool")
    return bool(value)


def string(name, value):
    """Returns the str; raises ValueError for other values."""
    return value if isinstance(value, str) else refuse(name, value, "a str")


def one_of(*choices: str):
    """Returns the rule for one of several words."""

    def rule(name, value):
        if isinstance(value, str) and value in choices:
            return value
        refuse(name, value, f"one of {', '.join(map(repr, choices))}")

    return rule


def learning_rate_or_schedule(name, value):
    """Returns the rate of a Keras optimizer, which may be 0 in a saved one."""
    return value if callable(value) else number("[0, inf)")(name, value)


def _path(name, value):
    if not isinstance(value, str | os.PathLike):
        refuse(name, value, "a path", error=TypeError)
    if "\0" in str(value):
        refuse(name, value, "a path, in which no name has a NUL")
    return value


def _rows(name, value):
    is_one = isinstance(value, str | bytes) or not hasattr(value, "__iter__")
    return refuse(name, value, "a list of rows, or an array") if is_one else value


def _weights(name, value):
    numbers = value.tolist() if isinstance(value, np.ndarray) else value
    is_list = isinstance(numbers, list | tuple)
    if not is_list or not all(is_real(one) and 0 <= one < math.inf for one in numbers):
        refuse(name, value, "a list of numbers in [0, inf)", "Try [0.7, 0.3].")
    return list(map(float, numbers))


def _activation(name, value):
    if value in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        refuse(name, value, "a name that Keras knows", 'Try "gelu_tanh", which is the same.')
    if not isinstance(value, str | dict) and not callable(value):
        refuse(name, value, "a name or a function", 'None at all is "linear".')
    return value


def _stop(name, value):
    texts = [value] if isinstance(value, str) else value
    if (
        not isinstance(texts, list | tuple | set)
        or not texts
        or not all(isinstance(text, str) and text for text in texts)
    ):
        refuse(name, value, "a str that is not empty, or several", "Tokens are stop_token_ids.")
    return list(texts)


def _head(name, value):
    return value if callable(value) else refuse(name, value, "a Keras layer or a function")


def _metrics(name, value):
    if not isinstance(value, list | tuple) or not all(
        isinstance(metric, keras.metrics.Metric) for metric in value
    ):
        refuse(name, value, "a list of Keras metrics", "Try [keras.metrics.MeanAbsoluteError()].")
    return value


def _backbone(name, value):
    if not _is_a(value, "GPTBackbone"):
        hint = "Models of other packages are read by kgpt.from_huggingface and from_keras_hub."
        if _is_a(getattr(value, "backbone", None), "GPTBackbone"):
            hint = f"Try {name}=model.backbone: heads share a body."
        refuse(name, value, "a kgpt.GPTBackbone", hint, TypeError)
    return value


def _language_model(name, value):
    if not _is_a(value, "CausalLM"):
        hint = "Try kgpt.CausalLM(backbone, tokenizer=tokenizer)."
        refuse(name, value, "a kgpt.CausalLM", hint, TypeError)
    return value


def _tokenizer(name, value):
    # A tokenizer of one's own may take its place.
    if not all(hasattr(value, member) for member in ("encode_batch", "vocabulary_size")):
        hint = "kgpt.Tokenizer.train, from_vocabulary and from_file make one."
        if isinstance(value, str | os.PathLike):
            hint = f"Try {name}=kgpt.Tokenizer.from_file({str(value)!r})."
        elif hasattr(value, "backend_tokenizer"):
            hint = f"Try {name}=kgpt.Tokenizer(theirs.backend_tokenizer.to_str())."
        elif hasattr(value, "to_str"):
            hint = f"Try {name}=kgpt.Tokenizer(theirs.to_str())."
        refuse(name, value, "a kgpt.Tokenizer", hint, TypeError)
    return value


def _is_a(value, class_name: str) -> bool:
    """Returns whether a value is of a class that this file, below all others, can't import."""
    return any(c.__name__ == class_name for c in type(value).__mro__)


def refuse(name, value, expected: str, hint: str = "", error=ValueError) -> typing.NoReturn:
    """Raises an error for the value of an argument, in the words that all of them have."""
    received = " ".join(f"{name}={value!r:.80}".split())
    kind = "" if value is None or isinstance(value, bool | Real) else f" of type {_type_of(value)}"
    raise error(f"{name} must be {expected}. Received: {received}{kind}.{' ' * bool(hint)}{hint}")


def _type_of(value) -> str:
    module = type(value).__module__.partition(".")[0]
    return type(value).__name__ if module == "builtins" else f"{module}.{type(value).__name__}"


_SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
_COUNTS = ("num_outputs", "num_sequences", "sequence_length", "batch_size", "steps", "stride")
_FLAGS = (
    *("norm_first", "query_key_norm", "rotary_positions", "zero_init_residual", "recompute"),
    *("learned_positions", "both_orders", "probabilities", "trainable", "exact", "repeat"),
    *("random_offset", "segment_ids", "drop_remainder", "end_of_text", "progress"),
    *("allow_special", "skip_special_tokens", "return_prompt", "stream", "sliding_window"),
    *("return_log_probabilities", "multi_label", "overwrite", "in_words", "short"),
    *("use_ema", "amsgrad", "handle_signals", "compile"),
)
RULES = {
    **dict.fromkeys((*_SIZES, "max_sequence_length"), integer(1, most=2**31 - 1)),  # int32
    "num_layers": integer(1, most=10_000),
    **dict.fromkeys((*_COUNTS, "tokens"), integer(1)),
    **dict.fromkeys(("gradient_accumulation_steps", "steps_per_epoch", "shard_count"), integer(1)),
    **dict.fromkeys(("rank", "num_return_sequences"), integer(1)),
    **dict.fromkeys(("num_classes", "num_choices"), integer(2)),
    **dict.fromkeys(("seed", "start", "end_of_text_id", "shard_index"), integer(0)),
    **dict.fromkeys(("num_blocks", "tokens_seen"), integer(0)),
    "max_shard_size": integer(1, "It counts bytes."),
    **dict.fromkeys(("keep", "max_skips", "num_stories", "num_pairs"), integer(1)),
    "on_error": one_of("stop", "warn"),
    "on_mismatch": one_of("error", "restart"),
    "on_nan": one_of("stop", "skip"),
    **dict.fromkeys(("max_new_tokens", "min_new_tokens"), integer(0)),
    "temperature": number("[1e-30, 1e30]", 'sampler="greedy" is the limit at 0.'),
    "top_k": integer(1, "None is for all tokens."),
    "top_p": number("(0, 1]"),
    **dict.fromkeys(("min_p", "ema_momentum"), number("[0, 1]")),
    "repetition_penalty": number("[1e-30, 1e30]", "1 is none; above it, repetition is rarer."),
    "no_repeat_ngram_size": integer(1, "None is for any repetition."),
    "stop": _stop,
    "warmup_steps": integer(0, "It counts updates: for a share, try int(share * steps)."),
    "warmup": number("[0, 1]", "It is a share of the updates: for a count, try count / steps."),
    **dict.fromkeys(("dropout", "attention_dropout", "beta_1", "beta_2"), number("[0, 1)")),
    "validation_fraction": number("[0, 1)", "Try 0.05."),
    "label_smoothing": number("[0, 1)"),
    "threshold": number("(0, 1)", "It is a probability."),
    "layer_decay": number("(0, 1]", "Try 0.9."),
    "mfu": number("(0, 1]", "It is a share of peak_flops."),
    "peak_flops": number("(0, inf)"),
    "price": number("[0, inf)"),
    **dict.fromkeys(("learning_rate", "layer_norm_epsilon", "alpha"), number("(0, inf)")),
    "lora_alpha": number("(0, inf)", "Names of layers are target_layer_names."),
    **dict.fromkeys(("final_learning_rate", "weight_decay", "lm_loss_weight"), number("[0, inf)")),
    "prompt_weight": number("[0, inf)"),
    "truncate": one_of("end", "start"),
    "split": one_of("train", "validation"),
    "reduction": one_of("sum", "mean", "none"),
    "pooling": one_of("last", "mean"),
    "layer": integer(0, "0 is the embedding, num_layers the last block."),
    "k": integer(1),
    "clip_norm": number("(0, inf)", "None is for gradients as they are."),
    **dict.fromkeys(_FLAGS, flag),
    **dict.fromkeys(("clipnorm", "global_clipnorm", "clipvalue", "epsilon"), number("(0, inf)")),
    **dict.fromkeys(("prefix", "token"), string),
    **dict.fromkeys(("path", "html", "folder", "log_dir", "vocabulary", "merges"), _path),
    "batch": _rows,
    "weights": _weights,
    "activation": _activation,
    "head": _head,
    "task_metrics": _metrics,
    **dict.fromkeys(("backbone", "other"), _backbone),
    "lm": _language_model,
    "tokenizer": _tokenizer,
}

# === The decorator ===

Function = typing.TypeVar("Function", bound=Callable)


@typing.overload
def checked(function: Function, **rules) -> Function: ...
@typing.overload
def checked(*, passes_on=None, **rules) -> Callable[[Function], Function]: ...
def checked(function=None, *, passes_on=None, **rules):
    """Decorates a function or an `__init__`, so that it refuses what can't be meant.

    Keywords that it lacks raise TypeError with the name of the argument that is nearest; values
    are checked, and brought into plain Python, by the rules of their arguments' names. None is
    right where it is the default, or where the annotation has it.

    Args:
        function: the function.
        passes_on: a class or a function that takes further keywords; by default, `**kwargs` of a
            model take `name` and `trainable`.
        **rules: rules of this function alone.
    """
    if function is None:
        return functools.partial(checked, passes_on=passes_on, **rules)
    signature = inspect.signature(function)
    own = named_parameters(signature)
    by_place = inspect.Parameter.POSITIONAL_OR_KEYWORD
    positional = [name for name, one in signature.parameters.items() if one.kind == by_place]
    known = {**_further(signature, passes_on), **own}
    rules = {**RULES, **rules}

    def check(name, value):
        if name not in known or name not in rules or (value is None and _may_be_none(known[name])):
            return value
        return rules[name](name, value)

    @functools.wraps(function)
    def with_checks(*args, **kwargs):
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            check_keywords(*_as_called(function, args, known), unknown)
        named = [check(*pair) for pair in zip(positional, args, strict=False)]
        kwargs = {name: check(name, value) for name, value in kwargs.items()}
        return function(*named, *args[len(named) :], **kwargs)

    with_checks.__signature__ = signature  # for Keras, which asks the wrapper itself
    return with_checks


def named_parameters(signature) -> dict:
    """Returns the parameters that have a name of their own, `self` and `cls` left out."""
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if name not in ("self", "cls") and parameter.kind not in several
    }


class FixedOnceBuilt:
    """A layer whose arguments can't be assigned once it is built: its parts have them already.

    They are those of the constructor of the class that has this one as a base.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if FixedOnceBuilt in cls.__bases__:
            cls._fixed = named_parameters(inspect.signature(cls.__init__))

    def __setattr__(self, name, value):
        is_fixed = name in self._fixed and vars(self).get("built", False)
        if is_fixed and getattr(self, name, None) != value:
            kind = type(self).__name__
            refuse_assignment(
                *(kind, name, value),
                f"Try {kind}({name}=...), or, if it is a part of a kgpt.GPTBackbone, a new one.",
            )
        super().__setattr__(name, value)


def refuse_assignment(kind: str, name: str, value, hint: str) -> typing.NoReturn:
    """Raises AttributeError for what would be assigned to a model or a layer without effect."""
    received = " ".join(f"{value!r:.80}".split())
    raise AttributeError(
        f"{name} is fixed when a {kind} is made. Received: {name}={received}. {hint}"
    )


def _further(signature, passes_on) -> dict:
    """Returns the parameters that a function takes as `**kwargs`."""
    if all(one.kind != one.VAR_KEYWORD for one in signature.parameters.values()):
        return {}
    if passes_on is None:
        return dict.fromkeys(("name", "trainable"))
    if inspect.isclass(passes_on):
        return named_parameters(inspect.signature(passes_on.__init__))
    # A function's first argument is the model, which is not passed on.
    return dict(list(named_parameters(inspect.signature(passes_on)).items())[1:])


def _as_called(function, args, known) -> tuple:
    """Returns a function's name and its arguments'; of a class derived from ours, its own."""
    name = function.__name__
    if name != "__init__":
        owner = type(args[0]) if args else None
        is_method = inspect.unwrap(getattr(owner, name, None)) is inspect.unwrap(function)
        return f"{owner.__name__}.{name}" if is_method else function.__qualname__, known
    derived = type(args[0])
    return derived.__name__, {**named_parameters(inspect.signature(derived.__init__)), **known}


def _may_be_none(parameter) -> bool:
    if parameter is None:  # of Keras
        return True
    return parameter.default is None or type(None) in typing.get_args(parameter.annotation)
