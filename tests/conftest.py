import os
from pathlib import Path

import pytest

REFERENCE_DATA = Path(
    os.environ.get("KGPT_TEST_DATA", Path(__file__).resolve().parents[2] / "shared")
)


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of real vocabularies and texts that some tests compare with."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip(
            f"no reference data at {REFERENCE_DATA}: set KGPT_TEST_DATA to a folder that holds "
            "OpenAI's vocabularies (vocab/gpt1, vocab/gpt2) to run this test"
        )
    return REFERENCE_DATA
