"""Which backend, dtype and compilation train fastest on a machine."""

import importlib.util
import shutil
from pathlib import Path
from typing import NamedTuple

import keras

from kgpt.kernels.platform import has_accelerator

_BACKENDS = ("tensorflow", "torch", "jax")


class Settings(NamedTuple):
    """What `fastest_settings` says.

    Attributes:
        backend: str. The value for the environment variable `KERAS_BACKEND`.
        dtype: str. The policy for `keras.config.set_dtype_policy`, before the model is made.
        jit_compile: bool or "auto", for `compile`.
        why: str. The reason, and what it rests on.
        attention_dropout: float or None, for `kgpt.GPTBackbone`: 0 where only attention without
            dropout has a fused kernel, else None, the backbone's default.

    Example:
        settings = kgpt.recipes.Settings("jax", "mixed_bfloat16", "auto", why="as measured here")
        settings.dtype
    """

    backend: str
    dtype: str
    jit_compile: bool | str
    why: str
    attention_dropout: float | None = None


def fastest_settings(backend: str | None = None) -> Settings:
    """Returns the settings that train fastest on this machine; nothing is changed.

    They follow from measurements on processors of three kinds: with matrix units for bfloat16
    (Intel's AMX), with bfloat16 in their vector units (AVX-512 BF16), and all others. Your model is
    another one: `benchmarks/README.md` says how to measure, and shows the figures.

    Args:
        backend: `"tensorflow"`, `"jax"` or `"torch"`. If None, the fastest one that is installed;
            on an accelerator, the one that runs.

    Returns:
        `Settings`: backend, dtype, jit_compile, why, attention_dropout.

    Raises:
        ValueError: if there is no such backend.

    Example:
        settings = kgpt.recipes.fastest_settings(keras.config.backend())
        keras.config.set_dtype_policy(settings.dtype)
        backbone = kgpt.GPTBackbone.from_preset(
            "gpt_mini",
            load_weights=False,
            vocabulary_size=tokenizer.vocabulary_size,
            attention_dropout=settings.attention_dropout,
        )
        lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
        lm.compile(jit_compile=settings.jit_compile)
    """
    if backend not in (None, *_BACKENDS):
        raise ValueError(
            f"backend must be one of {', '.join(map(repr, _BACKENDS))}, or None for the fastest "
            f"of them. Received: backend={backend!r}."
        )
    if has_accelerator():
        return _on_accelerator(backend or keras.config.backend())
    flags = _processor_flags()
    if "amx_bf16" in flags:
        return _with_matrix_units(backend or _first_installed("torch", "tensorflow"))
    backend = backend or _first_installed("tensorflow")
    if "avx512_bf16" in flags:
        return _with_bfloat16_vectors(backend)
    return Settings(
        backend,
        "float32",
        "auto",
        "This processor is not known to compute in bfloat16. In float32 the TensorFlow backend "
        "without XLA was the fastest, PyTorch came close, and JAX took 1.1 to 1.3 times as long.",
    )


def _on_accelerator(backend: str) -> Settings:
    attention = {
        "jax": "JAX has a fused attention kernel for 16-bit precision without dropout of the "
        "attention weights: set attention_dropout=0 in GPTBackbone.",
        "torch": "PyTorch has a fused attention kernel, dropout included.",
        "tensorflow": "TensorFlow has no fused attention kernel.",
    }
    return Settings(
        backend,
        "mixed_bfloat16",
        "auto",
        "A GPU or TPU has matrix units for bfloat16. On an H100 JAX with attention_dropout=0 "
        "trained GPT-2 three times as fast as PyTorch, twice as fast as JAX with it; "
        f"`python benchmarks/gpu.py` measures yours. {attention[backend]}",
        0.0 if backend == "jax" else None,
    )


def _with_matrix_units(backend: str) -> Settings:
    measured = "The processor has matrix units for bfloat16 (AMX). "
    if backend == "torch" and _cpp_compiler():
        why = "PyTorch, compiled, uses them best: a step took 0.6 of the time of the eager one."
        return Settings(backend, "mixed_bfloat16", True, measured + why)
    why = {
        "torch": "PyTorch uses them best. Compiled it is faster still, which needs a C++ compiler: "
        "none was found.",
        "tensorflow": "TensorFlow uses them without XLA only. PyTorch, compiled, took 0.63 of its "
        "time.",
        "jax": "JAX does not reach them, yet bfloat16 took 0.7 of float32's time for another GPT "
        "(keras-hub's). TensorFlow and PyTorch are more than twice as fast.",
    }
    return Settings(backend, "mixed_bfloat16", "auto", measured + why[backend])


def _with_bfloat16_vectors(backend: str) -> Settings:
    measured = "The processor computes in bfloat16 (AVX-512 BF16). "
    why = {
        "tensorflow": "TensorFlow without XLA was the fastest, and 1.6 times as fast as in "
        "float32; with XLA it gains nothing from bfloat16.",
        "torch": "PyTorch, not compiled, was 1.5 times as fast as in float32.",
        "jax": "JAX does not: float32 was faster. TensorFlow is twice as fast in bfloat16.",
    }
    dtype = "float32" if backend == "jax" else "mixed_bfloat16"
    return Settings(backend, dtype, "auto", measured + why[backend])


def _first_installed(*backends: str) -> str:
    """Returns the first one that is installed; TensorFlow comes with kgpt."""
    found = (name for name in backends if importlib.util.find_spec(name))
    return next(found, keras.config.backend())


def _processor_flags() -> set[str]:
    """Returns the processor's features by Linux's names; an empty set on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = [line for line in lines if line.startswith("flags")]
    return set(flags[0].split(":", 1)[1].split()) if flags else set()


def _cpp_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "c++", "clang++", "cl"))
