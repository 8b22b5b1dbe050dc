"""Damage that only tagged sentences and plain text can have."""

from __future__ import annotations

from malformed_common import Case, conllu

from xferkit.data.records import Columns

KNOWN = {"allowed_labels": ["O", "B-LOC", "I-LOC"]}


def conll_cases() -> dict[str, Case]:
    head, tail = b"one\tO\nqq\tB-LOC\n\n", b"\nfour\tO\n\n"

    def rows(lines: bytes, line: int, *words: str, **more: object) -> Case:
        """A bad sentence, the second of three, whose lines begin at 4."""
        return Case(head + lines + tail, words, line, (2, 1), **more)  # type: ignore[arg-type]

    def good(lines: bytes, holds: str, number: int = 3, **more: object) -> Case:
        return Case(head + lines + tail, (), None, (number, 0), holds, **more)  # type: ignore[arg-type]

    spaces = b"one X O\nqq Y B-LOC\n\n"
    columns = {
        name: {"columns": Columns(**value)}
        for name, value in {  # type: ignore[arg-type]
            "name": {"tags": "nerr"},
            "named": {"tokens": "form", "tags": "ner"},
            "comment": {"comment": "%%"},
            "hash": {"comment": "#"},
            "tab": {"delimiter": "\t"},
            "space": {"delimiter": " "},
            "third": {"tokens": 1, "tags": 3},
            "first": {"tags": 1},
            "no header": {"header": False},
        }.items()
    }
    return {
        "token without tag": rows(b"a\tO\nb\n", 5, "1 column", "expected 2 as in line 1"),
        "spaces in place of the tab": rows(b"a\tO\nb O\n", 5, "1 column", "expected 2"),
        "empty tag": rows(b"a\t\nb\tO\n", 4, "the tag is empty", "expected a tag"),
        "tag of spaces": rows(b"a\t  \n", 4, "the tag is empty"),
        "empty token": rows(b"\tO\n", 4, "the token is empty"),
        "extra column": rows(b"a\tO\tO\n", 4, "more than 2 columns", "expected 2 as in line 1"),
        "tab at the end": rows(b"a\tO\t\n", 4, "more than 2 columns"),
        "tab within the token": rows(b"a\tb\tO\n", 4, "more than 2 columns"),
        "five thousand tabs and a token": rows(b"\t" * 5000 + b"a\n", 4, "more than 2 columns"),
        "three bad lines are one sentence": rows(b"a\nb\nc\td\te\n", 4, "1 column"),
        "tag with spaces": rows(b"a\tO O\n", 4, "the tag 'O O' holds spaces", "one tag per token"),
        "tag not allowed": rows(
            b"a\tO\nb\tB-LOCC\n", 5, "unknown tag 'B-LOCC'", "did you mean 'B-LOC'", options=KNOWN
        ),
        "token in place of the tag": rows(
            b"O\ta\n", 4, "unknown tag 'a'", "one of O, B-LOC, I-LOC", options=KNOWN
        ),
        "sentence too long": rows(
            b"a\tO\n" * 4,
            7,
            "more than 3 tokens",
            "a blank line after each sentence",
            "max_tokens",
            options={"max_tokens": 3},
        ),
        "sentence of exactly the cap": good(b"a\tO\n" * 3, "a", options={"max_tokens": 3}),
        "first sentence bad": Case(b"a\n\nqq\tO\n\n", ("1 column", "at least 2"), 1, (1, 1)),
        "last sentence bad, no line end": Case(b"qq\tO\n\na\tO\nb", ("1 column",), 4, (1, 1)),
        "all sentences bad": Case(b"a\n\nb\n\n", ("1 column", "at least 2"), 1, (0, 2)),
        "a long first line": Case(b"a\tX\tO\n\nqq\tO\n\n", ("2 columns", "3 as in line 1"), 3, (1, 1)),
        "spaces: token without tag": Case(spaces + b"a O\n\n", ("2 columns", "expected 3"), 4, (1, 1)),
        "spaces: one column more": Case(spaces + b"a b X O\n\n", ("more than 3 columns",), 4, (1, 1)),
        "spaces: a comment": Case(
            spaces + b"# id 1 2\n\n", ("more than 3 columns", "Columns(comment='#')"), 4, (1, 1)
        ),
        "spaces: a comment, said": Case(spaces + b"# id 1 2\n\n", (), None, (1, 0), "qq", columns["hash"]),
        "spaces: runs and tabs": Case(b"one   X  O\nqq\tY   B-LOC\n  a X O \n", (), None, (1, 0), "qq"),
        "spaces: number sign is a token": Case(b"# X O\nqq X O\n", (), None, (1, 0), "#"),
        "tabs where spaces were said": Case(
            b"a b\tO\nqq\tO\n", ("2 columns", "3 as in line 1"), 2, (0, 1), "", columns["space"]
        ),
        "spaces where tabs were said": Case(
            b"qq O\n", ("1 column", "at least 2 between tabs"), 1, (0, 1), "", columns["tab"]
        ),
        "named column not there": Case(
            b"token\tner\nqq\tO\n", ("no column 'nerr'", "did you mean 'ner'"), 1, None, "", columns["name"]
        ),
        "named columns": Case(b"id\tform\tner\n1\tqq\tO\n", (), None, (1, 0), "qq", columns["named"]),
        "named column twice": Case(
            b"form\tner\tner\nqq\tO\tO\n", ("two columns 'ner'",), 1, None, "", columns["named"]
        ),
        "numbered columns": Case(b"1\tqq\tX\tO\t_\n", (), None, (1, 0), "qq", columns["third"]),
        "fewer columns than numbered": Case(
            b"1\tqq\tO\n", ("3 columns", "at least 4"), 1, (0, 1), "", columns["third"]
        ),
        "tag next to the token": Case(b"qq\tO\t_\n", (), None, (1, 0), "qq", columns["first"]),
        "columns from the end": Case(
            b"qq\tO\n", (), None, (1, 0), "qq", {"columns": Columns(tokens=-2, tags=-1)}
        ),
        "columns from both ends that meet": Case(
            b"qq\tO\n",
            ("2 columns", "at least 3"),
            1,
            (0, 1),
            options={"columns": Columns(tokens=1, tags=-1)},
        ),
        "a header is too short to be one": Case(b"token\nqq\tO\n", ("1 column", "at least 2"), 1, (0, 1)),
        "a header is seen": Case(b"token\ttag\n\nqq\tO\n", (), None, (1, 0), "qq"),
        "a header is no header": Case(
            b"token\ttag\nqq\tO\n", (), None, (1, 0), "token", columns["no header"]
        ),
        "I without B": good(b"a\tI-LOC\nb\tI-PER\n", "b"),
        "B after B": good(b"a\tB-LOC\nb\tB-LOC\n", "b"),
        "document mark": good(b"-DOCSTART-\tO\n\na\tO\n", "a"),
        "document mark with spaces": good(b"-DOCSTART- -X- -X- O\n\na\tO\n", "a"),
        "document mark within a sentence": good(b"a\tO\n-DOCSTART-\tO\nb\tO\n", "b", 4),
        "document mark first": Case(b"-DOCSTART- -X- O\n\nqq X O\n", (), None, (1, 0), "qq"),
        "several blank lines": good(b"\n\n\na\tO\n\n\n", "a"),
        "lines of white space": good(b"  \na\tO\n \t \nb\tO\n\t\n", "b", 4),
        "line of two tabs": good(b"a\tO\n\t\nb\tO\n", "b", 4),
        "comment without tab": good(b"# sent_id = 3\na\tO\n", "a"),
        "comment first": Case(b"# a file\nqq\tO\n", (), None, (1, 0), "qq"),
        "number sign as a token": good(b"#\tO\n", "#"),
        "number sign with a tab is a token": good(b"# 1\tO\n", "# 1"),
        "comments of one's own": good(b"%% a\tb\tc\na\tO\n", "a", options=columns["comment"]),
        "token with spaces": good(b"New York\tB-LOC\n", "New York"),
        "token of a no-break space": good("\u00a0\tO\n".encode(), "\u00a0"),
        "tag with spaces around": good(b"a\t O \n", "a"),
        "two identical sentences": good(b"a\tO\n\na\tO\n", "a", 4),
    }


