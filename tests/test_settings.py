import keras
import pytest

import kgpt
from kgpt import settings

BACKENDS = ("tensorflow", "jax", "torch")


@pytest.fixture
def machine(monkeypatch):
    """A function that gives the machine a processor, packages, a compiler and an accelerator."""

    def make(flags=(), installed=BACKENDS, compiler=True, accelerator=False):
        monkeypatch.setattr(settings, "has_accelerator", lambda: accelerator)
        monkeypatch.setattr(settings, "_processor_flags", lambda: set(flags))
        monkeypatch.setattr(settings, "_cpp_compiler", lambda: compiler)
        monkeypatch.setattr(
            settings.importlib.util, "find_spec", lambda name: name in installed or None
        )

    return make


def test_this_machine_gets_settings_and_keeps_its_own():
    before = keras.config.backend(), keras.config.dtype_policy().name

    found = kgpt.recipes.fastest_settings()

    assert found.backend in BACKENDS
    assert found.dtype in ("float32", "mixed_bfloat16")
    assert found.why.endswith(".")
    assert (keras.config.backend(), keras.config.dtype_policy().name) == before


def test_what_comes_out_trains():
    found = kgpt.recipes.fastest_settings(keras.config.backend())
    backbone = kgpt.GPTBackbone(11, 1, 2, 8, max_sequence_length=6, dtype=found.dtype)
    lm = kgpt.CausalLM(backbone)
    lm.compile(jit_compile=False if keras.config.backend() == "torch" else found.jit_compile)

    history = lm.fit(keras.ops.convert_to_numpy(keras.ops.ones((4, 6), "int32")), verbose=0)

    assert 0 < history.history["loss"][0] < 5


@pytest.mark.parametrize(
    ("flags", "installed", "backend", "dtype", "jit_compile"),
    [
        (["amx_bf16", "avx512_bf16"], BACKENDS, "torch", "mixed_bfloat16", True),
        (["amx_bf16", "avx512_bf16"], ["tensorflow"], "tensorflow", "mixed_bfloat16", "auto"),
        (["avx512_bf16"], BACKENDS, "tensorflow", "mixed_bfloat16", "auto"),
        (["avx2"], BACKENDS, "tensorflow", "float32", "auto"),
        ([], BACKENDS, "tensorflow", "float32", "auto"),
    ],
)
def test_the_processor_decides(machine, flags, installed, backend, dtype, jit_compile):
    machine(flags, installed)

    found = kgpt.recipes.fastest_settings()

    assert found[:3] == (backend, dtype, jit_compile)


@pytest.mark.parametrize(
    ("flags", "accelerator", "backend", "dtype", "jit_compile", "reason"),
    [
        (["amx_bf16"], False, "tensorflow", "mixed_bfloat16", "auto", "AMX"),
        (["amx_bf16"], False, "jax", "mixed_bfloat16", "auto", "AMX"),
        (["amx_bf16"], False, "torch", "mixed_bfloat16", True, "AMX"),
        (["avx512_bf16"], False, "tensorflow", "mixed_bfloat16", "auto", "AVX-512 BF16"),
        (["avx512_bf16"], False, "jax", "float32", "auto", "AVX-512 BF16"),
        (["avx512_bf16"], False, "torch", "mixed_bfloat16", "auto", "AVX-512 BF16"),
        ([], False, "tensorflow", "float32", "auto", "float32"),
        ([], False, "jax", "float32", "auto", "float32"),
        ([], False, "torch", "float32", "auto", "float32"),
        (["amx_bf16"], True, "tensorflow", "mixed_bfloat16", "auto", "gpu.py"),
        ([], True, "jax", "mixed_bfloat16", "auto", "gpu.py"),
        ([], True, "torch", "mixed_bfloat16", "auto", "gpu.py"),
    ],
)
def test_a_backend_that_is_asked_for_gets_its_own_settings_and_the_reason(
    machine, flags, accelerator, backend, dtype, jit_compile, reason
):
    machine(flags, accelerator=accelerator)

    found = kgpt.recipes.fastest_settings(backend)

    assert found[:3] == (backend, dtype, jit_compile)
    assert reason in found.why


def test_without_a_compiler_nothing_is_compiled_by_it(machine):
    machine(["amx_bf16"], compiler=False)

    found = kgpt.recipes.fastest_settings("torch")

    assert found.jit_compile == "auto"
    assert "compiler" in found.why


def test_an_accelerator_computes_in_bfloat16_with_the_backend_that_runs(machine):
    machine(accelerator=True)

    found = kgpt.recipes.fastest_settings()

    assert found[:3] == (keras.config.backend(), "mixed_bfloat16", "auto")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"'tensorflow', 'torch', 'jax'.*backend='mxnet'"):
        kgpt.recipes.fastest_settings("mxnet")
