"""Examples grouped by task, language and domain: which files they are in, and what identifies them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from xferkit.data.errors import DataError, close_name, printable, shown
from xferkit.data.records import RecordReader, read_records

__all__ = ["Corpus", "CorpusKey", "fingerprint", "group_by_key", "parse_named_files"]

T = TypeVar("T")

# Names end up in file names and tables.
_NAME = re.compile(r"[^\W_][\w.+-]*")
_CHUNK = 2**20


@dataclass(frozen=True, order=True)
class CorpusKey:
    """What examples have in common; written ``task:language/domain``, without what is empty.

    Attributes:
        task: such as ``"pos"``; "" where there is one task.
        language: such as ``"en"``.
        domain: such as ``"books"``; "" where there is one domain.
    """

    task: str
    language: str
    domain: str = ""

    def __str__(self) -> str:
        task = f"{self.task}:" if self.task else ""
        return task + self.language + (f"/{self.domain}" if self.domain else "")

    @classmethod
    def parse(cls, text: str, *, task: str = "") -> CorpusKey:
        """The key that ``str`` writes so; ``task`` where the text names none.

        Raises:
            DataError: the text is no such key.
        """
        found = re.fullmatch(r"(?:([^:/]*):)?([^:/]*)(?:/([^:/]*))?", text)
        parts = [part for part in found.groups() if part is not None] if found else [""]
        if not found or not all(_NAME.fullmatch(part) for part in parts):
            raise DataError(
                f"{shown(text)} is not the name of a language; expected letters, digits, '.', '-', '_' or '+' as in "
                "en, en/books (with a domain) or pos:en/books (with a task)"
            )
        return cls(found[1] or task, found[2], found[3] or "")


def parse_named_files(
    arguments: Iterable[str], *, task: str = "", argument: str = "files", shared: bool = False
) -> dict[CorpusKey, str]:
    """Files by key, from arguments such as ``en=en.tsv``, ``en/books=books.tsv``, ``pos:en=en.conllu``.

    Args:
        arguments: each a key (see :class:`CorpusKey`), ``=`` and a file or folder.
        task: for keys that name none.
        argument: what the person who wrote them calls them, for the sentences.
        shared: a file may be given under several keys, as it holds several things.

    Raises:
        DataError: one is not of that form, a key comes twice, a file comes twice, or a file is missing; the
            sentence names it.
    """
    if isinstance(arguments, str):
        raise DataError(f"{argument}: a list of NAME=FILE is expected, got the string {shown(arguments)}")
    files: dict[CorpusKey, str] = {}
    owner: dict[str, CorpusKey] = {}
    for text in arguments:
        name, equals, path = text.partition("=")
        if not equals or not name.strip() or not path:
            raise DataError(f"{argument}: {shown(text)} is not NAME=FILE; expected for example en=en.tsv")
        try:
            key = CorpusKey.parse(name.strip(), task=task)
        except DataError as error:
            raise DataError(f"{argument}: {error}") from None
        if key in files:
            raise DataError(
                f"{argument}: {str(key)!r} is given twice, as {printable(files[key])} and {printable(path)}; expected "
                "each once (en/a=..., en/b=... are two domains of a language)"
            )
        if not os.path.exists(path):
            raise DataError(
                f"{argument}: {printable(path)} (for {str(key)!r}) does not exist{_near(path)}; expected a file"
            )
        real = os.path.realpath(path)
        if real in owner and not shared:
            raise DataError(
                f"{argument}: {printable(path)} is given for {str(owner[real])!r} and for {str(key)!r}; expected each "
                "file once"
            )
        files[key] = path
        owner[real] = key
    return files


def _near(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        names = sorted(os.listdir(folder or "."))[:500]
    except OSError:
        return ""
    return close_name(name, names)


def group_by_key(pairs: Iterable[tuple[CorpusKey, T]]) -> dict[CorpusKey, list[T]]:
    """What belongs to each key, in the order of arrival; keys in the order in which they first came."""
    groups: dict[CorpusKey, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def fingerprint(path: str | os.PathLike[str], *, on_progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's bytes as they are on the disk, read a MiB at a time.

    Of a folder: over the relative names, sizes and bytes of all files in it, in the order of their names.

    Args:
        path: file or folder.
        on_progress: told the number of bytes after each piece.

    Returns:
        64 hexadecimal digits; for a file, what ``sha256sum`` prints.

    Raises:
        DataError: something cannot be read.
    """
    digest = hashlib.sha256()
    root = os.fspath(path)
    try:
        if not os.path.isdir(root):
            _add_file(digest, root, on_progress)
            return digest.hexdigest()
        for name in sorted(_files_below(root)):
            file = os.path.join(root, name)
            digest.update(f"{name}\0{os.path.getsize(file)}\0".encode("utf-8", "surrogateescape"))
            _add_file(digest, file, on_progress)
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
        raise DataError.at(error.filename or root, None, wrong, "a file that you may read") from None
    return digest.hexdigest()


def _files_below(root: str) -> Iterator[str]:
    for folder, _, names in os.walk(root, onerror=_raise):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), root)


def _raise(error: OSError) -> None:
    raise error


def _add_file(digest: Any, path: str, on_progress: Callable[[int], None] | None) -> None:
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            if on_progress is not None:
                on_progress(len(piece))


@dataclass(frozen=True)
class Corpus:
    """Files by task, language and domain.

    Attributes:
        files: where the examples of each key are.
    """

    files: Mapping[CorpusKey, str]

    @classmethod
    def parse(cls, arguments: Iterable[str], *, task: str = "", argument: str = "files") -> Corpus:
        """See :func:`parse_named_files`."""
        return cls(parse_named_files(arguments, task=task, argument=argument))

    @property
    def keys(self) -> tuple[CorpusKey, ...]:
        """The keys in the order given."""
        return tuple(self.files)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, each once."""
        return tuple(dict.fromkeys(key.task for key in self.files))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, each once."""
        return tuple(dict.fromkeys(key.language for key in self.files))

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, each once."""
        return tuple(dict.fromkeys(key.domain for key in self.files))

    def select(
        self, *, task: str | None = None, language: str | None = None, domain: str | None = None
    ) -> Corpus:
        """The part with this task, language and domain; None: any.

        Raises:
            DataError: there is none.
        """
        wanted = {"task": task, "language": language, "domain": domain}
        given = {name: value for name, value in wanted.items() if value is not None}
        files = {
            key: path
            for key, path in self.files.items()
            if all(getattr(key, name) == value for name, value in given.items())
        }
        if not files:
            asked = ", ".join(f"{name} {shown(value)}" for name, value in given.items())
            held = ", ".join(map(str, self.files)) or "nothing"
            raise DataError(f"the corpus holds no file of {asked}; expected one of {held}")
        return Corpus(files)

    def reader(self, key: CorpusKey, **options: Any) -> RecordReader:
        """The records of a key; the options are those of :func:`xferkit.data.records.read_records`."""
        if key not in self.files:
            held = ", ".join(map(str, self.files)) or "nothing"
            raise DataError(f"the corpus holds no file of {str(key)!r}; expected one of {held}")
        return read_records(self.files[key], **options)

    def fingerprint(self) -> str:
        """SHA-256 over keys and contents: the same for the same data, wherever they lie and in whatever order."""
        digest = hashlib.sha256()
        for key in sorted(self.files):
            digest.update(f"{key}\0{fingerprint(self.files[key])}\0".encode())
        return digest.hexdigest()