def conllu_cases() -> dict[str, Case]:
    first = b"\n".join(conllu(("one", "NUM"), ("qq", "NOUN"))) + b"\n"
    a, b = (line + b"\n" for line in conllu(("a", "DET"), ("b", "NOUN"))[:2])
    other = a.replace(b"\tDET", b"\tDETT")

    def rows(lines: bytes, line: int, *words: str, **more: object) -> Case:
        """A bad sentence, the second of three, whose lines begin at 4."""
        return Case(first + lines + b"\n" + first, words, line, (2, 1), **more)  # type: ignore[arg-type]

    def good(lines: bytes, holds: str, number: int = 3, **more: object) -> Case:
        return Case(first + lines + b"\n" + first, (), None, (number, 0), holds, **more)  # type: ignore[arg-type]

    def column(**names: str | int) -> dict[str, object]:
        return {"columns": Columns(**names)}  # type: ignore[arg-type]

    empty = b"1.1\te" + b"\t_" * 8 + b"\n"
    span = b"1-2\tab" + b"\t_" * 8 + b"\n"
    return {
        "nine columns": rows(a[:-3] + b"\n" + b, 4, "9 columns", "10 between tabs (ID, FORM, LEMMA, UPOS"),
        "eleven columns": rows(a[:-1] + b"\t_\n", 4, "more than 10 columns"),
        "spaces in place of tabs": rows(a.replace(b"\t", b" "), 4, "1 column", "between tabs"),
        "two columns": rows(b"a\tDET\n", 4, "2 columns"),
        "ID missing": rows(a[1:], 4, "the ID is ''", "expected 1"),
        "ID is a word": rows(b"x" + a[1:], 4, "the ID is 'x'"),
        "ID is zero": rows(b"0" + a[1:], 4, "the ID is '0'"),
        "ID with a zero in front": rows(b"0" + a, 4, "the ID is '01'"),
        "ID left out": rows(a + b"3" + b[1:], 5, "the ID is '3'", "expected 2"),
        "ID twice": rows(a + a, 5, "the ID is '1'", "expected 2", "blank line missing"),
        "blank line missing": rows(a + b + a + b, 6, "the ID is '1'", "expected 3", "blank line missing"),
        "range without end": rows(b"1-" + a[1:], 4, "the ID is '1-'"),
        "negative ID": rows(b"-1" + a[1:], 4, "the ID is '-1'"),
        "ID of three numbers": rows(b"1.1.1" + a[1:], 4, "the ID is '1.1.1'"),
        "empty form": rows(a.replace(b"\ta\t", b"\t\t"), 4, "the token is empty"),
        "no tag": rows(a.replace(b"DET", b"_"), 4, "the tag is '_'", "expected a tag"),
        "empty tag": rows(a.replace(b"DET", b""), 4, "the tag is empty"),
        "unknown tag": rows(
            other,
            4,
            "unknown tag 'DETT'",
            "did you mean 'DET'",
            options={"allowed_labels": ["NOUN", "DET", "NUM"]},
        ),
        "tag with spaces": rows(a.replace(b"DET", b"DE T"), 4, "'DE T' holds spaces"),
        "column unknown to CoNLL-U": Case(
            first, ("no column 'XPSO'", "did you mean 'XPOS'"), None, None, options=column(tags="XPSO")
        ),
        "column number too large": Case(
            first, ("no column 10", "one of ID, FORM"), None, None, options=column(tags=10)
        ),
        "no tag in another column": Case(first, ("the tag is '_'",), 1, (0, 1), options=column(tags="XPOS")),
        "columns of Plus without FORM": Case(
            b"# global.columns = ID WORD UPOS\n1\tqq\tX\n", ("no column 'FORM'", "ID, WORD, UPOS"), 1, None
        ),
        "columns of Plus that change later": Case(
            first + b"# global.columns = ID FORM\n1\tqq\n", ("no column 'UPOS'",), 4, None
        ),
        "columns of Plus, a line too short": Case(
            b"# global.columns = ID FORM UPOS\n1\tqq\n", ("2 columns", "expected 3 between tabs"), 2, (0, 1)
        ),
        "columns of Plus": Case(b"# global.columns = ID UPOS FORM\n1\tX\tqq\n", (), None, (1, 0), "qq"),
        "Plus without ID": Case(b"# global.columns = FORM UPOS\nqq\tX\nqq\tX\n", (), None, (1, 0), "qq"),
        "sentence too long": Case(
            a + b"\n" + a + b, ("more than 1 tokens", "a blank line"), 4, (1, 1), options={"max_tokens": 1}
        ),
        "first sentence bad": Case(b"x\n\n" + first, ("1 column",), 1, (1, 1)),
        "last sentence bad": Case(first + a + b"2\tb", ("2 columns",), 5, (1, 1)),
        "only comments": Case(b"# a\n# b\n\n", ("no rows",), None, (0, 0)),
        "ranges and empty nodes": good(span + a + empty + b, "b"),
        "a bad range line": rows(span[:-3] + b"\n" + a, 4, "9 columns"),
        "comments everywhere": good(b"# text = a\n" + a + b"# within\n" + b + b"# behind\n", "b"),
        "comment with ten columns": good(b"#\t\t\t\t\t\t\t\t\t\n" + a, "a"),
        "form is an underscore": good(a.replace(b"\ta\t", b"\t_\t"), "_"),
        "form with spaces": good(a.replace(b"\ta\t", b"\t10 000\t"), "10 000"),
        "form is a number sign": good(a.replace(b"\ta\t", b"\t#\t"), "#"),
        "form is the document mark": good(a.replace(b"\ta\t", b"\t-DOCSTART-\t"), "-DOCSTART-"),
        "lines of white space": good(b" \n" + a + b" \t\n" + a, "a", 4),
        "no blank line at the end": Case(first + a + b[:-1], (), None, (2, 0), "b"),
        "lemmas as tags": Case(
            first.replace(b"\t_\tNUM", b"\tone\tNUM").replace(b"\t_\tNOUN", b"\tq\tNOUN"),
            (),
            None,
            (1, 0),
            "qq",
            column(tags="LEMMA"),
        ),
    }


