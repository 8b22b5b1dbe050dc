"""Gzip streams in pieces of bounded size, with everything before the damage delivered."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from xferkit.data.errors import DataError

__all__ = ["decompress", "is_gzip_name"]


def is_gzip_name(path: str) -> bool:
    """Whether the file's name says that it is compressed."""
    return path.lower().endswith(".gz")


def decompress(
    chunks: Iterator[bytes], path: str, piece_bytes: int, line: Callable[[], int]
) -> Iterator[bytes]:
    """The content of a gzip file of one or more members, at most ``piece_bytes`` at a time.

    A bomb thus costs time, never memory. Check sums are checked.

    Args:
        chunks: the compressed bytes.
        path: named in errors.
        piece_bytes: cap on a piece of the content.
        line: tells the line reached, for errors.

    Raises:
        DataError: these are no gzip data, or they are damaged, or end too early.
    """
    inflate = None
    members = 0
    for data in chunks:
        # Some tools pad the end with zeros.
        data = data.lstrip(b"\0") if members and inflate is None else data
        while data:
            inflate = inflate or zlib.decompressobj(wbits=31)
            try:
                piece = inflate.decompress(data, piece_bytes)
            except zlib.error as error:
                raise _damage(path, line(), members, error) from None
            data = inflate.unconsumed_tail
            if inflate.eof:
                data = inflate.unused_data.lstrip(b"\0")
                inflate = None
                members += 1
            if piece:
                yield piece
    while inflate is not None:
        # All the input is in; what zlib still holds back comes out, and then it must have met the end.
        try:
            piece = inflate.decompress(b"", piece_bytes)
        except zlib.error as error:
            raise _damage(path, line(), members, error) from None
        if piece:
            yield piece
        elif inflate.eof:
            return
        else:
            raise DataError.at(
                path, line(), "the gzip data end in the middle", "the whole file", reason="damaged gzip"
            )
    if not members:
        raise DataError.at(path, 1, "the file is empty", "gzip data", reason="no gzip data")


def _damage(path: str, line: int, members: int, error: zlib.error) -> DataError:
    wrong, expected, reason = f"the gzip data are damaged ({error})", "an undamaged file", "damaged gzip"
    if "incorrect header" in str(error):
        wrong, expected = "something else follows the gzip data", "gzip data to the end of the file"
        if not members:
            wrong, expected = "the name ends in .gz, but the content is not gzip data", "gzip data"
            line, reason = 1, "no gzip data"
    return DataError.at(path, line, wrong, expected, reason=reason)
