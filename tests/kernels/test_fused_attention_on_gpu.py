"""What the default training step runs on a GPU, seen on a machine without one."""

import re

import keras
import numpy as np
import pytest

import kgpt
from kgpt.kernels import platform

LAYERS, LENGTH, HEADS, WIDTH = 2, 512, 3, 192
IDS = np.random.default_rng(0).integers(1, 90, (2, LENGTH)).astype("int32")
RIGHT_PADDED = {"token_ids": IDS, "padding_mask": np.arange(LENGTH) < np.array([[LENGTH], [300]])}
inputs = pytest.mark.parametrize("x", [IDS, RIGHT_PADDED], ids=["no padding", "padding"])


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch):
    monkeypatch.setattr(platform, "device", lambda: "gpu")
    monkeypatch.setattr(platform, "cuda_compute_capability", lambda: (8, 0))


def make_lm(**options):
    backbone = kgpt.GPTBackbone(
        vocabulary_size=90,
        num_layers=LAYERS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        max_sequence_length=LENGTH,
        dtype="mixed_bfloat16",
        **options,
    )
    lm = kgpt.CausalLM(backbone)
    lm.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    return lm


# === JAX ===


@pytest.fixture
def cudnn(monkeypatch):
    """cuDNN's version and the GPU's capability, which JAX looks up when it lowers attention."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: capability <= "8.0")
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)


def lowered_step(lm, x):
    """The text of a training step for CUDA."""
    import jax

    lm.optimizer.build(lm.trainable_variables)
    state = (
        [v.value for v in lm.trainable_variables],
        [v.value for v in lm.non_trainable_variables],
        [v.value for v in lm.optimizer.variables],
        [v.value for v in lm.metrics_variables],
    )
    step = jax.jit(lambda state, data: lm.train_step(state, data))
    return step.trace(state, (x, None, None)).lower(lowering_platforms=("cuda",)).as_text()


def arrays_of_length_by_length(text):
    return re.findall(rf"tensor<(?:\d+x)*{LENGTH}x{LENGTH}x\w+>", text)


on_jax = pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX lowers for a device")


@on_jax
@inputs
@pytest.mark.usefixtures("cudnn")
def test_without_attention_dropout_jax_trains_with_cudnns_attention(x):
    text = lowered_step(make_lm(dropout=0.1, attention_dropout=0.0), x)

    assert len(re.findall(r"__cudnn\$fmhaSoftmax\(", text)) == LAYERS
    assert len(re.findall(r"__cudnn\$fmhaSoftmaxBackward\(", text)) == LAYERS
    assert "fmhaScaleBias" not in text
    assert not arrays_of_length_by_length(text)


@on_jax
@pytest.mark.usefixtures("cudnn")
def test_with_attention_dropout_jax_trains_in_tiles():
    text = lowered_step(make_lm(dropout=0.1), RIGHT_PADDED)

    assert "__cudnn" not in text
    assert not arrays_of_length_by_length(text)


# === PyTorch ===


@pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch's functions are watched")
@inputs
@pytest.mark.parametrize("attention_dropout", [None, 0.0])
def test_pytorch_trains_with_its_fused_attention_dropout_included(x, attention_dropout):
    import torch
    from torch.overrides import TorchFunctionMode

    calls = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.scaled_dot_product_attention:
                calls.append((args, kwargs))
            return function(*args, **(kwargs or {}))

    lm = make_lm(dropout=0.1, attention_dropout=attention_dropout)
    with Watch():
        loss = lm.train_on_batch(x)

    assert np.isfinite(loss).all()
    assert len(calls) == LAYERS
    for args, kwargs in calls:
        assert len(args) == 3  # no mask
        assert kwargs == {"dropout_p": 0.1 if attention_dropout is None else 0.0, "is_causal": True}