def lists_cases() -> dict[str, Case]:
    def rows(row: bytes, *words: str, **more: object) -> Case:
        data = b"intent\ttokens\tslots\nask\tone qq\tO B-LOC\n" + row + b"\nask\tfour\tO\n"
        return Case(data, words, 3 if words else None, (2, 1) if words else (3, 0), **more)  # type: ignore[arg-type]

    header = b"intent\ttokens\tslots\n"
    return {
        "a tag too few": rows(b"say\ta b c\tO O", "3 tokens but 2 tags", "a tag for each token"),
        "a tag too many": rows(b"say\ta\tO O", "1 tokens but 2 tags"),
        "no tags": rows(b"say\ta b\t", "2 tokens but 0 tags"),
        "no tokens": rows(b"say\t\tO", "there are no tokens"),
        "tokens of spaces": rows(b"say\t   \t   ", "there are no tokens"),
        "row without tags": rows(b"say\ta b", "2 columns", "expected 3 (intent, tokens, slots)"),
        "row of one column": rows(b"say", "1 column", "expected 3"),
        "extra column": rows(b"say\ta\tO\tO", "more than 3 columns"),
        "tab within the tokens": rows(b"say\ta\tb\tO O", "more than 3 columns"),
        "tokens and tags swapped": rows(b"say\tO O\ta b", "unknown tag 'a'", options=KNOWN),
        "tag not allowed": rows(b"say\ta b\tO B-LOCC", "unknown tag 'B-LOCC'", "'B-LOC'", options=KNOWN),
        "no-break space between tags": rows("say\ta b\tO\u00a0O".encode(), "2 tokens but 1 tags"),
        "tag that holds a no-break space": rows("say\ta\tO\u00a0O".encode(), "holds spaces"),
        "sentence too long": rows(b"say\ta b c\tO O O", "more than 2 tokens", options={"max_tokens": 2}),
        "empty token with a tag": rows(b"say\ta  b\tO O B-LOC"),
        "empty token with a tag that counts": rows(b"say\ta  b\tO B-LOC I-LOC", "2 tokens but 3 tags"),
        "empty tag of a token": rows(b"say\ta b\tO ", "the tag is empty"),
        "runs of spaces": rows(b"say\t a   b \tO  O"),
        "no-break space within a token": rows("say\ta\u00a0b\tO".encode()),
        "empty intent": rows(b"\ta\tO"),
        "I without B": rows(b"say\ta b\tI-LOC I-PER"),
        "name not there": Case(
            header + b"ask\tqq\tO\n",
            ("no column 'slot'", "did you mean 'slots'"),
            1,
            None,
            options={"columns": Columns(tags="slot")},
        ),
        "tokens misspelt": Case(
            b"intent\ttokenz\tslots\nask\tone qq\tO B-LOC\n",
            ("'O B-LOC' holds spaces", "name the columns"),
            2,
            (0, 1),
        ),
        "slots named twice": Case(b"tokens\tslots\tslots\nqq\tO\tO\n", ("'slots' twice",), 1, None),
        "a blank line between": Case(header + b"ask\tqq\tO\n\nask\tqq\tO\n", (), None, (2, 0), "qq"),
        "other names, said": Case(
            b"a\tb\nqq x\tO O\n", (), None, (1, 0), "qq", {"columns": Columns(tokens="a", tags="b")}
        ),
        "intents as labels": Case(
            header + b"ask\tone qq\tO O\n", (), None, (1, 0), "one qq", {"task": "classification"}
        ),
        "a token per line in a .tsv": Case(b"qq\tO\nin\tO\n\nRome\tB-LOC\n", (), None, (2, 0), "Rome"),
        "a token per line, a tag missing": Case(b"qq\tO\nin\n\nRome\tB-LOC\n", ("1 column",), 2, (1, 1)),
    }


