import pytest


@pytest.fixture(scope="module")
def transformers():
    reason = "transformers and torch are the reference of these tests"
    pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    transformers.logging.set_verbosity_error()
    return transformers
