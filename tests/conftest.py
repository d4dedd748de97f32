import gc
import importlib.util
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from xla_flags import XLA_FLAGS

# Most of a test's time is compilation: what was compiled once is kept for all tests of the run.
# Before the backends are imported.
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
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
# The mark `compiled` names the tests in these files that do.
EAGER_ON_TENSORFLOW = (
    *("convert/test_presets", "convert/test_trained_heads", "data/", "generation/test_options"),
    *(
        "benchmarks/test_costs",
        "benchmarks/test_gpt1",
        "benchmarks/test_label",
        "callbacks/",
        "generation/test_samplers",
        "generation/test_spelling",
    ),
    *("models/test_arguments_of_fit", "models/test_causal_lm", "models/test_classifier"),
    *("models/test_compile_arguments", "models/test_freezing", "models/test_head"),
    *("models/test_keras_", "models/test_lora", "models/test_multi", "models/test_regressor"),
    *("models/test_resize", "models/test_scoring", "models/test_text_straight_in"),
    *("models/test_weights_and_targets", "test_bad_use", "test_damaged_files"),
    *("test_docstring_examples", "test_hostile_files", "test_old_files", "test_tutorials"),
)


def pytest_configure(config):
    config.addinivalue_line("markers", "compiled: not run eagerly on TensorFlow, as its file is")


@contextmanager
def eager_functions(is_eager):
    """Runs TensorFlow's functions as Python, or not, on that backend."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(is_eager)
    yield
    tf.config.run_functions_eagerly(before)


@pytest.fixture(scope="module", autouse=True)
def functions_of_a_file(request):
    """Runs TensorFlow's functions as Python in the files that are named above."""
    with eager_functions(is_among(request.path, EAGER_ON_TENSORFLOW)):
        yield


@pytest.fixture(autouse=True)
def functions_of_a_test(request):
    """Compiles them in a test of these files that is marked so."""
    if request.node.get_closest_marker("compiled") is None:
        yield
        return
    with eager_functions(False):
        yield


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
    *("data/test_read_texts", "data/test_sequences", "data/test_split", "data/test_stories"),
    *("data/test_tasks", "data/test_token_files"),
    *("convert/test_model_card", "plot/test_training_curves"),
    *("test_ci", "test_files", "test_house", "test_keywords", "test_promises"),
    *("data/test_checksums", "test_kept_outputs", "test_readme_zh"),
    *("test_public_names", "test_types", "test_values"),
    *("callbacks/test_run_identity", "test_bad_use", "test_damaged_files", "test_hostile_files"),
    "test_distribution",
)


# Scripts and examples, whose parts have tests of their own: `slow` but where they run fastest.
ON_TORCH = (
    *("benchmarks/test_benchmarks.py::test_the_first_command", "benchmarks/test_label_efficiency"),
    "benchmarks/test_gpt1_paper",
    "benchmarks/test_shares_of_an_hour.py::test_each_part",
    *("test_docstring_examples", "test_examples", "test_tutorials"),
)

# Cases that take longest to compile: other cases there hold the same behaviour, and on PyTorch all.
# One beginning of a test's name in a line.
SLOW_ON = {
    backend: tuple(
        Path(__file__).with_name(f"slow_on_{backend}.txt").read_text(encoding="utf-8").splitlines()
    )
    for backend in ("tensorflow", "jax")
}


def slow_here():
    """The beginnings of the names of tests that are slow on this backend and not on PyTorch."""
    backend = keras.backend.backend()
    if backend not in SLOW_ON or importlib.util.find_spec("torch") is None:
        return ()  # without PyTorch this is the only run
    return ON_TORCH + SLOW_ON[backend]


def pytest_collection_modifyitems(items):
    """Marks the tests that the quick runs, or those on further backends, leave out."""
    slow = tuple(f"tests/{name}" for name in slow_here())
    for item in items:
        if is_among(item.path, ANY_BACKEND):
            item.add_marker(pytest.mark.any_backend)
        if item.nodeid.startswith(slow):
            item.add_marker(pytest.mark.slow)
