"""What keras-hub's examples and Keras's guides type on strings runs on models of kgpt."""

import ast
import inspect
import re

import keras
import keras_hub
import numpy as np
import pytest

import kgpt

TEXTS = ["The quick brown fox jumped.", "I forgot my homework.", "What an amazing movie!"] * 2
LABELS = [0, 3, 1] * 2
# Their classes, and the numbers of lines with `fit` and `predict` in their examples on strings.
EXAMPLES = {
    keras_hub.models.BertTextClassifier: (3, 1),
    keras_hub.models.TextClassifier: (1, 1),
    keras_hub.models.GPT2CausalLM: (2, 0),
}


def example_of(cls):
    """The lines of a class's examples on strings, but for those that make models and data."""
    lines = []
    for example in re.findall(r"```python\n(.*?)```", inspect.getdoc(cls), re.S):
        if "np.array" in example:  # on token ids
            continue
        for statement in ast.parse(example).body:
            line = ast.unparse(statement)
            is_call = re.match(r"\w+\.(fit|evaluate|predict|compile)\(", line)
            is_other = re.match(r"features = |labels = |classifier.backbone.trainable = ", line)
            if (is_call or is_other) and "sampler" not in line:
                lines.append(line.replace("jit_compile=True", "jit_compile=False"))  # takes minutes
    return lines


@pytest.fixture(autouse=True)
def functions_run_eagerly():
    """Compiling takes longest on TensorFlow, and is not what is tested."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def names():
    """What the lines take for granted."""
    tensorflow = pytest.importorskip("tensorflow", reason="the guides' data are tf.data")
    dataset = tensorflow.data.Dataset.from_tensor_slices
    tokenizer = kgpt.Tokenizer.train(TEXTS, vocabulary_size=280)
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, 8, max_sequence_length=32)
    labelled = dataset((TEXTS, LABELS)).batch(2)
    return {
        **{"keras": keras, "imdb_train": labelled, "imdb_test": labelled},
        "train_ds": dataset(TEXTS).batch(2).cache().prefetch(tensorflow.data.AUTOTUNE),
        "classifier": kgpt.TextClassifier(backbone, num_classes=4, tokenizer=tokenizer),
        "gpt2_lm": kgpt.CausalLM(backbone, tokenizer=tokenizer),
    }


@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
def test_the_lines_of_keras_hubs_examples_run(cls, names):
    lines = example_of(cls)

    exec("\n".join(lines), names)

    assert (
        tuple(sum(f"{name}(" in line for line in lines) for name in ("fit", "predict"))
        == (EXAMPLES[cls])
    )


def test_the_forms_of_the_guide_to_classifiers_run(names):
    classifier, test = names["classifier"], names["imdb_test"]

    classifier.fit(names["imdb_train"], validation_data=test, epochs=1, verbose=0)
    figures = classifier.evaluate(test, verbose=0)
    logits = classifier.predict(["I love modular workflows!"], verbose=0)

    assert classifier.metrics_names == ["loss", "task_loss", "lm_loss", "accuracy"]
    assert len(figures) == 4
    assert logits.shape == (1, 4)


def test_the_forms_of_the_guide_to_generation_run(names):
    lm, data = names["gpt2_lm"], names["train_ds"].take(2)
    rate = keras.optimizers.schedules.PolynomialDecay(5e-5, int(data.cardinality()))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    lm.compile(optimizer=keras.optimizers.Adam(rate), loss=loss, weighted_metrics=["accuracy"])
    history = lm.fit(data, epochs=1, verbose=0).history

    assert set(history) == {"loss", "accuracy"}
    assert np.isfinite(history["loss"]).all()
