"""The slow reader of files with a token per line."""

from __future__ import annotations

from slow_lines import LABEL, TAGS, Bad, FileFault, Good, Line, Options, label_of

HEADER_TOKENS = ("token", "tokens", "word", "words", "form")
HEADER_TAGS = ("tag", "pos", "ner", "slot", *TAGS, *LABEL)


def read_sentences(lines: list[Line], options: Options, out: list[Good | Bad], tabs: bool | None) -> None:
    conllu = options.format == "conllu"
    seen_tabs = sees_tabs(lines)
    tabs = True if conllu else seen_tabs if tabs is None else tabs
    names = ["ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC"]
    width = 10 if conllu else 0
    header_possible = not conllu
    tokens: list[str] = []
    tags: list[str] = []
    start, spoilt = 0, False
    for n, line in [*lines, (0, "")]:
        fault = ""
        if isinstance(line, Bad):
            fault = line.reason
        elif not line.strip() or (not conllu and first_word(line, tabs) == "-DOCSTART-"):
            if tokens:
                out.append(Good(start, tuple(tokens), tuple(tags) if options.labelled else None))
            tokens, tags, spoilt = [], [], False
            continue
        elif conllu and line.startswith("#"):
            if line.startswith("# global.columns") and "=" in line and not tokens and not spoilt:
                names = line.partition("=")[2].split() or [
                    "ID",
                    "FORM",
                    "LEMMA",
                    "UPOS",
                    "XPOS",
                    "FEATS",
                    "HEAD",
                    "DEPREL",
                    "DEPS",
                    "MISC",
                ]
                width = len(names)
                if "FORM" not in names or (options.labelled and "UPOS" not in names):
                    raise FileFault
            continue
        else:
            cells = line.split("\t") if tabs else [c for c in line.replace("\t", " ").split(" ") if c]
            if not conllu and seen_tabs and tabs and line.startswith("#") and len(cells) == 1 and width != 1:
                continue
            if width == 0:
                ends = [cells[0].strip().lower(), cells[-1].strip().lower()]
                if header_possible and len(cells) > 1 and ends[0] in HEADER_TOKENS and ends[1] in HEADER_TAGS:
                    header_possible = False
                    continue
                least = 2 if options.labelled else 1
                if len(cells) < least:
                    fault = "missing columns"
                else:
                    width = len(cells)
            if not fault and len(cells) != width:
                fault = "extra columns" if len(cells) > width else "missing columns"
            if not fault:
                token = cells[names.index("FORM") if conllu else 0]
                if token == "":
                    fault = "no token"
                elif not spoilt:
                    if conllu and names[0] == "ID" and cells[0] != str(len(tokens) + 1):
                        if is_range(cells[0]):
                            continue
                        fault = "wrong ID"
                    elif len(tokens) == options.max_tokens:
                        fault = "sentence too long"
                    elif options.labelled:
                        raw = cells[names.index("UPOS") if conllu else -1]
                        tag = label_of(raw, options, "tag", "_" if conllu else "")
                        if isinstance(tag, Bad):
                            fault = tag.reason
                        else:
                            tags.append(tag)
        if spoilt:
            continue
        if fault:
            out.append(Bad(n, fault))
            tokens, tags, spoilt = [], [], True
        else:
            start = start if tokens else n
            tokens.append(token)


def first_word(line: str, tabs: bool) -> str:
    first = line.split("\t")[0] if tabs else line.replace("\t", " ").strip(" ")
    return first.split(" ")[0]


def sees_tabs(lines: list[Line]) -> bool:
    for _, line in lines:
        if isinstance(line, str) and "\t" in line:
            return True
        if isinstance(line, str) and line.strip() and not line.startswith(("#", "-DOCSTART-")):
            return False
    return False


def is_range(text: str) -> bool:
    for mark in "-.":
        first, found, second = text.partition(mark)
        if found and first.isdecimal() and second.isdecimal():
            return True
    return False
