import gc
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
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads wait for each other longer
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


def pytest_collection_finish():
    freeze_garbage()


def freeze_garbage():
    """Leaves what was imported out of later collections, of which Keras makes many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def compiled_functions_end_with_their_file():
    """Frees what a file's models compiled: thousands of programs exceed a process's memory maps."""
    yield
    freeze_garbage()
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


# What does not depend on a compiled step: TensorFlow spends most of the time on making graphs.
EAGER_ON_TENSORFLOW = (
    *("convert/test_presets", "convert/test_trained_heads", "data/"),
    *("models/test_arguments_of_fit", "models/test_classifier", "models/test_compile_arguments"),
    *("models/test_freezing", "models/test_keras_", "models/test_lora"),
    *("models/test_multi", "models/test_regressor", "models/test_resize", "models/test_scoring"),
    *("models/test_text_straight_in", "models/test_weights_and_targets"),
)


@pytest.fixture(scope="module", autouse=True)
def functions_of_tensorflow(request):
    """Runs TensorFlow's functions as Python in the files that are named above."""
    is_eager = is_among(request.path, EAGER_ON_TENSORFLOW)
    if keras.backend.backend() != "tensorflow" or not is_eager:
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def is_among(path, names):
    return path.relative_to(Path(__file__).parent).as_posix().startswith(names)


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of real vocabularies and texts that some tests compare with."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip(
            f"no reference data at {REFERENCE_DATA}: set KGPT_TEST_DATA to a folder that holds "
            "OpenAI's vocabularies (vocab/gpt1, vocab/gpt2) to run this test"
        )
    return REFERENCE_DATA


# What asks nothing of the backend: text, tokens, arrays, arguments, files. One run is enough.
ANY_BACKEND = (
    *("text/", "tokenizer/", "data/test_builtin", "data/test_columns", "data/test_corpus"),
    *("data/test_read_texts", "data/test_sequences", "data/test_split", "data/test_tasks"),
    *("convert/test_model_card", "plot/test_training_curves", "test_docstring_examples"),
    *("test_ci", "test_examples", "test_files", "test_house", "test_keywords", "test_promises"),
    *("test_public_names", "test_types", "test_values"),
)


def pytest_collection_modifyitems(items):
    """Marks the tests that the runs on further backends leave out."""
    for item in items:
        if is_among(item.path, ANY_BACKEND):
            item.add_marker(pytest.mark.any_backend)
