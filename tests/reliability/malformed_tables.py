"""Damage that only TSV and CSV tables can have."""

from __future__ import annotations

from malformed_common import Case

from xferkit.data.records import Columns

SKEWED = ("expected 2 (text, label)",)


def tsv_cases() -> dict[str, Case]:
    def rows(row: bytes, *words: str, **more: object) -> Case:
        """A bad row, the second of three, on line 3."""
        return Case(b"text\tlabel\none qq\tpos\n" + row + b"\nthree\tneg\n", words, 3, (2, 1), **more)  # type: ignore[arg-type]

    def good(row: bytes, holds: str, number: int = 3, **more: object) -> Case:
        return Case(
            b"text\tlabel\none qq\tpos\n" + row + b"\nthree\tneg\n", (), None, (number, 0), holds, **more
        )  # type: ignore[arg-type]

    def whole(data: bytes, *words: str, line: int | None = 1, **columns: object) -> Case:
        return Case(data, words, line, None, options={"columns": Columns(**columns)})  # type: ignore[arg-type]

    known = {"allowed_labels": ["pos", "neg"]}
    return {
        "row without label": rows(b"two", "1 column", *SKEWED),
        "spaces in place of the tab": rows(b"two    neg", "1 column", *SKEWED),
        "empty label": rows(b"two\t", "the label is empty", "expected a label"),
        "label of spaces": rows(b"two\t  ", "the label is empty"),
        "label of a no-break space": rows("two\t\u00a0".encode(), "the label is empty"),
        "extra column": rows(b"two\tneg\t7", "more than 2 columns", *SKEWED),
        "tab at the end": rows(b"two\tneg\t", "more than 2 columns"),
        "tab within the text": rows(b"tw\to\tneg", "more than 2 columns"),
        "five thousand tabs": rows(b"\t" * 5000, "more than 2 columns"),
        "a row of one tab": rows(b"\t", "the text is empty"),
        "empty text": rows(b"\tneg", "the text is empty", "expected a text"),
        "text of spaces": rows(b"   \tneg", "the text is empty"),
        "text of a line separator": rows("\u2028\tneg".encode(), "the text is empty"),
        "label not allowed": rows(
            b"two\tneutral", "unknown label 'neutral'", "one of pos, neg", options=known
        ),
        "label in capitals": rows(b"two\tPOS", "unknown label 'POS'", "did you mean 'pos'", options=known),
        "text and label swapped": rows(b"neg\ttwo", "unknown label 'two'", options=known),
        "label of a thousand characters": rows(b"two\t" + b"x" * 1000, "unknown label", "x'…", options=known),
        "label with a line separator": rows(
            "two\tn\u2028eg".encode(), "unknown label 'n\\u2028eg'", options=known
        ),
        "label NaN": rows(b"two\tnan", "unknown label 'nan'", options=known),
        "a bad row at the end without line end": Case(
            b"text\tlabel\none\tpos\ntwo", ("1 column",), 3, (1, 1)
        ),
        "all rows bad": Case(b"text\tlabel\none\ntwo\n", ("1 column",), 2, (0, 2)),
        "label with spaces around": good(b"two\t neg ", "two"),
        "spaces around the text": good(b"  two \tneg", "  two "),
        "quotes are characters": good(b'"two\tneg', '"two'),
        "doubled quotes are characters": good(b'"tw""o"\tneg', '"tw""o"'),
        "backslashes are characters": good(b"tw\\to\\n\tneg", "tw\\to\\n"),
        "a comment is a text": good(b"# two\tneg", "# two"),
        "blank line between": good(b"\ntwo\tneg", "two"),
        "huge number as label": good(b"two\t" + b"9" * 5000, "two"),
        "formula": good(b"=cmd|'/c'!A1\tneg", "=cmd|"),
        "header in capitals": Case(b"TEXT\tLabel\nqq\tpos\n", (), None, (1, 0), "qq"),
        "header with spaces": Case(b" text \tlabel \nqq\tpos\n", (), None, (1, 0), "qq"),
        "other column order": Case(b"id\tlabel\ttext\n1\tpos\tqq\n", (), None, (1, 0), "qq"),
        "no header": Case(b"qq\tpos\nb\tneg\n", (), None, (2, 0), "qq"),
        "no header, three columns": Case(
            b"qq\tpos\t1\nb\tneg\t2\n", ("more than 2 columns", "expected 2"), 1, (0, 2)
        ),
        "no header, no label": Case(b"qq\nb\tneg\n", ("1 column", "expected 2"), 1, (1, 1)),
        "commas in place of tabs": Case(b"text,label\nqq,pos\n", ("1 column", "expected 2"), 1, (0, 2)),
        "header=False takes a header as a row": Case(
            b"text\tlabel\nqq\tpos\n", (), None, (2, 0), "qq", {"columns": Columns(header=False)}
        ),
        "column from the end": Case(
            b"qq\tx\tpos\n", (), None, (1, 0), "qq", {"columns": Columns(text=0, label=-1)}
        ),
        "width by the first row": Case(
            b"qq\tx\tpos\na\tneg\n",
            ("2 columns", "expected 3"),
            2,
            (1, 1),
            "",
            {"columns": Columns(text=0, label=2)},
        ),
        "label misspelt in the header": whole(b"text\tlable\na\tpos\n", "no column for the label", "'lable'"),
        "text missing in the header": whole(
            b"txt\tlabel\na\tpos\n", "no column for the text", "among txt, label"
        ),
        "column not there": whole(
            b"text\tlabel\na\tpos\n", "no column 'lable'", "did you mean 'label'", label="lable"
        ),
        "column in another case": whole(b"Text\tlabel\na\tpos\n", "no column 'text'", "'Text'", text="text"),
        "column twice": whole(b"text\ttext\tlabel\na\tb\tpos\n", "'text' twice", "a number"),
        "header with commas": whole(
            b"text,label\na,pos\n", "no column 'text'", "','", "delimiter", text="text"
        ),
        "number too large": whole(b"a\tpos\n", "none with the number 7", "from -2 to 1", label=7),
        "number too small": whole(b"a\tpos\n", "none with the number -3", text=-3),
        "header wanted in an empty table": whole(b"\n\nqq\tpos\n", "no column 'text'", line=3, text="text"),
    }


