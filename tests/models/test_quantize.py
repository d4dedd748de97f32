import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from oracles import to_numpy

import kgpt

VOCABULARY, LENGTH = 30, 12


def sentences(count, seed):
    """Counting in steps of 1, 2 or 3 from anywhere: learnt in a few epochs."""
    rng = np.random.default_rng(seed)
    start, step = rng.integers(0, VOCABULARY, (count, 1)), rng.integers(1, 4, (count, 1))
    return ((start + step * np.arange(LENGTH)) % VOCABULARY).astype("int32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file of a language model that has learnt something."""
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(VOCABULARY, 2, 2, 32, dropout=0.0, max_sequence_length=LENGTH)
    lm = kgpt.CausalLM(backbone)
    lm.compile(keras.optimizers.Adam(5e-3))
    lm.fit(sentences(512, 0), epochs=12, batch_size=32, verbose=0)
    path = tmp_path_factory.mktemp("trained") / "lm.keras"
    lm.save(path)
    return path


def perplexity(lm):
    return lm.evaluate(sentences(256, 1), verbose=0, return_dict=True)["perplexity"]


@pytest.mark.parametrize(("mode", "most"), [("int8", 1.01), ("int4", 1.25)])
def test_quantized_weights_predict_held_out_text_almost_as_well(trained, mode, most):
    lm = keras.saving.load_model(trained)
    before = perplexity(lm)

    lm.quantize(mode)

    assert before < VOCABULARY / 5  # it has learnt something that could be lost
    assert before * 0.8 < perplexity(lm) < before * most


def test_a_quantized_model_is_a_smaller_file_that_gives_the_same(trained, tmp_path):
    lm = keras.saving.load_model(trained, compile=False)
    lm.save(tmp_path / "float32.keras")
    lm.quantize("int4")
    token_ids = sentences(3, 2)

    lm.save(tmp_path / "quantized.keras")
    loaded = keras.saving.load_model(tmp_path / "quantized.keras")

    np.testing.assert_allclose(to_numpy(loaded(token_ids)), to_numpy(lm(token_ids)), atol=1e-5)
    sizes = [os.path.getsize(tmp_path / f"{n}.keras") for n in ("float32", "quantized")]
    assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.slow
def test_a_quantized_model_loads_in_a_fresh_process(trained, tmp_path):
    lm = keras.saving.load_model(trained, compile=False)
    lm.quantize("int8")
    lm.save(tmp_path / "lm.keras")
    token_ids = sentences(1, 2)
    script = (
        "import sys, keras, kgpt; lm = keras.saving.load_model(sys.argv[1]); "
        f"logits = lm(keras.ops.array({token_ids.tolist()}))[0]; "
        "print(keras.ops.convert_to_numpy(logits).argmax(-1).tolist())"
    )

    output = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "lm.keras")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert output.strip().endswith(str(to_numpy(lm(token_ids))[0].argmax(-1).tolist()))


def test_a_quantized_head_keeps_its_answers_and_its_file(trained, tmp_path):
    backbone = keras.saving.load_model(trained, compile=False).backbone
    keras.utils.set_random_seed(0)
    classifier = kgpt.TextClassifier(backbone, 3)
    token_ids = sentences(90, 3)
    labels = (token_ids[:, 1] - token_ids[:, 0]) % VOCABULARY - 1
    classifier.compile(keras.optimizers.Adam(5e-3))
    classifier.fit(token_ids, labels, epochs=6, verbose=0)
    before = classifier.predict(token_ids, verbose=0).argmax(-1)

    classifier.quantize("int8")
    after = classifier.predict(token_ids, verbose=0)
    classifier.save(tmp_path / "classifier.keras")
    loaded = keras.saving.load_model(tmp_path / "classifier.keras")

    assert (before == after.argmax(-1)).mean() > 0.9
    np.testing.assert_allclose(loaded.predict(token_ids, verbose=0), after, atol=1e-5)


def test_a_quantized_backbone_keeps_its_vocabulary(trained):
    lm = keras.saving.load_model(trained, compile=False)
    lm.quantize("int8")

    with pytest.raises(ValueError, match="quantized=True"):
        lm.backbone.with_vocabulary_size(VOCABULARY + 3)


def small_lm():
    return kgpt.CausalLM(kgpt.GPTBackbone(VOCABULARY, 1, 1, 4, max_sequence_length=LENGTH))


@pytest.mark.parametrize("filters", ["nothing", lambda layer: False, ["dropout"]])
def test_filters_that_leave_no_layer_are_refused(filters):
    lm = small_lm()

    with pytest.raises(ValueError, match=r"^filters must be a choice of layers"):
        lm.quantize("int8", filters=filters)

    lm.quantize("int8", filters="query_key_value")


def test_float8_and_lora_are_refused_together():
    lm, other = small_lm(), small_lm()
    lm.enable_lora(2)
    other.quantize("float8")

    for call in (lambda: lm.quantize("float8"), lambda: other.enable_lora(2)):
        with pytest.raises(ValueError, match='both LoRA and "float8"'):
            call()


@pytest.mark.parametrize("dtype", ["int8_from_float32", "float8_from_float32"])
def test_a_model_is_not_made_with_a_quantized_policy(dtype):
    with pytest.raises(ValueError, match=f"dtype='{dtype}'. Try dtype="):
        kgpt.GPTBackbone(VOCABULARY, 1, 1, 4, max_sequence_length=LENGTH, dtype=dtype)
