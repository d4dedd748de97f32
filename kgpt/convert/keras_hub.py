"""GPT-2, and tokenizers of its style, from and to keras-hub."""

import functools
import json
from typing import Any

from keras import ops

from kgpt.initializers import starting_at_zero
from kgpt.layers.feed_forward import gelu_tanh
from kgpt.models import CausalLM, GPTBackbone
from kgpt.tokenizer import Tokenizer
from kgpt.tokenizer.training import tokenizer_from_parts

_OPTIONS = (
    "vocabulary_size",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
    "dropout",
    "max_sequence_length",
)
_EPSILON = 1e-5  # fixed in keras-hub's GPT-2


def from_keras_hub(model) -> Any:
    """Returns a keras-hub GPT-2 as a kgpt model, with copies of its weights.

    Args:
        model: a `keras_hub.models.GPT2Backbone`, or a `keras_hub.models.GPT2CausalLM`, whose
            tokenizer is converted too if it has one. keras-hub's preprocessor puts the end-of-text
            token before each prompt, `generate` here does not: to go on alike, give it the ids
            `[tokenizer.end_of_text_id, *tokenizer.encode(prompt)]`.

    Returns:
        `GPTBackbone`, or `CausalLM` with its `backbone` and `tokenizer`.

    Raises:
        ValueError: for other models, and if weights are quantized.
        ImportError: if keras-hub is not installed.

    Example:
        import keras_hub

        lm = kgpt.from_keras_hub(keras_hub.models.GPT2CausalLM.from_preset("gpt2_base_en"))
    """
    models = _import_keras_hub().models
    is_lm = isinstance(model, models.GPT2CausalLM)
    theirs = model.backbone if is_lm else model
    if not isinstance(theirs, models.GPT2Backbone):
        raise ValueError(
            "Only keras-hub's GPT2Backbone and GPT2CausalLM can be converted. "
            f"Received: a {type(model).__name__}. Of a folder or a preset's name, try "
            "from_keras_hub(keras_hub.models.GPT2CausalLM.from_preset(name))."
        )
    _check_plain(theirs)
    with starting_at_zero():
        options = {name: getattr(theirs, name) for name in _OPTIONS}
        ours = GPTBackbone(**options, layer_norm_epsilon=_EPSILON, dtype=theirs.dtype_policy)
    for (layer, name), parts in _pairs(ours, theirs):
        variable = getattr(layer, name)
        rows = tuple(variable.shape)[:-1]
        parts = [ops.reshape(getattr(*part), (*rows, -1)) for part in parts]
        variable.assign(ops.copy(ops.concatenate(parts, axis=-1)))
    if not is_lm:
        return ours
    tokenizer = getattr(model.preprocessor, "tokenizer", None)
    return CausalLM(ours, tokenizer=None if tokenizer is None else _tokenizer(tokenizer))


def _tokenizer(theirs):
    merged = {merge.replace(" ", "") for merge in theirs.merges}
    special = [token for token in theirs.vocabulary if len(token) > 1 and token not in merged]
    special = sorted(special, key=theirs.vocabulary.get)
    parts = tokenizer_from_parts(dict(theirs.vocabulary), theirs.merges, "gpt2", special)
    return Tokenizer(parts.to_str())


def to_keras_hub(model) -> Any:
    """Returns a model as a keras-hub GPT-2, with copies of its weights.

    Args:
        model: a `GPTBackbone`, or a `CausalLM`, whose tokenizer is converted too if it is of
            GPT-2's style. keras-hub's preprocessor puts the end-of-text token before each text, and
            so goes on otherwise than `lm.generate(text)`.

    Returns:
        `keras_hub.models.GPT2Backbone`, or `keras_hub.models.GPT2CausalLM`.

    Raises:
        ValueError: for other models, and for options that keras-hub's GPT-2 lacks.
        ImportError: if keras-hub is not installed.

    Example:
        kgpt.to_keras_hub(lm).save_to_preset("my-gpt")
    """
    models = _import_keras_hub().models
    ours = model.backbone if isinstance(model, CausalLM) else model
    if not isinstance(ours, GPTBackbone):
        raise ValueError(
            f"Only a GPTBackbone or CausalLM can be converted. Received: a {type(model).__name__}."
        )
    _check_plain(ours)
    _check_is_gpt2(ours)
    options = {name: getattr(ours, name) for name in _OPTIONS}
    theirs = models.GPT2Backbone(**options, dtype=ours.dtype_policy)
    for weight, parts in _pairs(ours, theirs):
        values = ops.split(ops.convert_to_tensor(getattr(*weight)), len(parts), axis=-1)
        for (layer, name), value in zip(parts, values, strict=True):
            variable = getattr(layer, name)
            variable.assign(ops.copy(ops.reshape(value, variable.shape)))
    if model is ours:
        return theirs
    return models.GPT2CausalLM(
        theirs, preprocessor=_preprocessor(models, model.tokenizer, ours.max_sequence_length)
    )


def _import_keras_hub():
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            "Conversion from and to keras-hub needs keras-hub, which is not installed. "
            "Try: pip install keras-hub"
        ) from error
    return keras_hub


