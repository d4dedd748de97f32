"""Everything between text and `fit`."""

from kgpt.data.corpus import standard_library_files, write_tokens
from kgpt.data.windows import windows

__all__ = ["standard_library_files", "windows", "write_tokens"]
