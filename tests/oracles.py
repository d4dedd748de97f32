"""Independent references that tests compare kgpt with, and the way from kgpt's weights to them."""

import keras
import numpy as np


def randomize(model, seed=0):
    """Gives every weight a value that matters: biases and gains away from 0 and 1 too."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        noise = rng.standard_normal(variable.shape)
        if variable.name == "gamma":
            value = 1 + 0.2 * noise
        elif variable.name in ("beta", "bias"):
            value = 0.2 * noise
        elif variable.name == "embeddings":
            value = 0.4 * noise
        else:
            value = noise / np.sqrt(variable.shape[0])
        variable.assign(value.astype("float32"))
    return model


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)


def gradients(function, variables):
    """The gradients of a scalar `function()` with respect to Keras variables, as arrays."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = function()
        found = tape.gradient(loss, [v.value for v in variables])
        return [tf.convert_to_tensor(g).numpy() for g in found]
    if keras.backend.backend() == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function()

        found = jax.jit(jax.grad(stateless))([v.value for v in variables])
        return [np.asarray(g) for g in found]
    import torch

    found = torch.autograd.grad(function(), [v.value for v in variables])
    return [to_numpy(g) for g in found]


def assert_same_in_training(theirs, ours, inputs, rtol, atol):
    """Checks that two layers with the same weights have the same outputs and gradients."""
    results = []
    for layer in (theirs, ours):
        states = keras.Variable(inputs)

        def outputs(layer=layer, states=states):
            return layer(keras.ops.convert_to_tensor(states), training=True)

        def loss(outputs=outputs):
            out = outputs()
            factors = np.random.default_rng(1).standard_normal(out.shape)
            return keras.ops.sum(out * keras.ops.convert_to_tensor(factors, out.dtype))

        found = keras.ops.cast(keras.ops.stop_gradient(outputs()), "float32")
        results.append([to_numpy(found), *gradients(loss, [states, *layer.trainable_variables])])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(other, one, rtol=rtol, atol=atol)


# --- GPT in numpy, float64, as the papers write it ----------------------------------------------


def numpy_layer_norm(x, gain, bias, epsilon=1e-5):
    centered = x - x.mean(-1, keepdims=True)
    return gain * centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon) + bias


