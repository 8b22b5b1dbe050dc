"""Numbers and words of a diagnosis: decimals in every unit, columns by their points, and one is not called many."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
from toy_transfer import Known

from xferkit.metrics.intervals import Interval
from xferkit.transfer import Diagnosis, diagnose
from xferkit.transfer.sentences import amount, decimals, signed_interval
from xferkit.transfer.tables import text

TASKS = ("en", "de", "fr", "xx")
KNOWN = Known()


def scaled(change: Callable[[float], float]) -> Callable[..., dict[str, float]]:
    return lambda tasks, seed: {task: change(score) for task, score in KNOWN(tasks, seed).items()}


def answer(change: Callable[[float], float], **more: object) -> Diagnosis:
    return diagnose(scaled(change), TASKS, target="en", **more)


@pytest.mark.parametrize(
    ("interval", "points", "said"),
    [
        (Interval(0.03, 0.0061, 5), False, "+0.0300 [+0.0239, +0.0361]"),
        (Interval(0.0299, 0.006, 5), False, "+0.0299 [+0.0239, +0.0359]"),
        (Interval(-2.648, 0.26, 5), False, "-2.65 [-2.91, -2.39]"),
        (Interval(-2.648, 3.26, 5), False, "-2.6 [-5.9, +0.6]"),
        (Interval(26.0, 26.0004, 5), False, "+26 [0, +52]"),
        (Interval(2600.0, 260.4, 5), False, "+2600 [+2340, +2860]"),
        (Interval(0.0, 0.0, 5), False, "0.0 [0.0, 0.0]"),
        (Interval(-0.0123456, 1e-18, 5), False, "-0.0123 [-0.0123, -0.0123]"),
        (Interval(1.23456, math.nan, 1), False, "+1.23"),
        (Interval(12345.6, math.nan, 1), False, "+12346"),
        (Interval(2e-10, 1e-11, 5), False, "+2.00e-10 [+1.90e-10, +2.10e-10]"),
        (Interval(0.021, 0.009, 5), True, "+2.1 [+1.2, +3.0]"),
        (Interval(0.0213, 0.12, 5), True, "+2.1 [-9.9, +14.1]"),
        (Interval(0.0, 0.008, 5), True, "0.0 [-0.8, +0.8]"),
        (Interval(0.0213, math.nan, 1), True, "+2.1"),
        (Interval(0.0001, 0.00008, 5), True, "+0.0100 [+0.0020, +0.0180]"),
    ],
)
def test_one_number_of_decimals_for_a_comparison(interval, points, said) -> None:
    mean = amount(interval.mean, points, decimals(interval, points), signed=True)
    assert f"{mean} {signed_interval(interval, points)}".rstrip() == said


@pytest.mark.parametrize(
    ("change", "higher", "places"),
    [
        (lambda v: 100 * v, True, 2),  # percent
        (lambda v: 3 - v, False, 4),  # a loss
        (lambda v: v, True, 1),  # a fraction, in points
        (lambda v: 1e5 * v, True, 0),
    ],
)
def test_sentences_and_tables_agree_in_every_unit(change, higher, places) -> None:
    found = answer(change, higher_is_better=higher)
    number = rf"[+-]?\d+\.\d{{{places}}}" if places else r"[+-]?\d+"
    for sentence in found.sentences:
        numbers = re.findall(r"[+-]?\d+(?:\.\d+)?(?=[\],; ]| points)", sentence.split("(")[0])
        assert len(numbers) == 3 and all(re.fullmatch(number, n) for n in numbers), sentence
    for row in found.table("markdown").splitlines()[2:]:
        gain, interval = (cell.strip() for cell in row.split("|")[5:7])
        assert re.fullmatch(number, gain) and re.fullmatch(rf"\[{number}, {number}\]", interval)


def test_the_unit_is_told() -> None:
    def unit(found: Diagnosis) -> str:
        return next(note for note in found.notes if note.startswith("Gains") and "told" in note)

    assert unit(answer(lambda v: v)) == "Gains are told in points: hundredths of the score returned."
    assert unit(answer(lambda v: 100 * v)) == "Gains are told in the unit of the score returned."
    both = diagnose(KNOWN, TASKS, target=["en", "de"], higher_is_better={"en": False, "de": True})
    assert unit(both) == (
        "Gains of en are told in the unit of the score returned, the others in points (hundredths of it)."
    )


def test_columns_stand_by_their_decimal_points() -> None:
    head = (*"abcd", "gain", "95 % interval", "seeds", "p", "Holm p", "verdict")

    def row(gain: str, interval: str) -> tuple[str, ...]:
        return (*"abcd", gain, interval, "5", "1.000", "1.000", "HELPS")

    found = text(
        [
            head,
            row("+4.0", "[+3.5, +4.5]"),
            row("-16.05", "[-16.82, +5.28]"),
            row("-7", "[-9, 0]"),
            row("+1.25", ""),
        ]
    )
    lines = found.splitlines()[2:]
    assert len({line.index("HELPS") for line in lines}) == 1
    assert lines[0].index("+4.0") + 2 == lines[1].index("-16.05") + 3 == lines[2].index("-7") + 2
    assert lines[0].index("+3.5,") + 2 == lines[1].index("-16.82,") + 3 == lines[2].index("-9,") + 2
    assert lines[0].index("+4.5]") == lines[1].index("+5.28]") == lines[2].index("0]") - 1
    assert "[" not in lines[3] and text([head]).startswith("a  b  c  d  gain")


def test_printed_it_is_the_table_and_the_sentences() -> None:
    found = answer(lambda v: v)
    assert str(found) == f"{found.table()}\n" + "\n".join(found.sentences)
    assert str(found).splitlines()[-1].endswith(".") and repr(found).startswith("Diagnosis(plan=Plan(")


def test_one_is_not_called_many() -> None:
    one = diagnose(KNOWN, ("en", "de"), target="en")
    assert one.plan.describe() == "1 comparison of 2 task sets, 5 seeds: 10 runs."
    assert one.notes[0].endswith("of one comparison each; the verdict is that of the one comparison.")
    single = diagnose(KNOWN, ("en", "de"), 1, target="en")
    assert single.notes[0] == "Gains are of seed 1 alone; one seed has no interval and no verdict."
    for found in (one, single, diagnose(KNOWN, TASKS, 1)):
        said = "\n".join([*found.notes, *found.sentences, found.plan.describe(), str(found)])
        assert not re.search(r"\b1 (seeds|runs|comparisons|task sets|examples)\b|all 1|seeds \d+;", said)