def text_cases() -> dict[str, Case]:
    tagging = {"task": "tagging"}
    return {
        "a line of spaces is no text": Case(b"one qq\n   \t\ntwo\n", (), None, (2, 0), "qq"),
        "a line of no-break spaces is no text": Case(
            "one qq\n\u00a0\u2003\ntwo\n".encode(), (), None, (2, 0), "qq"
        ),
        "tabs stay": Case(b"one\tqq\n", (), None, (1, 0), "one\tqq"),
        "quotes stay": Case(b'"one qq\n', (), None, (1, 0), '"one qq'),
        "JSON is text": Case(b'{"text": "qq"}\n', (), None, (1, 0), '{"text": "qq"}'),
        "tokens by white space": Case("one\u00a0two  qq\tx\n".encode(), (), None, (1, 0), "qq", tagging),
        "too many tokens": Case(
            b"qq\na b c d\n",
            ("more than 3 tokens", "max_tokens"),
            2,
            (1, 1),
            options={**tagging, "max_tokens": 3},
        ),
        "as many tokens as may be": Case(b"qq\na b c\n", (), None, (2, 0), "c", {**tagging, "max_tokens": 3}),
        "labels wanted": Case(
            b"one qq\n", ("plain text holds no labels", "'tsv'"), None, None, options={"labelled": True}
        ),
        "tags wanted": Case(
            b"one qq\n",
            ("plain text holds no labels", "'conll'"),
            None,
            None,
            options={"labelled": True, "task": "tagging"},
        ),
    }