def csv_cases() -> dict[str, Case]:
    def rows(row: bytes, line: int, counts: tuple[int, int], *words: str, **more: object) -> Case:
        return Case(
            b"text,label\none qq,pos\n" + row + b"\nthree,neg\nfour,pos\n", words, line, counts, **more
        )  # type: ignore[arg-type]

    def good(row: bytes, holds: str, number: int = 4, **more: object) -> Case:
        return Case(
            b"text,label\none qq,pos\n" + row + b"\nthree,neg\nfour,pos\n",
            (),
            None,
            (number, 0),
            holds,
            **more,
        )  # type: ignore[arg-type]

    many = b"".join(b"r%d,pos\n" % i for i in range(200))
    return {
        "row without label": rows(b"two", 3, (3, 1), "1 column", *SKEWED),
        "empty label": rows(b"two,", 3, (3, 1), "the label is empty"),
        "quoted empty label": rows(b'two,""', 3, (3, 1), "the label is empty"),
        "extra column": rows(b"two,neg,1", 3, (3, 1), "more than 2 columns", *SKEWED),
        "comma in an unquoted text": rows(b"two, or so,neg", 3, (3, 1), "more than 2 columns"),
        "quoted row with an extra column": rows(b'"two","neg","x"', 3, (3, 1), "more than 2 columns"),
        "empty quoted text": rows(b'"",neg', 3, (3, 1), "the text is empty"),
        "only commas": rows(b",", 3, (3, 1), "the text is empty"),
        "spaces": rows(b"   ", 3, (3, 1), "1 column"),
        "only a quoted nothing": rows(b'""', 3, (3, 1), "1 column"),
        "unclosed quote": rows(
            b'"two,neg', 3, (3, 1), "quoted cell begins here", "not closed before the end", 'closing "'
        ),
        "unclosed quote behind a comma": rows(b'two,"neg', 3, (3, 1), "not closed"),
        "unclosed quote in the last row": Case(b'text,label\nqq,pos\n"two,neg', ("not closed",), 3, (1, 1)),
        "unclosed quote as the last byte": Case(b'text,label\nqq,pos\n"', ("not closed",), 3, (1, 1)),
        "two unclosed quotes": rows(b'"two,neg\n"half,pos', 4, (3, 1), "'half,pos' follows"),
        "unclosed quote with doubled ones behind": rows(b'"two,neg\na ""b"",neg', 3, (4, 1), "not closed"),
        "unclosed quote in a long file": Case(
            b'text,label\n"qq,pos\n' + many,
            ("not closed within 400 characters",),
            2,
            (200, 1),
            options={"max_line_bytes": 400},
        ),
        "second cell of a row unclosed, on its second line": rows(
            b'"two\nlines","neg', 4, (3, 1), "not closed"
        ),
        "text behind a quote": rows(b'"two"!,neg', 3, (3, 1), "'!,neg' follows the quote", "doubled"),
        "space behind a quote": rows(b'"two" ,neg', 3, (3, 1), "' ,neg' follows"),
        "quote that closes on another line": rows(b'"two\nb"x,neg', 4, (3, 1), "'x,neg' follows"),
        "backslash before a quote": rows(b'"tw\\"o",neg', 3, (3, 1), "'o\",neg' follows"),
        "latin-1 within quotes": rows(b'"two\n\xe9\nlines",neg', 4, (4, 1), "not UTF-8"),
        "NUL within quotes": rows(b'"two\n\0\n",neg', 4, (3, 2), "NUL character"),
        "tabs in place of commas": Case(b"text\tlabel\nqq\tpos\n", ("1 column", "expected 2"), 1, (0, 2)),
        "tabs where names are asked for": Case(
            b"text\tlabel\nqq\tpos\n",
            ("no column 'text'", "'\\t'", "delimiter"),
            1,
            None,
            "",
            {"columns": Columns(text="text")},
        ),
        "semicolons where names are asked for": Case(
            b"text;label\nqq;pos\n",
            ("no column 'text'", "';'", "delimiter"),
            1,
            None,
            "",
            {"columns": Columns(text="text")},
        ),
        "semicolons, said": Case(
            b"text;label\nqq, b;pos\n", (), None, (1, 0), "qq, b", {"columns": Columns(delimiter=";")}
        ),
        "label not allowed": rows(
            b"two,neutral", 3, (3, 1), "unknown label 'neutral'", options={"allowed_labels": ["pos", "neg"]}
        ),
        "quote behind a space is a character": rows(
            b'two, "neg"',
            3,
            (3, 1),
            "unknown label '\"neg\"'",
            "did you mean 'neg'",
            options={"allowed_labels": ["pos", "neg"]},
        ),
        "unclosed quote in the header": Case(b'text,"label\nqq,pos\n', ("not closed",), 1),
        "header of a quoted and a misspelt name": Case(
            b'"text","lable"\nqq,pos\n', ("no column for the label", "'lable'"), 1
        ),
        "quoted header": Case(b'"text","label"\nqq,pos\n', (), None, (1, 0), "qq"),
        "comma within quotes": good(b'"two, or so",neg', "two, or so"),
        "doubled quotes": good(b'"tw""o",neg', 'tw"o'),
        "only doubled quotes": good(b'"""""",neg', '""'),
        "line end within quotes": good(b'"two\nlines",neg', "two\nlines"),
        "CRLF within quotes": good(b'"two\r\nlines",neg', "two\nlines"),
        "blank lines within quotes": good(b'"two\n\n\nlines",neg', "two\n\n\nlines"),
        "line end and doubled quotes": good(b'"two""\n""lines",neg', 'two"\n"lines'),
        "line separator within quotes": good('"two\u2028lines",neg'.encode(), "two\u2028lines"),
        "quoted label": good(b'two,"neg"', "two"),
        "quote within an unquoted cell": good(b'5" two,neg', '5" two'),
        "quote at the end of an unquoted cell": good(b'two 5",neg', 'two 5"'),
        "blank line between": good(b"\ntwo,neg", "two"),
        "spaces around the label": good(b"two , neg ", "two "),
        "no header": Case(b"qq,pos\nb,neg\n", (), None, (2, 0), "qq"),
    }
