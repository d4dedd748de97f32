"""What `to_huggingface` writes, opened by other programs: the same greedy tokens and classes."""

import keras
import numpy as np
import pytest

import kgpt
from kgpt.convert.huggingface import to_huggingface

reason = "transformers and torch open the folder, or convert it"
pytest.importorskip("torch", reason=reason)
transformers = pytest.importorskip("transformers", reason=reason)

TEXTS = ["the cat sat on the mat, didn't it?\nthe dog did not.\n"] * 3
PROMPT, NEW_TOKENS = "the cat", 12


@pytest.fixture(scope="module")
def lm():
    """A model whose likeliest token is likelier by far than the next: rounding changes none."""
    tokenizer = kgpt.Tokenizer.train(TEXTS, 275)
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 48, "max_sequence_length": 24}
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, **sizes)
    rng = np.random.default_rng(0)
    for weight in backbone.weights:
        start = 1.0 if weight.name == "gamma" else 0.0
        weight.assign(start + 0.1 * rng.normal(size=weight.shape))
    # Each position is near to a token of its own.
    tokens = keras.ops.normalize(backbone.token_embedding.embeddings)
    backbone.token_embedding.embeddings.assign(tokens)
    tokens = keras.ops.convert_to_numpy(tokens)[rng.permutation(len(tokens))[:24]]
    backbone.embedding.position_embedding.embeddings.assign(5 * tokens)
    return kgpt.CausalLM(backbone, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("huggingface") / "model"
    to_huggingface(lm, folder)
    return folder


@pytest.fixture(scope="module")
def expected(lm):
    """Our greedy tokens after the prompt."""
    prompt = [lm.tokenizer.encode(PROMPT)]
    [tokens] = lm.generate(prompt, NEW_TOKENS, sampler="greedy", return_prompt=False)
    return list(tokens)


def test_the_likeliest_tokens_have_clear_margins(lm, expected):
    prompt = lm.tokenizer.encode(PROMPT)
    logits = keras.ops.convert_to_numpy(lm(np.array([prompt + expected])))[0, len(prompt) - 1 : -1]

    first, second = np.sort(logits)[:, :-3:-1].T
    assert list(logits.argmax(axis=-1)) == expected
    assert len(set(expected)) > NEW_TOKENS // 2
    assert (first - second).min() > 0.5


def test_the_pipeline_of_transformers_writes_the_same_tokens(lm, folder, expected):
    pipeline = transformers.pipeline("text-generation", model=str(folder), device="cpu")

    [output] = pipeline(PROMPT, do_sample=False, max_new_tokens=NEW_TOKENS)

    assert output["generated_text"] == PROMPT + lm.tokenizer.decode(expected)


def test_the_pipeline_of_transformers_classifies_texts_between_our_tokens(lm, tmp_path):
    classifier = kgpt.TextClassifier(lm.backbone, class_names=["no", "yes"], tokenizer=lm.tokenizer)
    rng = np.random.default_rng(0)
    for weight in classifier.output_projection.weights:
        weight.assign(0.1 * rng.normal(size=weight.shape))
    to_huggingface(classifier, tmp_path / "classifier")
    pipeline = transformers.pipeline(
        "text-classification", model=str(tmp_path / "classifier"), device="cpu"
    )
    texts = ["the cat", "the dog sat on"]

    found = pipeline([f"<|start|>{text}<|classify|>" for text in texts], top_k=None)

    expected = classifier.predict_text(texts, probabilities=True)
    found = [{label["label"]: label["score"] for label in labels} for labels in found]
    found = [[scores["no"], scores["yes"]] for scores in found]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.01


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_ctranslate2_writes_the_same_tokens(lm, folder, expected, quantization, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is the program tested")
    converter = ctranslate2.converters.TransformersConverter(str(folder))
    converter.convert(str(tmp_path / "converted"), quantization=quantization)
    generator = ctranslate2.Generator(str(tmp_path / "converted"), compute_type=quantization)
    prompt = [lm.tokenizer.id_to_token(i) for i in lm.tokenizer.encode(PROMPT)]

    [result] = generator.generate_batch(
        [prompt], max_length=NEW_TOKENS, sampling_topk=1, include_prompt_in_result=False
    )

    assert result.sequences_ids == [expected]
