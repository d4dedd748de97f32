"""Files, folders and strings -> documents, the input of tokenizers and corpora."""

from kgpt.text.checks import check_no_table, shorten
from kgpt.text.files import (
    TABLES,
    check_encoding,
    chunks_of_file,
    compression_of,
    open_file,
    stream_of,
    table_format,
)
from kgpt.text.pieces import document_pieces, documents

__all__ = [
    "TABLES",
    "check_encoding",
    "check_no_table",
    "chunks_of_file",
    "compression_of",
    "document_pieces",
    "documents",
    "open_file",
    "shorten",
    "stream_of",
    "table_format",
]