def numpy_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_attention(x, weights, num_heads, visible=None):
    """`weights`: of the map to query, key and value, its bias, of the output map, its bias.

    `visible`: optional `(batch, query, key)`, beside the causal rule.
    """
    W, b, W_o, b_o = (np.asarray(w, "float64") for w in weights)
    length, hidden_dim = x.shape[1:]
    head_dim = hidden_dim // num_heads
    query, key, value = np.split(x @ W + b, 3, axis=-1)
    rule = np.tril(np.ones((length, length), bool))[None]
    rule = rule if visible is None else rule & visible
    heads = []
    for n in range(num_heads):
        part = slice(n * head_dim, (n + 1) * head_dim)
        scores = np.einsum("bqd,bkd->bqk", query[..., part], key[..., part]) / np.sqrt(head_dim)
        scores = np.where(rule, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(scores / scores.sum(-1, keepdims=True) @ value[..., part])
    return np.concatenate(heads, -1) @ W_o + b_o


def numpy_feed_forward(x, weights):
    W_1, b_1, W_2, b_2 = (np.asarray(w, "float64") for w in weights)
    return numpy_gelu(x @ W_1 + b_1) @ W_2 + b_2


def numpy_block(x, weights, num_heads, norm_first, visible=None):
    """`weights`: a dict from the checkpoints' names, such as `"attn.c_attn.weight"`."""

    def attention(x):
        names = ("attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias")
        return numpy_attention(x, [weights[n] for n in names], num_heads, visible)

    def feed_forward(x):
        names = ("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
        return numpy_feed_forward(x, [weights[n] for n in names])

    def norm(x, name):
        return numpy_layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    if norm_first:
        n = x + attention(norm(x, "ln_1"))
        return n + feed_forward(norm(n, "ln_2"))
    n = norm(x + attention(x), "ln_1")
    return norm(n + feed_forward(n), "ln_2")


def numpy_cross_entropy(logits, targets):
    """The negative log-likelihood of each target, of the shape of `targets`."""
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_softmax, np.asarray(targets)[..., None], axis=-1)[..., 0]


# --- Weights by the names in OpenAI's checkpoints and in transformers' files --------------------


def block_weights(block):
    """A `DecoderBlock`'s Keras variables by name."""
    maps = {
        "attn.c_attn": block.attention.query_key_value,
        "attn.c_proj": block.attention.output_projection,
        "mlp.c_fc": block.feed_forward.expansion,
        "mlp.c_proj": block.feed_forward.output_projection,
    }
    norms = {"ln_1": block.attention_norm, "ln_2": block.feed_forward_norm}
    weights = {}
    for name, layer in maps.items():
        weights |= {f"{name}.weight": layer.kernel, f"{name}.bias": layer.bias}
    for name, layer in norms.items():
        weights |= {f"{name}.weight": layer.gamma, f"{name}.bias": layer.beta}
    return weights


def backbone_weights(backbone):
    """A `GPTBackbone`'s Keras variables by name; all of them."""
    tokens, positions = (
        ("wte", "wpe") if backbone.norm_first else ("tokens_embed", "positions_embed")
    )
    weights = {
        f"{tokens}.weight": backbone.token_embedding.embeddings,
        f"{positions}.weight": backbone.embedding.position_embedding.embeddings,
    }
    for i, block in enumerate(backbone.decoder_blocks):
        weights |= {f"h.{i}.{name}": weight for name, weight in block_weights(block).items()}
    if backbone.norm_first:
        weights |= {
            "ln_f.weight": backbone.final_norm.gamma,
            "ln_f.bias": backbone.final_norm.beta,
        }
    assert len(weights) == len(backbone.weights)
    return weights


def transformers_config(backbone):
    """The configuration of the same model in transformers, dropout off."""
    import transformers

    sizes = {
        "vocab_size": backbone.vocabulary_size,
        "n_positions": backbone.max_sequence_length,
        "n_embd": backbone.hidden_dim,
        "n_layer": backbone.num_layers,
        "n_head": backbone.num_heads,
        "layer_norm_epsilon": backbone.layer_norm_epsilon,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "pad_token_id": 0,
    }
    if backbone.norm_first:
        inner = {"n_inner": backbone.intermediate_dim, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2Config(**sizes, **inner, attn_implementation="eager")
    assert backbone.intermediate_dim == 4 * backbone.hidden_dim
    return transformers.OpenAIGPTConfig(**sizes, afn="gelu")


def transformers_twin(backbone):
    """The language model of transformers with the same weights."""
    import torch
    import transformers

    twin = (
        transformers.GPT2LMHeadModel if backbone.norm_first else transformers.OpenAIGPTLMHeadModel
    )(transformers_config(backbone))
    state = {
        f"transformer.{name}": torch.tensor(to_numpy(weight))
        for name, weight in backbone_weights(backbone).items()
    }
    state["lm_head.weight"] = torch.tensor(to_numpy(backbone.token_embedding.embeddings))
    twin.load_state_dict(state, strict=True)
    return twin.eval()


def keras_hub_twin(backbone):
    """keras-hub's `GPT2Backbone` with the same weights."""
    import keras_hub

    twin = keras_hub.models.GPT2Backbone(
        vocabulary_size=backbone.vocabulary_size,
        num_layers=backbone.num_layers,
        num_heads=backbone.num_heads,
        hidden_dim=backbone.hidden_dim,
        intermediate_dim=backbone.intermediate_dim,
        dropout=0.0,
        max_sequence_length=backbone.max_sequence_length,
    )

    def assign(variable, value):
        variable.assign(np.reshape(value, variable.shape))

    assign(twin.token_embedding.embeddings, backbone.token_embedding.embeddings)
    positions = backbone.embedding.position_embedding.embeddings
    assign(twin.position_embedding.position_embeddings, positions)
    for theirs, block in zip(twin.transformer_layers, backbone.decoder_blocks, strict=True):
        ours = {name: to_numpy(weight) for name, weight in block_weights(block).items()}
        attention = theirs._self_attention_layer
        for n, dense in enumerate(
            (attention.query_dense, attention.key_dense, attention.value_dense)
        ):
            assign(dense.kernel, np.split(ours["attn.c_attn.weight"], 3, axis=-1)[n])
            assign(dense.bias, np.split(ours["attn.c_attn.bias"], 3)[n])
        for name, dense in {
            "attn.c_proj": attention.output_dense,
            "mlp.c_fc": theirs._feedforward_intermediate_dense,
            "mlp.c_proj": theirs._feedforward_output_dense,
        }.items():
            assign(dense.kernel, ours[f"{name}.weight"])
            assign(dense.bias, ours[f"{name}.bias"])
        for name, norm in {
            "ln_1": theirs._self_attention_layer_norm,
            "ln_2": theirs._feedforward_layer_norm,
        }.items():
            assign(norm.gamma, ours[f"{name}.weight"])
            assign(norm.beta, ours[f"{name}.bias"])
    assign(twin.layer_norm.gamma, backbone.final_norm.gamma)
    assign(twin.layer_norm.beta, backbone.final_norm.beta)
    return twin


# --- What every layer must do -------------------------------------------------------------------


def run_keras_layer_test(layer_class, arguments, weights, input_dtype="float32", shape=(2, 5, 12)):
    """The checks that Keras makes of its own layers, training and serialization among them."""
    from keras.src import testing

    # XLA on a CPU has no float16 products; Keras leaves them out on torch itself.
    has_float16 = keras.backend.backend() != "jax" or on_accelerator()
    testing.TestCase().run_layer_test(
        layer_class,
        init_kwargs=arguments,
        input_shape=shape,
        input_dtype=input_dtype,
        expected_output_shape=(2, 5, 12),
        expected_num_trainable_weights=weights,
        expected_num_non_trainable_weights=0,
        expected_num_losses=0,
        supports_masking=True,
        run_mixed_precision_check=has_float16,
    )


def on_accelerator():
    return not keras.distribution.list_devices()[0].lower().startswith("cpu")


def skip_without_float16(policy):
    if policy == "mixed_float16" and keras.backend.backend() == "jax" and not on_accelerator():
        import pytest

        pytest.skip("XLA has no float16 matrix products on a CPU")


def assert_finite_with_gradients(function, variables):
    """Checks `function()`, a tensor, and the gradients of its mean square."""
    output = to_numpy(keras.ops.cast(function(), "float32"))
    assert np.isfinite(output).all()

    def loss():
        return keras.ops.mean(keras.ops.square(keras.ops.cast(function(), "float32")))

    for gradient, variable in zip(gradients(loss, variables), variables, strict=True):
        assert np.isfinite(gradient).all(), variable.path
