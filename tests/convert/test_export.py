"""Exported files give the same numbers in runtimes that know nothing of Keras."""

import importlib.util
import os

import keras
import numpy as np
import pytest
from oracles import randomize, to_numpy

import kgpt

BACKEND = keras.config.backend()
FORMATS = {
    "tensorflow": ("tf_saved_model", "onnx", "litert"),
    "jax": ("tf_saved_model",),
    "torch": ("onnx",),
}[BACKEND]
ENDINGS = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite"}
VOCABULARY, LENGTH = 40, 7
# PyTorch's converter is fast enough for the quick run, which is all that `.ci/run` runs there.
SLOW_BUT_ON_TORCH = [] if BACKEND == "torch" else [pytest.mark.slow]
PACKAGES = {
    "onnx": ["onnx", "onnxruntime", {"torch": "onnxscript"}.get(BACKEND, "tf2onnx")],
    "litert": ["tensorflow"],
    "tf_saved_model": ["tensorflow"],
}


def backbone(**options):
    return kgpt.GPTBackbone(VOCABULARY, 2, 3, 12, max_sequence_length=16, dropout=0.1, **options)


HEADS = {
    "backbone": (backbone, ()),
    "lm": (lambda: kgpt.CausalLM(backbone()), ()),
    "classifier": (lambda: kgpt.TextClassifier(backbone(), 4), (1,)),
    "similarity": (lambda: kgpt.TextClassifier(backbone(), 3, both_orders=True), (2,)),
    "choice": (lambda: kgpt.MultipleChoice(backbone()), (5,)),
}


def need(format):
    for package in PACKAGES[format]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"export to {format} is checked with {package}, which is not installed")


