"""The config.json of transformers' GPTs, from and to the arguments of kgpt's classes."""

import inspect

import keras
from keras import ops

from kgpt.arguments import RULES, named_parameters
from kgpt.console import warn
from kgpt.convert.weights import Tensor
from kgpt.data.columns import read_class_names
from kgpt.layers.feed_forward import gelu_tanh
from kgpt.models import CausalLM, GPTBackbone, MultipleChoice, TextClassifier, TextRegressor
from kgpt.models.presets import check_sizes

# What follows "GPT2" or "OpenAIGPT" in the names of transformers' classes.
TASKS = {
    "backbone": "Model",
    "causal_lm": "LMHeadModel",
    "text_classifier": "ForSequenceClassification",
    "text_regressor": "ForSequenceClassification",
    "multiple_choice": "DoubleHeadsModel",
}
MODELS = {
    "backbone": GPTBackbone,
    "causal_lm": CausalLM,
    "text_classifier": TextClassifier,
    "text_regressor": TextRegressor,
    "multiple_choice": MultipleChoice,
}
PREFIXES = {"gpt2": "GPT2", "openai-gpt": "OpenAIGPT"}
_SIZES = {
    "vocabulary_size": "vocab_size",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "hidden_dim": "n_embd",
    "max_sequence_length": "n_positions",
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
# Activations by their names in the configs: OpenAI GPT's "gelu" is the tanh form.
_ACTIVATIONS = {
    "gpt2": {
        "gelu_new": gelu_tanh,
        "gelu_pytorch_tanh": gelu_tanh,
        "gelu": keras.activations.gelu,
        "relu": keras.activations.relu,
        "silu": keras.activations.silu,
        "swish": keras.activations.silu,
        "tanh": keras.activations.tanh,
    },
    "openai-gpt": {
        "gelu": gelu_tanh,
        "relu": keras.activations.relu,
        "silu": keras.activations.silu,
        "swish": keras.activations.silu,
    },
}
# What configs can ask for, with the only value that is supported.
_SUPPORTED_IN_GPT2 = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
_SUPPORTED = {
    **_SUPPORTED_IN_GPT2,
    "tie_word_embeddings": True,
    "is_encoder_decoder": False,
    "pruned_heads": None,
    "quantization_config": None,
    "auto_map": None,
}
# What other keys ask nothing of a model's outputs.
_WITHOUT_EFFECT = {
    *("_name_or_path", "architectures", "model_type", "transformers_version", "_num_labels"),
    *("torch_dtype", "dtype", "initializer_range", "use_cache", "return_dict"),
    *("n_ctx", "n_special"),
    *("output_attentions", "output_hidden_states", "gradient_checkpointing", "finetuning_task"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
    *("task_specific_params", "tokenizer_class", "problem_type", "id2label", "label2id"),
    *("predict_special_tokens", "summary_first_dropout", "chunk_size_feed_forward", "max_length"),
    *("do_sample", "temperature", "top_k", "top_p", "n_inner", "activation_function", "afn"),
    *("layer_norm_epsilon", "vocab_size_padded", "attn_implementation", "_attn_implementation"),
}
# What transformers calls the kinds of heads.
_PROBLEMS = {"text_classifier": "single_label_classification", "text_regressor": "regression"}
_MULTI_LABEL = "multi_label_classification"
# A head's bias, which stands in the last norm of the files: see huggingface.py.
BIAS = "kgpt_output_bias"
# What else transformers has no place for, under the key "kgpt": of texts, with the defaults, which
# are left out; and all.
_OF_TEXTS = {"sequence_length": None, "truncate": "end"}
_OWN = ("dropout", "lm_loss_weight", "class_names", "label_smoothing", *_OF_TEXTS)
_SUPPORTED_SUMMARY = {
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "summary_activation": None,
    "summary_proj_to_labels": True,
    "summary_last_dropout": 0,
}


# === From a config ===


def backbone_options(config, dropout) -> dict:
    """Returns the arguments of `GPTBackbone`; raises ValueError for what kgpt lacks."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in PREFIXES:
        raise ValueError(
            f"Models of the types {' and '.join(PREFIXES)} can be read. "
            f"Received: a config with model_type={kind!r}."
        )
    _refuse_others(config, _SUPPORTED)
    _say_unknown(config)
    lacking = [key for key in _SIZES.values() if key not in config]
    if lacking:
        raise ValueError(
            f"The config must say {', '.join(lacking)}. Received: one with {sorted(config)}."
        )
    key, default = ("activation_function", "gelu_new") if kind == "gpt2" else ("afn", "gelu")
    activation = config.get(key, default)
    if not isinstance(activation, str) or activation not in _ACTIVATIONS[kind]:
        raise ValueError(
            f"The config asks for what is not supported. Received: {key}={activation!r}. "
            f"Supported are {', '.join(_ACTIVATIONS[kind])}."
        )
    rates = {key: config.get(key, 0.1) for key in _DROPOUTS}
    if dropout is None and len(set(rates.values())) > 1:
        raise ValueError(
            f"A body has one rate of dropout. Received: a config with {rates}. "
            "Choose one by from_huggingface(..., dropout=0.1)."
        )
    options = {
        **{name: config[key] for name, key in _SIZES.items()},
        "dropout": rates["resid_pdrop"] if dropout is None else dropout,
        "layer_norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
    }
    inner = config.get("n_inner") if kind == "gpt2" else None
    if inner is not None:
        options["intermediate_dim"] = inner
    options = {name: RULES[name](name, value) for name, value in options.items()}
    check_sizes(options)
    kept = {"norm_first": kind == "gpt2", "activation": _ACTIVATIONS[kind][activation]}
    return {**options, **kept}


def _say_unknown(config):
    """Warns of keys that kgpt lacks; raises ValueError for those that a later kgpt has written."""
    known = {*_SUPPORTED, *_SUPPORTED_SUMMARY, *_WITHOUT_EFFECT, *_SIZES.values(), *_DROPOUTS}
    unknown = sorted(key for key, value in config.items() if value and key not in known)
    own = {f"kgpt: {key}" for key in config.get("kgpt") or {} if key not in _OWN}
    own |= {key for key in unknown if key.startswith("kgpt") and key not in ("kgpt", BIAS)}
    if own:
        raise ValueError(
            "The config has settings that this version does not know. "
            f"Received: {', '.join(sorted(own))[:200]}. Try a later version of kgpt."
        )
    unknown = [key for key in unknown if not key.startswith("kgpt")]
    if unknown:
        warn(
            "The config has keys that kgpt does not know, and leaves out: the model may not be "
            f"what its files mean. Received: {', '.join(unknown)[:200]}.",
        )


def _refuse_others(config, supported):
    for key, wanted in supported.items():
        value = config.get(key, wanted)
        if value != wanted and (value or wanted):
            raise ValueError(
                "The config asks for what is not supported. "
                f"Received: {key}={value!r}. Supported is {key}={wanted!r}."
            )


def task_in_files(config, tensors: dict[str, Tensor] | None) -> str:
    """Returns the kind of model in the files, by the name of its class in the config."""
    [name, *_] = config.get("architectures") or ["LMHeadModel"]
    ending = name.removeprefix(PREFIXES[config["model_type"]])
    if ending == "ForSequenceClassification":
        is_regression = config.get("problem_type") == "regression"
        is_regression = is_regression or _num_labels(config, tensors) == 1
        return "text_regressor" if is_regression else "text_classifier"
    if ending not in TASKS.values():
        raise ValueError(
            f"There is no head for this model. Received: a config with architectures=[{name!r}]. "
            f"There are heads for {', '.join(sorted(set(TASKS.values())))}."
        )
    return next(task for task, class_ending in TASKS.items() if class_ending == ending)


def has_head(task, config, tensors: dict[str, Tensor] | None) -> bool:
    """Returns whether a head of this kind is in the files."""
    in_files = task_in_files(config, tensors)
    # Classes and numbers are one class of transformers, whose configs may leave open which.
    is_open = TASKS[task] == TASKS[in_files] and not config.get("problem_type")
    return task == in_files or is_open


def _num_labels(config, tensors) -> int:
    if tensors is None:  # the config alone, which leaves out what transformers has by default
        return len(config.get("id2label") or ("LABEL_0", "LABEL_1"))
    if "score.weight" not in tensors:
        raise ValueError("The weights of the head are missing: there is no tensor score.weight.")
    return tensors["score.weight"].shape[0]


def head_options(task, config, tensors: dict[str, Tensor] | None) -> dict:
    """Returns the arguments of a head that is in the files."""
    if task == "backbone":
        return {}
    # transformers keeps the keys of one kind of head where it makes another.
    known = named_parameters(inspect.signature(MODELS[task].__init__))
    own = {name: value for name, value in config.get("kgpt", {}).items() if name in known}
    if task == "multiple_choice":
        _refuse_others(config, _SUPPORTED_SUMMARY)
        return {"dropout": config.get("summary_first_dropout", 0.1), **own}
    if task == "text_regressor":
        return {"num_outputs": _num_labels(config, tensors), "both_orders": False, **own}
    if task == "text_classifier":
        problem = config.get("problem_type") or _PROBLEMS["text_classifier"]
        multi_label = problem == _MULTI_LABEL
        if not multi_label:
            _refuse_others(config, {"problem_type": _PROBLEMS["text_classifier"]})
        names, num_classes = config.get("id2label") or {}, _num_labels(config, tensors)
        numbers = sorted({*map(str, range(num_classes)), *names}, key=int)
        names = [names.get(i) for i in numbers] if names else []
        default = [f"LABEL_{i}" for i in range(len(names))]
        named = {} if names == default else {"class_names": names}
        options = {"num_classes": num_classes, "multi_label": multi_label}
        return {**options, **named, **own}
    return own


def chosen(own: dict, asked: dict) -> tuple[dict, bool]:
    """Returns the arguments of a head in files with others in their place, and if it stays.

    A head of another number of outputs can't keep its weights.
    """
    asked = {name: value for name, value in asked.items() if (name, value) != ("num_classes", None)}
    if asked.get("class_names") is not None and "num_classes" not in asked:
        asked["class_names"] = read_class_names(asked["class_names"])
        asked["num_classes"] = len(asked["class_names"])
    is_kept = all(
        asked.get(size, own[size]) == own[size]
        for size in ("num_classes", "num_outputs")
        if size in own
    )
    if not is_kept:
        own = {name: value for name, value in own.items() if name != "class_names"}
    names = None if "class_names" in asked else own.get("class_names")
    if names and (None in names or len({*map(str, names)}) != own["num_classes"]):
        raise ValueError(
            "The files must have a different name for each class, in id2label of config.json. "
            f"Received: {names!r:.100} for {own['num_classes']} classes. Choose others by "
            "class_names=[...], or none by class_names=None."
        )
    return {**own, **asked}, is_kept


# === To a config ===


def make_config(model) -> dict:
    """Returns the whole config of a model that transformers can represent."""
    task = next((task for task, kind in MODELS.items() if type(model) is kind), None)
    if task is None:
        raise ValueError(
            "Only a GPTBackbone, CausalLM, TextClassifier, TextRegressor or MultipleChoice can be "
            f"written for transformers. Received: a {type(model).__name__}."
        )
    backbone = getattr(model, "backbone", model)
    kind = "gpt2" if backbone.norm_first else "openai-gpt"
    names = {function: name for name, function in reversed(_ACTIVATIONS[kind].items())}
    activation = names.get(backbone.activation)
    _refuse_unknown(model, backbone, kind, activation)
    end, pad = end_and_pad_ids(getattr(model, "tokenizer", None))
    config = {
        "architectures": [PREFIXES[kind] + TASKS[task]],
        "model_type": kind,
        "torch_dtype": keras.backend.standardize_dtype(backbone.variable_dtype),
        **{key: getattr(backbone, name) for name, key in _SIZES.items()},
        "n_ctx": backbone.max_sequence_length,
        **dict.fromkeys(_DROPOUTS, backbone.dropout),
        "layer_norm_epsilon": backbone.layer_norm_epsilon,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        **{"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad},
    }
    if kind == "gpt2":
        config |= {"activation_function": activation, "n_inner": backbone.intermediate_dim}
        config |= {**_SUPPORTED_IN_GPT2, "use_cache": True}
    else:
        config["afn"] = activation
    return config | _head_config(model, task)


def end_and_pad_ids(tokenizer) -> tuple[int | None, int | None]:
    """Returns the ids that end a text, and that pad rows for transformers; None if there is none.

    transformers reads a row's class from its last token that is no padding: what pads must not
    end a row. So GPT-1's tokenizer, which has no end of text, pads with the token of the start.
    """
    end = getattr(tokenizer, "end_of_text_id", None)
    return end, getattr(tokenizer, "start_id", None) if end is None else end


def _head_config(model, task) -> dict:
    if task == "backbone":
        return {}
    own = {name: getattr(model, name) for name in _OF_TEXTS}
    own = {name: value for name, value in own.items() if value != _OF_TEXTS[name]}
    if task == "causal_lm":
        return {"kgpt": own} if own else {}
    own |= {"dropout": model.dropout, "lm_loss_weight": model.lm_loss_weight}
    config = {"kgpt": own}
    if task == "multiple_choice":
        return {**config, **_SUPPORTED_SUMMARY, "summary_first_dropout": model.dropout}
    names = getattr(model, "class_names", None)
    default = [f"LABEL_{i}" for i in range(model.output_projection.units)]
    labels = names or default
    if names == default:  # transformers has these for models without names
        own["class_names"] = names
    if task == "text_classifier":
        own["label_smoothing"] = model.label_smoothing
    problem = _MULTI_LABEL if getattr(model, "multi_label", False) else _PROBLEMS[task]
    bias = ops.convert_to_numpy(model.output_projection.bias)
    return {
        **config,
        **({BIAS: bias.tolist()} if bias.any() else {}),
        "problem_type": problem,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _refuse_unknown(model, backbone, kind, activation):
    """Raises for what transformers' models lack, by name."""
    options = backbone.get_config()
    known = {*_SIZES, "name", "trainable", "dtype", "dropout", "norm_first", "layer_norm_epsilon"}
    known |= {"lora_rank", "lora_alpha", "lora_target_layer_names"}  # what is read is the sum
    known |= {"num_frozen_blocks", "trainable_layers", "recompute"}  # of training only
    known.add("zero_init_residual")  # of the start only
    if activation is not None:
        known.add("activation")
    if kind == "gpt2" or backbone.intermediate_dim == 4 * backbone.hidden_dim:
        known.add("intermediate_dim")
    lacking = {name: value for name, value in options.items() if value and name not in known}
    if getattr(model, "both_orders", False):
        lacking["both_orders"] = True
    if lacking:
        received = ", ".join(f"{name}={value!r}" for name, value in lacking.items())
        hint = " Heads of single texts are made with both_orders=False."
        raise ValueError(
            f"transformers' {PREFIXES[kind]} has no place for part of this model. "
            f"Received: {received}.{hint if 'both_orders' in lacking else ''}"
        )
