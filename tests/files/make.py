"""Writes what kgpt 0.1.0 wrote, and the numbers that it gave.

    KERAS_BACKEND=tensorflow python tests/files/make.py FOLDER

Run with kgpt 0.1.0 alone: README.md says why. The models are tiny, all their axes differ, and all
inputs are padded on the right.
"""

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import ops

import kgpt

TEXTS = [
    "The cat sat on the mat, and the dog sat on the cat.",
    "A fine film: the cat is fine, the dog is dull.",
    "Where is the dog? On the mat, where the cat was!",
]
VOCABULARY, LENGTH, BATCH, SPARE = 23, 7, 4, 2


def random_tokens(*shape, vocabulary=VOCABULARY):
    """Token ids and their mask: rows of at least two tokens, padded on the right."""
    rng = np.random.default_rng(0)
    mask = np.arange(shape[-1]) < rng.integers(2, shape[-1] + 1, (*shape[:-1], 1))
    token_ids = np.where(mask, rng.integers(1, vocabulary, shape), 0)
    return {"token_ids": token_ids.astype("int32"), "padding_mask": mask}


def make_backbone(vocabulary=VOCABULARY, layers=2, **options):
    options = {"max_sequence_length": LENGTH + SPARE, "dropout": 0.0, **options}
    return kgpt.GPTBackbone(vocabulary, layers, 3, 12, **options)


def make_tokenizer():
    return kgpt.Tokenizer.train(TEXTS, vocabulary_size=272)


# === Models: each function returns a model, inputs and targets; None without training ===


def backbone_gpt2():
    return make_backbone(dropout=0.1), random_tokens(BATCH, LENGTH), None


def backbone_gpt1():
    return make_backbone(norm_first=False), random_tokens(BATCH, LENGTH), None


def lm():
    tokenizer = make_tokenizer()
    model = kgpt.CausalLM(make_backbone(tokenizer.vocabulary_size), tokenizer=tokenizer)
    model.compile()
    return model, random_tokens(BATCH, LENGTH, vocabulary=tokenizer.vocabulary_size), None


def lm_dropout():
    model = kgpt.CausalLM(make_backbone(dropout=0.1))
    model.compile()
    return model, random_tokens(BATCH, LENGTH), None


def lm_rotary():
    backbone = make_backbone(
        query_key_norm=True,
        rotary_positions=True,
        zero_init_residual=True,
        activation="relu_squared",
    )
    model = kgpt.CausalLM(backbone)
    model.compile(kgpt.recipes.pretraining_optimizer(20, 1e-3, warmup_steps=2))
    return model, random_tokens(BATCH, LENGTH), None


def lm_fast():
    model = kgpt.CausalLM(make_backbone(norm_first=False, layers=1))
    model.compile(kgpt.recipes.fast_optimizer(20, warmup_steps=1))
    return model, random_tokens(BATCH, LENGTH), None


