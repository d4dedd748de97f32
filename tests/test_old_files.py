"""Files that kgpt 0.1.0 wrote load for good; `files/README.md` says what they are."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from oracles import to_numpy

import kgpt

FILES = Path(__file__).parent / "files"
MODELS = sorted(path.stem for path in FILES.glob("*.keras"))
TRAINABLE = [name for name in MODELS if "losses" in np.load(FILES / f"{name}.npz")]
# A rounded number may fall on the other side on another backend: int8 has 127 steps, bfloat16 256.
TOLERANCES = {"lm_int8": 2e-2, "lm_bfloat16": 3e-2}
# Their next steps are drawn at random: dropout's masks, and the factors of LoRA after loading.
DRAWN = ("lm_dropout", "classifier_lora")
LENGTH, BATCH, SEED = 7, 4, 3


def read(name):
    """The arrays beside a file, and those among them that are the model's inputs."""
    with np.load(FILES / f"{name}.npz") as file:
        arrays = dict(file)
    inputs = {k.removeprefix("inputs/"): v for k, v in arrays.items() if k.startswith("inputs/")}
    return arrays, inputs


def assert_same_outputs(ours, expected, inputs, atol):
    """Compares outputs, those of positions at the real ones only."""
    mask = inputs["padding_mask"]
    if expected.shape[: mask.ndim] == mask.shape:
        ours, expected = ours[mask], expected[mask]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours, expected, atol=atol, rtol=0)


def outputs_of(model, inputs):
    return np.asarray(to_numpy(model.predict(inputs, verbose=0)), "float32")


def fit_twice(model, inputs, targets):
    """Returns the losses of two steps, as `make.py` does; targets in the padding do not count."""
    mask = inputs["padding_mask"]
    is_counted = mask.astype("float32") if np.shape(targets) == mask.shape else None
    options = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    return model.fit(inputs, targets, sample_weight=is_counted, **options).history["loss"]


@pytest.fixture(scope="module", params=MODELS)
def loaded(request):
    """The name of a file and the model in it."""
    return request.param, keras.saving.load_model(FILES / f"{request.param}.keras")


def test_a_model_of_an_old_file_gives_the_outputs_that_it_gave(loaded):
    name, model = loaded
    arrays, inputs = read(name)

    ours = outputs_of(model, inputs)

    assert_same_outputs(ours, arrays["outputs"], inputs, TOLERANCES.get(name, 1e-5))


@pytest.mark.parametrize("loaded", TRAINABLE, indirect=True)
def test_training_goes_on_from_an_old_file_as_it_would_have_gone(loaded):
    name, model = loaded
    arrays, inputs = read(name)
    atol = TOLERANCES.get(name, 1e-5)
    assert int(model.optimizer.iterations) == arrays["iterations"]

    losses = fit_twice(model, inputs, arrays.get("targets"))

    assert int(model.optimizer.iterations) == arrays["iterations"] + 2
    if name in DRAWN:
        assert np.isfinite(losses).all()
        assert np.abs(outputs_of(model, inputs) - arrays["outputs"]).max() > 1e-4
        return
    expected = arrays["losses"]
    if name == "lm_keras_loss":  # a Keras loss was divided by all positions, by padding too
        expected = expected * (inputs["padding_mask"].size / inputs["padding_mask"].sum())
        atol = 1e-3  # Adam's moments of before are those of smaller gradients
    np.testing.assert_allclose(losses, expected, atol=atol, rtol=0)
    assert np.abs(arrays["outputs_after_training"] - arrays["outputs"]).max() > 3 * atol
    assert_same_outputs(outputs_of(model, inputs), arrays["outputs_after_training"], inputs, atol)


def test_old_heads_still_read_text():
    model = keras.saving.load_model(FILES / "classifier.keras")

    assert model.class_names == ["bad", "middling", "good"]
    assert set(model.predict_text(["the cat", "a dull dog"])) <= set(model.class_names)


# === Not models ===


@pytest.fixture(scope="module")
def objects():
    return json.loads((FILES / "objects.json").read_text())


@pytest.mark.parametrize("name", ["adamw", "warmup_cosine", "warmup_linear", "perplexity"])
def test_old_configs_of_optimizers_schedules_and_metrics_keep_their_meaning(objects, name):
    written = objects[name]["config"]

    made = keras.saving.deserialize_keras_object(written)

    again = keras.saving.serialize_keras_object(made)
    assert again["registered_name"] == written["registered_name"]
    assert again["config"].items() >= written["config"].items()


