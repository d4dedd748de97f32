import os
import tempfile
from pathlib import Path

import pytest

# Most of a test's time is compilation. Models are tiny here: compiled code need not be good, and
# what was compiled once is kept for all tests of the run. Before the backends are imported.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # processes started from here inherit it
    COMPILED = tempfile.TemporaryDirectory(prefix="kgpt-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name

import keras

REFERENCE_DATA = Path(
    os.environ.get("KGPT_TEST_DATA", Path(__file__).resolve().parents[2] / "shared")
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """The same random numbers whichever tests ran before, in fixtures too."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of real vocabularies and texts that some tests compare with."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip(
            f"no reference data at {REFERENCE_DATA}: set KGPT_TEST_DATA to a folder that holds "
            "OpenAI's vocabularies (vocab/gpt1, vocab/gpt2) to run this test"
        )
    return REFERENCE_DATA