def run(path, format, feed):
    """The outputs of a file by name, in a runtime of its format."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))
    import tensorflow as tf

    if format == "tf_saved_model":
        tensors = {name: tf.constant(x) for name, x in feed.items()}
        loaded = tf.saved_model.load(path)  # its functions live as long as it
        served = loaded.serve(tensors if len(tensors) > 1 else next(iter(tensors.values())))
        served = served if isinstance(served, dict) else {"outputs": served}
        return {name: x.numpy() for name, x in served.items()}
    interpreter = tf.lite.Interpreter(path)
    signature = interpreter.get_signature_runner()
    return signature(**feed)


def assert_same_logits(format, found, expected):
    """Within 1e-6 of the largest logit, some roundings in float32; prints what was reached."""
    difference, scale = np.abs(found - expected).max(), np.abs(expected).max()
    runtime = {"onnx": "ONNX Runtime", "litert": "LiteRT", "tf_saved_model": "TensorFlow"}[format]
    print(
        f"\n{runtime} beside Keras on {BACKEND}: largest difference {difference:.1e} "
        f"of logits up to {scale:.1f}, {difference / scale:.1e} of them"
    )
    assert found.shape == expected.shape
    assert difference <= 1e-6 * scale


def inputs_of(sequences, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(0, VOCABULARY, (batch, *sequences, LENGTH)).astype("int32")
    lengths = rng.integers(2, LENGTH + 1, token_ids.shape[:-1])
    return {"token_ids": token_ids, "padding_mask": np.arange(LENGTH) < lengths[..., None]}


CONVERTED = {"onnx": ("lm", "classifier"), "litert": ("lm", "choice")}


@pytest.mark.parametrize(
    ("format", "head"),
    [
        pytest.param(
            f,
            h,
            marks=SLOW_BUT_ON_TORCH if h in ("lm", "backbone", "classifier") else pytest.mark.slow,
        )
        for f in FORMATS
        for h in HEADS
        # The first format shows what heads give; the others are made of the same functions.
        if f == FORMATS[0] or h in CONVERTED[f]
    ],
)
def test_a_model_gives_the_same_in_another_runtime(format, head, tmp_path):
    need(format)
    make, sequences = HEADS[head]
    model = randomize(make())
    path = str(tmp_path / "folder" / f"model{ENDINGS[format]}")
    feed = inputs_of(sequences)
    if not sequences:
        del feed["padding_mask"]

    model.export(path, format=format, verbose=False)
    found = run(path, format, feed)

    expected = to_numpy(model(feed))
    assert list(found) == ["outputs"]
    assert_same_logits(format, found["outputs"], expected)
    assert os.listdir(tmp_path / "folder") == [os.path.basename(path)]


@pytest.mark.slow
def test_a_language_model_may_take_a_padding_mask(tmp_path):
    format = FORMATS[0]  # heads with masks are exported to the others
    need(format)
    from kgpt.convert.export import export

    lm = randomize(kgpt.CausalLM(backbone()))
    path = str(tmp_path / f"lm{ENDINGS[format]}")
    feed = inputs_of((), batch=2)
    feed["padding_mask"][:, 0] = False  # padding in front is seen unless it is masked

    export(lm, path, format, padding_mask=True)
    found = run(path, format, feed)["outputs"]

    expected = to_numpy(lm(feed))
    assert_same_logits(format, found[:, 1:], expected[:, 1:])


STEPS = {"gpt1": {"norm_first": False}, "rotary": {"rotary_positions": True}}


@pytest.mark.parametrize(
    ("format", "options"),
    [
        pytest.param(f, options, marks=SLOW_BUT_ON_TORCH, id=f"{f}-{name}")
        for f in FORMATS
        for name, options in STEPS.items()
        if f == FORMATS[0] or name == "rotary"
    ],
)
def test_one_cached_step_continues_prompts_as_the_whole_model_does(format, options, tmp_path):
    need(format)
    lm = randomize(kgpt.CausalLM(backbone(**options)))
    path = str(tmp_path / f"step{ENDINGS[format]}")
    token_ids = inputs_of((), batch=2)["token_ids"]
    lengths = np.array([5, 3])  # of the prompts; what follows in a row is padding, then new tokens
    cache = np.zeros((2, 2, 3, LENGTH, 4), "float32")  # batch, layers, heads, slots, head_dim

    lm.export_generation_step(path, format=format, verbose=False)
    feed = {"token_ids": token_ids[:, :5], "position": np.zeros(2, "int32")}
    first = run(path, format, {**feed, "keys": cache, "values": cache})
    rows = np.arange(2)
    second = run(
        path,
        format,
        {
            "token_ids": token_ids[rows, lengths][:, None],
            "position": lengths.astype("int32"),
            "keys": first["new_keys"],
            "values": first["new_values"],
        },
    )

    expected = to_numpy(lm(token_ids))
    assert_same_logits(format, first["logits"], expected[:, :5])
    assert_same_logits(format, second["logits"][:, 0], expected[rows, lengths])


@pytest.mark.slow
def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    format = FORMATS[0]
    need(format)
    from kgpt.convert import export as module

    lm = kgpt.CausalLM(backbone())
    path = tmp_path / f"lm{ENDINGS[format]}"
    lm.export(path, format=format, verbose=False)
    before = sorted(str(file) for file in tmp_path.rglob("*"))

    def fail(*arguments, **options):
        raise RuntimeError("no space left")

    monkeypatch.setattr(module, "_convert", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        lm.export(path, format=format, verbose=False)

    assert sorted(str(file) for file in tmp_path.rglob("*")) == before


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    lm = kgpt.CausalLM(backbone())
    half = kgpt.CausalLM(backbone(dtype="bfloat16"))
    (tmp_path / "notes.txt").write_text("mine")
    format = FORMATS[0]
    ending = ENDINGS[format]

    with pytest.raises(ValueError, match=r"format must be one of .*Received: 'gguf'"):
        lm.export(tmp_path / "lm.gguf", format="gguf")
    for other in set(ENDINGS) - set(FORMATS):
        with pytest.raises(ValueError, match=f"format={other!r}, backend={BACKEND!r}.*\\.keras"):
            lm.export(tmp_path / f"lm{ENDINGS[other]}", format=other)
    if ending:
        with pytest.raises(ValueError, match=f"must end with {ending!r}"):
            lm.export(tmp_path / "lm.bin", format=format)
    if "onnx" in FORMATS:
        need("onnx")
        with pytest.raises(ValueError, match=r"Only float32 models.*bfloat16"):
            half.export(tmp_path / "lm.onnx", format="onnx")
    with pytest.raises(ValueError, match=r"another format.*lm\.onnx.*Try format='onnx'"):
        lm.export(tmp_path / "lm.onnx")
    with pytest.raises(ValueError, match=r"another format.*Try format='litert'"):
        lm.export_generation_step(tmp_path / "lm.tflite")
    if format == "tf_saved_model":
        with pytest.raises(ValueError, match="holds no exported model"):
            lm.export(tmp_path, format=format)
        with pytest.raises(TypeError, match="no argument 'input_signature'"):
            lm.export(tmp_path / "lm", format=format, input_signature=[])
    if ending != ".onnx":  # whose packages may be missing
        with pytest.raises(ValueError, match=r"padding_mask must be a bool.*'no'"):
            lm.export(tmp_path / f"lm{ending}", format=format, padding_mask="no")
    if BACKEND == "tensorflow":
        with pytest.raises(TypeError, match=r"'opset'\. Did you mean opset_version"):
            lm.export(tmp_path / "lm.onnx", format="onnx", opset=17)

    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


QUANTIZED = {"tensorflow": ("onnx", "int8"), "jax": ("tf_saved_model", "int8"), "torch": None}
REFUSED = {"tensorflow": [("litert", "int8")], "torch": [("onnx", "int8"), ("onnx", "int4")]}


@pytest.mark.slow
@pytest.mark.skipif(QUANTIZED[BACKEND] is None, reason="quantized models are refused there")
def test_a_quantized_model_gives_the_same_in_another_runtime(tmp_path):
    format, mode = QUANTIZED[BACKEND]
    need(format)
    lm = randomize(kgpt.CausalLM(backbone()))
    lm.quantize(mode)
    path, feed = str(tmp_path / f"lm{ENDINGS[format]}"), {"token_ids": inputs_of(())["token_ids"]}

    lm.export(path, format=format, verbose=False)

    found = run(path, format, feed)["outputs"]
    np.testing.assert_allclose(found, to_numpy(lm(feed)), atol=1e-4)


@pytest.mark.parametrize(("format", "mode"), REFUSED.get(BACKEND, []))
def test_quantized_weights_that_a_converter_cannot_write_are_refused(format, mode, tmp_path):
    lm = kgpt.CausalLM(backbone())
    lm.quantize(mode)
    path = tmp_path / f"lm{ENDINGS[format]}"

    for export in (lm.export, lm.export_generation_step, lm.backbone.export):
        with pytest.raises(ValueError, match=f"quantized to {mode!r}.*KERAS_BACKEND=tensorflow"):
            export(path, format=format)


def test_a_missing_converter_is_named(tmp_path, monkeypatch):
    from kgpt.convert import export as module

    needs_one = [f for f in FORMATS if (BACKEND, f) in module._PACKAGES]
    monkeypatch.setattr(module, "find_spec", lambda name: None)

    lm, path = kgpt.CausalLM(backbone()), tmp_path / f"lm{ENDINGS[needs_one[0]]}"

    with pytest.raises(ImportError, match="Try: pip install"):
        lm.export(path, format=needs_one[0])
