import keras
import numpy as np
import pytest
from oracles import gradients, randomize, to_numpy

import kgpt
from kgpt.layers import DecoderBlock

BACKEND = keras.backend.backend()
BATCH, HEADS, WIDTH, INNER = 2, 3, 12, 20
SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "max_sequence_length": 300}
# XLA is free to compute a sum in another order: the last digits of the largest summands.
CLOSE = 2e-6 if BACKEND == "jax" else 0


def make_block(**options):
    keras.utils.set_random_seed(0)
    block = DecoderBlock(HEADS, INNER, dropout=0.3, **options)
    block.build((None, None, WIDTH))
    return randomize(block)


def with_lora(block):
    block.attention.query_key_value.enable_lora(
        2, a_initializer="random_normal", b_initializer="ones"
    )
    return block


def partly_frozen(block):
    block.feed_forward.trainable = False
    return block


def outputs_and_gradients(block, length):
    """Two steps' outputs, so that the second has other random numbers, and its gradients."""
    rng = np.random.default_rng(0)
    states = keras.Variable(rng.standard_normal((BATCH, length, WIDTH)).astype("float32"))
    padding_mask = np.ones((BATCH, length), bool)
    padding_mask[0, 2:4] = False
    segment_ids = np.array([[0] * 3 + [1] * (length - 3), [0] * length], "int32")

    def loss():
        y = block(
            keras.ops.convert_to_tensor(states),
            padding_mask=keras.ops.convert_to_tensor(padding_mask),
            segment_ids=keras.ops.convert_to_tensor(segment_ids),
            training=True,
        )
        return keras.ops.sum(keras.ops.square(keras.ops.cast(y, "float32")))

    first = to_numpy(keras.ops.stop_gradient(loss()))
    return [first, *gradients(loss, [states, *block.trainable_variables])]


def assert_same(plain, again, close=CLOSE):
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(other, one, rtol=close, atol=close * np.abs(one).max())


@pytest.mark.parametrize(
    ("options", "change", "length"),
    [
        ({}, None, 5),
        ({"norm_first": False, "query_key_norm": True}, None, 5),
        ({"rotary_positions": True}, with_lora, 6),
        ({}, partly_frozen, 5),
        ({}, None, 260),  # from 256 positions on attention has a gradient of its own
    ],
    ids=["gpt2", "gpt1", "lora", "frozen", "tiles"],
)
def test_gradients_are_those_without_recomputation(options, change, length):
    change = change or (lambda block: block)

    plain = outputs_and_gradients(change(make_block(**options)), length)
    again = outputs_and_gradients(change(make_block(**options, recompute=True)), length)

    assert len(plain) > 2
    assert_same(plain, again)


def test_gradients_in_mixed_precision_are_those_without_recomputation():
    plain, again = (
        outputs_and_gradients(make_block(dtype="mixed_bfloat16", recompute=recompute), 5)
        for recompute in (False, True)
    )

    assert_same(plain, again, close=1 / 64 if BACKEND == "jax" else 0)  # XLA rounds less often


# === What is kept for the backward pass ===


def bytes_on_torch(block, x):
    import torch

    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    held = {v.value.untyped_storage().data_ptr() for v in block.variables}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = block(block(x, training=True), training=True)
    assert y.requires_grad
    return sum(size for address, size in seen.items() if address not in held)


def bytes_on_jax(block, x):
    import jax

    def loss(values, x):
        mapping = list(zip(block.trainable_variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            for _ in range(6):
                x = block(x, training=True)
            return keras.ops.sum(x * x)

    values = [v.value for v in block.trainable_variables]
    compiled = jax.jit(jax.grad(loss)).lower(values, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow does not say what a step needs")
def test_less_is_kept_for_the_backward_pass():
    x = keras.ops.convert_to_tensor(np.ones((8, 128, WIDTH), "float32"))
    measure = {"torch": bytes_on_torch, "jax": bytes_on_jax}[BACKEND]

    plain, again = (measure(make_block(recompute=recompute), x) for recompute in (False, True))

    if BACKEND == "torch":  # of each of two calls the input alone
        assert again <= 2 * x.nbytes + 1000 < plain / 10
    else:  # besides, what one of six blocks needs at a time
        assert again < 0.6 * plain


# === Models ===


def trained(make, recompute, jit_compile="auto", **options):
    """The losses of three steps, and all variables after them."""
    keras.utils.set_random_seed(0)
    body = kgpt.GPTBackbone(19, **SIZES, dropout=0.1, recompute=recompute)
    model = make(body)
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=jit_compile, **options)
    rng = np.random.default_rng(0)
    x = {"token_ids": rng.integers(19, size=(6, 7)).astype("int32")}
    x["padding_mask"] = np.arange(7) >= np.arange(6)[:, None] % 3
    y = None if make is kgpt.CausalLM else np.arange(6) % 2
    history = model.fit(x, y, batch_size=2, epochs=1, shuffle=False, verbose=0)
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(history.history["loss"]), *map(to_numpy, variables)]


def classifier(body):
    return kgpt.TextClassifier(body, num_classes=2)


@pytest.mark.parametrize("make", [kgpt.CausalLM, classifier])
def test_training_is_the_same_to_the_last_digit(make):
    options = {"run_eagerly": BACKEND == "tensorflow"}

    assert_same(trained(make, False, **options), trained(make, True, **options))


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere it is compiled or not above")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_training_is_the_same(jit_compile):
    plain = trained(kgpt.CausalLM, False, jit_compile)
    again = trained(kgpt.CausalLM, True, jit_compile)

    assert_same(plain, again, close=1e-5)


def test_what_is_not_training_does_not_ask_for_it():
    body = kgpt.GPTBackbone(19, **SIZES)
    again = kgpt.GPTBackbone(19, **SIZES, recompute=True)
    again.set_weights(body.get_weights())
    lms = kgpt.CausalLM(body), kgpt.CausalLM(again)
    token_ids = keras.ops.convert_to_tensor(np.array([[1, 2, 3, 4]], "int32"))

    plain, same = (to_numpy(lm(token_ids)) for lm in lms)

    np.testing.assert_array_equal(same, plain)
    texts = [lm.generate([[1, 2, 3]], max_new_tokens=3, sampler="greedy") for lm in lms]
    assert [list(text) for text in texts[0]] == [list(text) for text in texts[1]]


def test_it_is_an_option_of_the_config_and_of_presets():
    body = kgpt.GPTBackbone(19, **SIZES, recompute=True)
    config = body.get_config()

    assert config["recompute"]
    assert all(block.recompute for block in kgpt.GPTBackbone.from_config(config).decoder_blocks)
    assert DecoderBlock.from_config(body.decoder_blocks[0].get_config()).recompute
    del config["recompute"]  # as in files of earlier versions
    assert not any(b.recompute for b in kgpt.GPTBackbone.from_config(config).decoder_blocks)
    nano = kgpt.GPTBackbone.from_preset("gpt_nano", load_weights=False, recompute=True)
    assert nano.with_vocabulary_size(5000).decoder_blocks[0].recompute