@pytest.mark.parametrize("name", ["warmup_cosine", "warmup_linear"])
def test_old_schedules_give_the_rates_that_they_gave(objects, name):
    schedule = keras.saving.deserialize_keras_object(objects[name]["config"])
    expected = objects[name]["rates_from_step_2"]

    ours = [float(to_numpy(schedule(step))) for step in range(2, 2 + len(expected))]

    np.testing.assert_allclose(ours, expected, atol=1e-9)


@pytest.mark.parametrize("style", ["gpt2", "gpt1", "gpt1_exact", "characters"])
def test_old_tokenizers_give_the_ids_and_texts_that_they_gave(style):
    if style == "gpt1_exact":
        for package in ("ftfy", "spacy"):
            pytest.importorskip(package, reason="GPT-1's exact words come from the extra `gpt1`")
    written = json.loads((FILES / "tokens.json").read_text(encoding="utf-8"))

    tokenizer = kgpt.Tokenizer.from_file(FILES / style / "tokenizer.json")

    ids = tokenizer.encode_batch(written["texts"])
    assert ids == written[style]["ids"]
    assert [tokenizer.decode(row) for row in ids] == written[style]["decoded"]


@pytest.mark.parametrize("kind", ["plain", "segments"])
def test_an_old_token_file_gives_the_batches_that_it_gave(kind):
    tokenizer = kgpt.Tokenizer.from_file(FILES / "gpt2" / "tokenizer.json")
    options = {"segment_ids": True, "end_of_text_id": tokenizer.end_of_text_id}
    with np.load(FILES / "windows.npz") as file:
        expected = {key: file[key] for key in file if key.startswith(kind)}

    found = {}
    windows = kgpt.data.windows(
        FILES / "tokens.npy", LENGTH, BATCH, SEED, **(options if kind == "segments" else {})
    )
    for n, (x, y, *weights) in enumerate(windows):
        found |= {f"{kind}/{n}/{key}": value for key, value in x.items()}
        found[f"{kind}/{n}/targets"] = y
        if weights:
            found[f"{kind}/{n}/weights"] = weights[0]

    assert found.keys() == expected.keys()
    for key, value in found.items():
        np.testing.assert_array_equal(np.asarray(value), expected[key], err_msg=key)


def start_run(folder, optimizer, dropout, tmp_path):
    """The run of `make.py`, from a copy of the checkpoint that it left."""
    shutil.copytree(FILES / folder, tmp_path / folder)
    backbone = kgpt.GPTBackbone(272, 1, 3, 12, max_sequence_length=9, dropout=dropout)
    model = kgpt.CausalLM(backbone)
    model.compile(optimizer)
    restored = []

    def look(epoch, logs):
        if not restored:
            restored.extend(to_numpy(v).tolist() for v in seeds_of(model))

    model.fit(
        kgpt.data.windows(FILES / "tokens.npy", LENGTH, BATCH, seed=SEED),
        epochs=2,
        callbacks=[
            kgpt.callbacks.ResumableCheckpoint(tmp_path / folder),
            keras.callbacks.LambdaCallback(on_epoch_begin=look),
        ],
        verbose=0,
    )
    return model, restored


def seeds_of(model):
    return [v for v in model.non_trainable_variables if v.path.endswith("seed_generator_state")]


def test_a_run_goes_on_from_an_old_checkpoint_to_the_same_end(tmp_path):
    arrays, inputs = read("checkpoint")

    model, _ = start_run("checkpoint", "adam", 0.0, tmp_path)

    assert int(model.optimizer.iterations) == arrays["iterations"]
    ours = outputs_of(model, inputs)
    assert_same_outputs(ours, arrays["outputs_at_the_end"], inputs, atol=1e-5)


def test_a_run_goes_on_from_an_old_checkpoint_with_its_random_states(tmp_path):
    (progress,) = (FILES / "checkpoint_dropout").glob("*/progress.json")
    expected = json.loads(progress.read_text())["random_states"]["seeds"]

    model, restored = start_run("checkpoint_dropout", "sgd", 0.1, tmp_path)

    assert len(expected) > 1
    assert restored == expected
    assert [to_numpy(v).tolist() for v in seeds_of(model)] != expected


def test_an_old_folder_in_hugging_faces_format_gives_the_model_that_it_was():
    pytest.importorskip("safetensors", reason="weights in this format need the extra `hub`")
    arrays, inputs = read("huggingface")

    model = kgpt.from_huggingface(FILES / "huggingface")

    assert_same_outputs(outputs_of(model, inputs), arrays["outputs"], inputs, atol=1e-5)
    new = model.generate(arrays["prompts"], 5, sampler="greedy", stop_token_ids=None)
    np.testing.assert_array_equal(np.array(new), arrays["generated"])
