"""Damage that only JSON lines can have."""

from __future__ import annotations

from malformed_common import Case

from xferkit.data.records import Columns

KNOWN = {"allowed_labels": ["pos", "neg"]}


def jsonl_cases() -> dict[str, Case]:
    return {**_syntax(), **_texts(), **_tags()}


def _row(text: bytes, *words: str, **options: object) -> Case:
    """A row between two good ones."""
    data = b'{"text": "one qq", "label": "pos"}\n' + text + b'\n{"text": "three", "label": "neg"}\n'
    return Case(data, words, 2 if words else None, (2, 1) if words else (3, 0), options=options)


def _syntax() -> dict[str, Case]:
    return {
        "cut line": _row(b'{"text": "two", "lab', "not JSON at column", "a JSON object on each line"),
        "single quotes": _row(b"{'text': 'two', 'label': 'pos'}", "not JSON at column 2"),
        "comma at the end": _row(b'{"text": "two", "label": "pos",}', "not JSON"),
        "missing comma": _row(b'{"text": "two" "label": "pos"}', "not JSON at column 16", "delimiter"),
        "comment": _row(b"// two", "not JSON at column 1"),
        "two objects on a line": _row(
            b'{"text": "a", "label": "pos"} {"text": "b"}', "not JSON", "Extra data"
        ),
        "a table's row": _row(b"two\tpos", "not JSON at column 1"),
        "tab within a string": _row(b'{"text": "t\two", "label": "pos"}', "not JSON", "control character"),
        "unknown escape": _row(rb'{"text": "t\xe9", "label": "pos"}', "not JSON", "escape"),
        "cut escape": _row(rb'{"text": "t\u12", "label": "pos"}', "not JSON", "escape"),
        "list": _row(b'["two", "pos"]', "a list instead of an object"),
        "string": _row(b'"two"', "a string instead of an object"),
        "number": _row(b"12", "a number instead of an object"),
        "null": _row(b"null", "null instead of an object"),
        "true": _row(b"true", "true or false instead of an object"),
        "NaN": _row(b"NaN", "NaN", "no JSON"),
        "text is NaN": _row(b'{"text": NaN, "label": "pos"}', "NaN", "no JSON"),
        "infinity somewhere": _row(
            b'{"text": "two", "label": "pos", "x": -Infinity}', "-Infinity", "no JSON"
        ),
        "a key twice": _row(b'{"text": "a", "text": "b", "label": "pos"}', "the key 'text' twice"),
        "another key twice": _row(b'{"text": "a", "label": "pos", "x": 1, "x": 2}', "the key 'x' twice"),
        "a key twice within": _row(
            b'{"text": "a", "label": "pos", "x": {"y": 1, "y": 2}}', "the key 'y' twice"
        ),
        "nested 100,000 lists": _row(b"[" * 100_000, "nested too deeply"),
        "nested 100,000 objects": _row(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        "nested beside a text": _row(
            b'{"text": "a", "label": "pos", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "nested too deeply",
        ),
        "integer of 5,000 digits": _row(b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "too many digits"),
        "digit of another script": _row('{"text": "a", "label": ٣}'.encode(), "not JSON"),
        "one document over many lines": Case(
            b'[\n  {"text": "qq", "label": "pos"}\n]\n', ("not JSON at column 2", "on each line"), 1, (1, 2)
        ),
        "an array of objects": Case(b'[{"text": "qq", "label": "pos"}]\n', ("a list instead",), 1, (0, 1)),
        "blank line": Case(
            b'{"text": "qq", "label": "a"}\n\n{"text": "b", "label": "a"}\n', (), None, (2, 0), "qq"
        ),
        "line of spaces": Case(b'{"text": "qq", "label": "a"}\n \t \n', (), None, (1, 0), "qq"),
        "spaces around": _row(b'  {"text": "two", "label": "pos"}  '),
        "the suffix .json": Case(b'{"text": "qq", "label": "pos"}\n', (), None, (1, 0), "qq", name="f.json"),
    }


def _texts() -> dict[str, Case]:
    pair = rb"\ud83d\ude00"
    return {
        "no label": _row(b'{"text": "two"}', "no key for the label among text", "label or class or intent"),
        "label misspelt": _row(
            b'{"text": "two", "lable": "pos"}', "no key for the label", "did you mean 'lable'"
        ),
        "key in capitals": _row(
            b'{"TEXT": "two", "label": "pos"}', "no key for the text", "did you mean 'TEXT'"
        ),
        "no text": _row(b'{"label": "pos"}', "no key for the text among label"),
        "empty object": _row(b"{}", "no key for the text"),
        "empty text": _row(b'{"text": "", "label": "pos"}', "the text is empty"),
        "text of spaces": _row(rb'{"text": " \n\u2003", "label": "pos"}', "the text is empty"),
        "text is null": _row(b'{"text": null, "label": "pos"}', "the text is null", "expected a string"),
        "text is a number": _row(b'{"text": 1.5, "label": "pos"}', "the text is a number"),
        "text is a list": _row(b'{"text": ["two"], "label": "pos"}', "the text is a list"),
        "text is an object": _row(b'{"text": {"en": "two"}, "label": "pos"}', "the text is an object"),
        "empty label": _row(b'{"text": "two", "label": ""}', "the label is empty"),
        "label is null": _row(
            b'{"text": "two", "label": null}', "the label is null", "a string or an integer"
        ),
        "label is true": _row(b'{"text": "two", "label": true}', "the label is true or false"),
        "label is 1.0": _row(b'{"text": "two", "label": 1.0}', "the label is a number", "integer"),
        "label is 1e999": _row(b'{"text": "two", "label": 1e999}', "the label is a number"),
        "label is a list": _row(b'{"text": "two", "label": ["pos"]}', "the label is a list"),
        "label is an integer": _row(b'{"text": "two", "label": 1}'),
        "integer not allowed": _row(b'{"text": "two", "label": 1}', "unknown label '1'", **KNOWN),
        "label not allowed": _row(
            b'{"text": "two", "label": "negg"}', "'negg'", "did you mean 'neg'", **KNOWN
        ),
        "half a surrogate pair": _row(rb'{"text": "a\ud83d b", "label": "pos"}', "half of a surrogate pair"),
        "the other half": _row(rb'{"text": "a\uDE00", "label": "pos"}', "half of a surrogate pair"),
        "a pair the wrong way round": _row(
            rb'{"text": "\ude00\ud83d", "label": "pos"}', "half of a surrogate pair"
        ),
        "half a pair in the label": _row(rb'{"text": "two", "label": "\ud83d"}', "half of a surrogate pair"),
        "half a pair in another key": _row(rb'{"text": "two", "label": "pos", "x": "\ud83d"}'),
        "whole pair": _row(b'{"text": "a' + pair + b'", "label": "pos"}'),
        "NUL as an escape": _row(rb'{"text": "a\u0000b", "label": "pos"}', "NUL character", r"\u0000"),
        "line feed as an escape": _row(rb'{"text": "a\nb", "label": "pos"}'),
        "huge number beside": _row(b'{"text": "two", "label": "pos", "x": 1e999}'),
        "a name that is not there": Case(
            b'{"text": "qq", "label": "pos"}\n',
            ("no key 'lable' among text, label", "did you mean 'label'"),
            1,
            (0, 1),
            options={"columns": Columns(label="lable")},
        ),
    }


def _tags() -> dict[str, Case]:
    good = b'{"tokens": ["one", "qq"], "tags": ["O", "B-LOC"]}\n'

    def row(text: bytes, *words: str, **more: object) -> Case:
        options = {"task": "tagging", **more}
        return Case(
            good + text + b"\n" + good,
            words,
            2 if words else None,
            (2, 1) if words else (3, 0),
            options=options,
        )

    two = b'{"tokens": ["a", "b"], "tags": '
    return {
        "a tag too few": row(two + b'["O"]}', "2 tokens but 1 tags", "a tag for each token"),
        "a tag too many": row(two + b'["O", "O", "O"]}', "2 tokens but 3 tags"),
        "no tags": row(two + b"[]}", "2 tokens but 0 tags"),
        "no tokens": row(b'{"tokens": [], "tags": []}', "there are no tokens"),
        "tokens are a string": row(b'{"tokens": "a b", "tags": ["O", "O"]}', "the tokens are a string"),
        "tags are a string": row(two + b'"O O"}', "the tags are a string"),
        "tags are null": row(two + b"null}", "the tags are null"),
        "a token is null": row(b'{"tokens": ["a", null], "tags": ["O", "O"]}', "a token is null"),
        "a token is a number": row(b'{"tokens": ["a", 3], "tags": ["O", "O"]}', "a token is a number"),
        "a token is empty": row(b'{"tokens": ["a", ""], "tags": ["O", "O"]}', "a token is an empty string"),
        "a tag is null": row(two + b'["O", null]}', "a tag is null"),
        "a tag is a list": row(two + b'["O", ["B"]]}', "a tag is a list"),
        "a tag is empty": row(two + b'["O", ""]}', "the tag is empty"),
        "a tag holds spaces": row(two + b'["O", "B I"]}', "'B I' holds spaces"),
        "a tag not allowed": row(
            two + b'["O", "B-LOCC"]}', "unknown tag 'B-LOCC'", allowed_labels=["O", "B-LOC"]
        ),
        "a tag is a number": row(two + b"[0, 3]}"),
        "a sentence too long": row(
            b'{"tokens": ["a", "b", "c"], "tags": ["O", "O", "O"]}', "more than 2 tokens", max_tokens=2
        ),
        "half a pair in a token": row(rb'{"tokens": ["a", "\ud83d"], "tags": ["O", "O"]}', "surrogate pair"),
        "no key for the tags": row(b'{"tokens": ["a"], "tagz": ["O"]}', "no key for the tags", "'tagz'"),
    }