def lm_keras_loss():
    model = kgpt.CausalLM(make_backbone(layers=1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss=loss, weighted_metrics=["accuracy"])
    inputs = random_tokens(BATCH, LENGTH)
    return model, inputs, np.roll(inputs["token_ids"], -1, axis=1)


def lm_int8():
    model = kgpt.CausalLM(make_backbone())
    model.quantize("int8")
    return model, random_tokens(BATCH, LENGTH), None


def lm_bfloat16():
    model = kgpt.CausalLM(make_backbone(dtype="mixed_bfloat16"))
    model.compile(keras.optimizers.Adam(1e-3))
    return model, random_tokens(BATCH, LENGTH), None


def classifier():
    tokenizer = make_tokenizer()
    model = kgpt.TextClassifier(
        make_backbone(tokenizer.vocabulary_size, layers=1, norm_first=False),
        class_names=["bad", "middling", "good"],
        tokenizer=tokenizer,
        dropout=0.0,
    )
    model.compile(kgpt.recipes.finetuning_optimizer(20, 1e-3, layer_decay=0.8, exact=True))
    inputs = random_tokens(BATCH, LENGTH, vocabulary=tokenizer.vocabulary_size)
    return model, inputs, np.array([2, 0, 1, 0])


def classifier_both_orders():
    model = kgpt.TextClassifier(make_backbone(layers=1), 2, both_orders=True, dropout=0.0)
    model.compile()
    return model, random_tokens(BATCH, 2, LENGTH), np.array([1, 0, 1, 1])


def classifier_lora():
    model = kgpt.TextClassifier(make_backbone(), 2, lm_loss_weight=0.0, dropout=0.0)
    model.backbone.enable_lora(2, 4)
    model.compile(keras.optimizers.Adam(1e-2))
    return model, random_tokens(BATCH, LENGTH), np.array([1, 0, 1, 1])


def regressor():
    model = kgpt.TextRegressor(make_backbone(layers=1), num_outputs=2, dropout=0.0)
    model.compile()
    return model, random_tokens(BATCH, LENGTH), np.linspace(-1, 1, 8, dtype="float32").reshape(4, 2)


def multiple_choice():
    model = kgpt.MultipleChoice(make_backbone(layers=1), dropout=0.0)
    model.compile()
    return model, random_tokens(BATCH, 3, LENGTH), np.array([2, 0, 1, 0])


def public_layers():
    """A model of Keras out of the layers in `kgpt.layers`."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    padding_mask = keras.Input((None,), dtype="bool", name="padding_mask")
    embedding = kgpt.layers.TokenAndPositionEmbedding(VOCABULARY, LENGTH, 12, name="embedding")
    h = embedding(token_ids)
    for i, options in enumerate([{"norm_first": False}, {"rotary_positions": True}]):
        block = kgpt.layers.DecoderBlock(
            3, 20, query_key_norm=bool(i), name=f"block_{i}", **options
        )
        h = block(h, padding_mask=padding_mask)
    h = h + kgpt.layers.CausalSelfAttention(3, name="attention")(h, padding_mask=padding_mask)
    h = h + kgpt.layers.FeedForward(20, activation="relu_squared", name="feed_forward")(h)
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    model = keras.Model(inputs, embedding(h, reverse=True))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss=loss)
    inputs = random_tokens(BATCH, LENGTH)
    return model, inputs, np.roll(inputs["token_ids"], -1, axis=1)


def private_layers():
    """A model of Keras out of registered layers that are not public, as a clone may have it."""
    from kgpt.layers.dense import Dense
    from kgpt.layers.dropout import Dropout
    from kgpt.layers.feed_forward import gelu_tanh
    from kgpt.layers.layer_norm import LayerNorm
    from kgpt.models.head import LastTokenStates, MergeSequences

    inputs = {
        "token_ids": keras.Input((2, None), dtype="int32", name="token_ids"),
        "padding_mask": keras.Input((2, None), dtype="bool", name="padding_mask"),
    }
    merged = MergeSequences(name="merge_sequences")(inputs)
    # Not trained: of a row that occurs twice, Keras's Adam squares the two gradients one by one on
    # TensorFlow, and their sum elsewhere.
    embedding = keras.layers.Embedding(VOCABULARY, 12, trainable=False, name="embedding")
    h = embedding(merged["token_ids"])
    h = LayerNorm(name="norm")(Dense(20, activation=gelu_tanh, name="dense")(h))
    h = Dropout(0.0, name="dropout")(h)
    states = LastTokenStates(name="last_states")(h, inputs["padding_mask"])
    outputs = keras.layers.Dense(3, name="outputs")(keras.layers.Flatten(name="flatten")(states))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    schedule = kgpt.recipes.WarmupLinear(1e-2, 20, warmup=0.1)
    model.compile(kgpt.recipes.AdamW(schedule, epsilon=1e-2), loss=loss)
    return model, random_tokens(BATCH, 2, LENGTH), np.array([2, 0, 1, 0])


MODELS = [
    backbone_gpt2,
    backbone_gpt1,
    lm,
    lm_dropout,
    lm_rotary,
    lm_fast,
    lm_keras_loss,
    lm_int8,
    lm_bfloat16,
    classifier,
    classifier_both_orders,
    classifier_lora,
    regressor,
    multiple_choice,
    public_layers,
    private_layers,
]


def spread(model):
    """Moves biases and gains away from 0 and 1, so that each of them matters."""
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            noise = rng.standard_normal(variable.shape).astype("float32")
            variable.assign(ops.convert_to_numpy(variable) + 0.2 * noise)
        elif variable.path.endswith("embeddings"):
            variable.assign(10 * ops.convert_to_numpy(variable))


def compress(path):
    """Stores the same files in the archive, compressed: most of a small HDF5 file are zeros."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def fit_twice(model, inputs, targets):
    """The losses of two steps on one batch: the first of a warm-up alone would change nothing.

    Where each position has a target, padding is not counted.
    """
    mask = inputs["padding_mask"]
    is_counted = mask.astype("float32") if np.shape(targets) == mask.shape else None
    options = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    return model.fit(inputs, targets, sample_weight=is_counted, **options).history["loss"]


def outputs_of(model, inputs):
    return np.asarray(ops.convert_to_numpy(model.predict(inputs, verbose=0)), "float32")


def write_model(folder, make):
    """`NAME.keras`, and in `NAME.npz` its outputs and what two more steps of training gave."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    name = make.__name__
    model, inputs, targets = make()
    spread(model)
    if model.compiled:
        fit_twice(model, inputs, targets)
    model.save(folder / f"{name}.keras")
    compress(folder / f"{name}.keras")
    arrays = {f"inputs/{key}": value for key, value in inputs.items()}
    arrays["outputs"] = outputs_of(model, inputs)
    if targets is not None:
        arrays["targets"] = targets
    if model.compiled:
        arrays["iterations"] = int(ops.convert_to_numpy(model.optimizer.iterations))
        arrays["losses"] = fit_twice(model, inputs, targets)
        arrays["outputs_after_training"] = outputs_of(model, inputs)
    np.savez_compressed(folder / f"{name}.npz", **arrays)


# === Everything else ===


def write_objects(folder):
    """Configs of what stands in files beside models: metrics, optimizers and schedules."""
    from kgpt.losses import Perplexity

    objects = {
        "perplexity": Perplexity(name="perplexity"),
        "adamw": kgpt.recipes.AdamW(1e-3, weight_decay=0.1, layer_decay=0.8, exact=True),
        "warmup_cosine": kgpt.recipes.WarmupCosine(1e-3, 20, warmup_steps=5, alpha=0.1, start=2),
        "warmup_linear": kgpt.recipes.WarmupLinear(1e-3, 20, warmup=0.25, start=2),
    }
    written = {
        name: {"config": keras.saving.serialize_keras_object(one)} for name, one in objects.items()
    }
    for name in ("warmup_cosine", "warmup_linear"):
        rates = [float(ops.convert_to_numpy(objects[name](step))) for step in range(2, 23)]
        written[name]["rates_from_step_2"] = rates
    write_json(folder / "objects.json", written)


def write_tokenizers(folder):
    """A `tokenizer.json` of each style, and the ids of texts that are not all known to it."""
    made = {
        "gpt2": make_tokenizer(),
        "gpt1": kgpt.Tokenizer.train(TEXTS, vocabulary_size=64, style="gpt1", exact=False),
        "gpt1_exact": kgpt.Tokenizer.train(TEXTS, vocabulary_size=64, style="gpt1", exact=True),
        "characters": kgpt.Tokenizer.train(TEXTS, style="characters"),
    }
    texts = [*TEXTS, "It's 3 o'clock — naïve cats'll SIT…\n\n<|endoftext|> on  mats?!"]
    written = {"texts": texts}
    for name, tokenizer in made.items():
        (folder / name).mkdir()
        tokenizer.save(folder / name / "tokenizer.json")
        ids = tokenizer.encode_batch(texts)
        written[name] = {"ids": ids, "decoded": [tokenizer.decode(row) for row in ids]}
    write_json(folder / "tokens.json", written)


def write_token_file(folder):
    """`write_tokens`'s file, and the batches that `windows` cut from it."""
    tokenizer = make_tokenizer()
    path = folder / "tokens.npy"
    kgpt.data.write_tokens(TEXTS * 4, tokenizer, path, progress=False)
    end = {"segment_ids": True, "end_of_text_id": tokenizer.end_of_text_id}
    batches = {}
    for name, options in {"plain": {}, "segments": end}.items():
        for n, (x, y, *weights) in enumerate(kgpt.data.windows(path, LENGTH, BATCH, 3, **options)):
            batches |= {f"{name}/{n}/{key}": np.asarray(value) for key, value in x.items()}
            batches[f"{name}/{n}/targets"] = np.asarray(y)
            if weights:
                batches[f"{name}/{n}/weights"] = np.asarray(weights[0])
    np.savez_compressed(folder / "windows.npz", **batches)


class Stop(BaseException):
    pass


def checkpointed_model(optimizer, dropout):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    backbone = make_backbone(make_tokenizer().vocabulary_size, layers=1, dropout=dropout)
    model = kgpt.CausalLM(backbone)
    model.compile(optimizer)
    return model


def run(model, folder, *callbacks):
    windows = kgpt.data.windows(folder / "tokens.npy", LENGTH, BATCH, seed=3)
    model.fit(windows, epochs=2, callbacks=list(callbacks), verbose=0)


def write_checkpoint(folder, name, model):
    """`ResumableCheckpoint`'s folder of a run that ended after its fourth step."""

    def stop(batch, logs):
        if batch == 3:
            raise Stop

    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = kgpt.callbacks.ResumableCheckpoint(Path(temporary) / "run", save_freq=2)
        try:
            run(model, folder, checkpoint, keras.callbacks.LambdaCallback(on_train_batch_end=stop))
        except Stop:
            shutil.copytree(Path(temporary) / "run", folder / name)


def write_checkpoints(folder):
    """Two checkpoints, and for the one without dropout the end of the run that was not stopped."""
    write_checkpoint(folder, "checkpoint_dropout", checkpointed_model("sgd", 0.1))
    write_checkpoint(folder, "checkpoint", checkpointed_model("adam", 0.0))
    model, inputs = checkpointed_model("adam", 0.0), random_tokens(BATCH, LENGTH)
    run(model, folder)
    arrays = {f"inputs/{key}": value for key, value in inputs.items()}
    arrays["outputs_at_the_end"] = outputs_of(model, inputs)
    arrays["iterations"] = int(ops.convert_to_numpy(model.optimizer.iterations))
    np.savez_compressed(folder / "checkpoint.npz", **arrays)


def write_folder(folder):
    """What `to_huggingface` wrote, and the outputs of the model; `lm.keras` is the same one."""
    model = keras.saving.load_model(folder / "lm.keras")
    kgpt.to_huggingface(model, folder / "huggingface")
    inputs = random_tokens(BATCH, LENGTH)
    arrays = {f"inputs/{key}": value for key, value in inputs.items()}
    arrays["outputs"] = outputs_of(model, inputs)
    prompts = [tuple(model.tokenizer.encode(text)[:3]) for text in TEXTS]
    arrays["prompts"] = np.array(prompts)
    arrays["generated"] = np.array(
        model.generate(arrays["prompts"], 5, sampler="greedy", stop_token_ids=None)
    )
    np.savez_compressed(folder / "huggingface.npz", **arrays)


def write_json(path, content):
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for make in MODELS:
        write_model(folder, make)
    write_objects(folder)
    write_tokenizers(folder)
    write_token_file(folder)
    write_checkpoints(folder)
    write_folder(folder)


if __name__ == "__main__":
    main()