def _check_plain(backbone):
    quantized = [layer.path for layer in backbone._flatten_layers() if layer.quantization_mode]
    if quantized:
        raise ValueError(
            "Quantized weights can't be converted. "
            f"Received: a backbone where {len(quantized)} layers are quantized, {quantized[0]} "
            "among them. Convert first, then quantize the result."
        )


def _check_is_gpt2(backbone):
    wanted = {"norm_first": True, "activation": gelu_tanh, "layer_norm_epsilon": _EPSILON}
    wanted |= {"query_key_norm": False, "rotary_positions": False}
    for name, value in wanted.items():
        received = getattr(backbone, name)
        if received != value:
            raise ValueError(
                f"keras-hub's GPT-2 always has {name}={getattr(value, '__name__', value)}. "
                f"Received: a backbone with {name}={getattr(received, '__name__', received)}."
            )


def _pairs(ours, theirs):
    """Returns pairs of a weight of ours, `(layer, attribute)`, and the weights of theirs in it."""
    pairs = [
        ((ours.token_embedding, "embeddings"), [(theirs.token_embedding, "embeddings")]),
        (
            (ours.embedding.position_embedding, "embeddings"),
            [(theirs.position_embedding, "position_embeddings")],
        ),
    ]
    norms = [(ours.final_norm, theirs.layer_norm)]
    for block, layer in zip(ours.decoder_blocks, theirs.transformer_layers, strict=True):
        attention = layer._self_attention_layer
        query_key_value = [attention.query_dense, attention.key_dense, attention.value_dense]
        denses = [
            (block.attention.query_key_value, query_key_value),
            (block.attention.output_projection, [attention.output_dense]),
            (block.feed_forward.expansion, [layer._feedforward_intermediate_dense]),
            (block.feed_forward.output_projection, [layer._feedforward_output_dense]),
        ]
        pairs += [
            ((dense, name), [(part, name) for part in parts])
            for dense, parts in denses
            for name in ("kernel", "bias")
        ]
        norms += [
            (block.attention_norm, layer._self_attention_layer_norm),
            (block.feed_forward_norm, layer._feedforward_layer_norm),
        ]
    return pairs + [((a, name), [(b, name)]) for a, b in norms for name in ("gamma", "beta")]


def _preprocessor(models, tokenizer, sequence_length):
    if tokenizer is None or tokenizer.style != "gpt2" or tokenizer.end_of_text_id is None:
        return None
    parts = tokenizer.to_keras_hub()  # raises for what keras-hub lacks
    return models.GPT2CausalLMPreprocessor(
        models.GPT2Tokenizer(vocabulary=parts.vocabulary, merges=parts.merges),
        sequence_length=sequence_length,
    )


# === Tokenizers ===


def tokenizer_to_keras_hub(tokenizer):
    """Returns a tokenizer as a keras-hub layer, for use inside `tf.data`.

    Args:
        tokenizer: `kgpt.Tokenizer` of GPT-2's style.

    Returns:
        `keras_hub.tokenizers.BytePairTokenizer`.

    Raises:
        ValueError: for styles other than `"gpt2"`, and split patterns other than GPT-2's.
        ImportError: if keras-hub is not installed.
    """
    parts = json.loads(tokenizer.get_config()["tokenizer_json"])
    splits = parts["pre_tokenizer"] or {}
    is_gpt2s = splits.get("use_regex") and not splits.get("add_prefix_space")
    if tokenizer.style != "gpt2" or not is_gpt2s or parts["normalizer"]:
        raise ValueError(
            "keras-hub supports byte-level BPE with GPT-2's split pattern only. Received: "
            f"style={tokenizer.style!r}, pre_tokenizer={splits.get('type')}. "
            "Try kgpt.data.write_tokens, which encodes before tf.data."
        )
    ids = parts["model"]["vocab"] | {t["content"]: t["id"] for t in parts["added_tokens"]}
    make = _tokenizer_class(_import_keras_hub().tokenizers.BytePairTokenizer)
    return make(
        vocabulary=dict(sorted(ids.items(), key=lambda item: item[1])),
        merges=[" ".join(pair) for pair in parts["model"]["merges"]],
        unsplittable_tokens=[],
    )


@functools.cache
def _tokenizer_class(base):
    import tensorflow as tf

    class GPT2BytePairTokenizer(base):
        """keras-hub's tokenizer, with GPT-2's two tokens for an empty line before text.

        keras-hub's own class never splits a run of line breaks, as Llama 3 does not; GPT-2's
        pattern joins the last one to the text that follows. Hence texts are cut there first.
        """

        def tokenize(self, inputs):
            texts = tf.convert_to_tensor(inputs)
            ids = self._tokenize_flat(tf.reshape(texts, [-1]))
            return ids[0] if texts.shape.rank == 0 else ids

        # A graph even outside tf.data: there keras-hub would split by Llama 3's pattern.
        @tf.function(input_signature=[tf.TensorSpec([None], "string")])
        def _tokenize_flat(self, texts):
            cut = tf.strings.regex_replace(texts, r"(\s)\n(\S)", "\\1\uffff\n\\2")
            pieces = tf.strings.split(cut, "\uffff")  # (batch, pieces)
            ids = super().tokenize(pieces.flat_values)  # (all pieces, length)
            return tf.RaggedTensor.from_row_splits(ids, pieces.row_splits).merge_dims(1, 2)

    return GPT2BytePairTokenizer
