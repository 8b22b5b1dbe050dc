"""A dual encoder on your own parallel files: which text of the other language says the same?

    python train_dual_encoder.py --train en-de=train.tsv en-fr=train.tsv --dev en-de=val.tsv \
        --test en-de=test.tsv --steps 3000 --out run

Files are tables or JSON lines (also .gz) with a column for each language, named like it. Training goes on where a
stopped one was. Every test file is scored in both directions against retrieval by shared words and by shared n-grams.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from xferkit.data.errors import DataError
from xferkit.data.hashing import TextHasher
from xferkit.data.pair_streams import PairData, PairStream
from xferkit.data.pairs import PairName, pair_groups, read_pairs
from xferkit.methods.dual_encoder import PAIRS, DualEncoderConfig, DualEncoderMethod
from xferkit.metrics import mean_reciprocal_rank, precision_at
from xferkit.models.hashed_text import HashedEncoderConfig
from xferkit.ranking import overlap_ranks, retrieval_ranks, word_grams
from xferkit.trainers import Trainer

Texts = tuple[list[str], list[str]]


def read(argument: str) -> tuple[str, Texts]:
    name, _, path = argument.partition("=")
    rows = list(read_pairs(path, PairName.parse(name).languages))
    return name, ([row.first for row in rows], [row.second for row in rows])


def scores(ranks: torch.Tensor) -> dict[str, float]:
    found = {f"P@{n}": 100 * precision_at(ranks, n) for n in (1, 5)}
    return {**found, "MRR": 100 * mean_reciprocal_rank(ranks)}


def ranks_of(
    method: DualEncoderMethod, hasher: TextHasher, texts: Texts
) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = method.encode(hasher(texts[0]), "first"), method.encode(hasher(texts[1]), "second")
    return retrieval_ranks(first, second), retrieval_ranks(second, first)


def run(arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    train, dev, test = (
        [read(one) for one in files] for files in (arguments.train, arguments.dev, arguments.test)
    )
    torch.manual_seed(arguments.seed)
    encoder = HashedEncoderConfig()
    method, hasher = DualEncoderMethod(encoder, DualEncoderConfig()), TextHasher(encoder)
    rows = [
        (name, [hasher.number(t) for t in a], [hasher.number(t) for t in b], pair_groups(a, b))
        for name, (a, b) in train
    ]
    words = hasher.words()
    data = [
        PairData(f"{name} {place}", hasher.assemble(a, words), hasher.assemble(b, words), groups)
        for place, (name, a, b, groups) in enumerate(rows)
    ]
    hasher.clear()  # else every text embedded later would carry the words of all of them
    stream = PairStream(data, method.config.batch_size, seed=arguments.seed, name=PAIRS)

    def evaluate() -> dict[str, float]:
        found = [precision_at(ranks) for _, texts in dev for ranks in ranks_of(method, hasher, texts)]
        return {"target_dev/score": sum(found) / len(found)}

    Trainer(select="target_dev" if dev else "last", eval_every=max(1, arguments.steps // 10)).fit(
        method, {PAIRS: stream}, arguments.steps, evaluate=evaluate if dev else None, folder=arguments.out
    )
    table: dict[str, dict[str, dict[str, float]]] = {}
    for place, (name, texts) in enumerate(test):
        there, back = ranks_of(method, hasher, texts)
        table[f"{name} {Path(arguments.test[place].partition('=')[2]).name}"] = {
            "dual encoder": scores(there),
            "dual encoder, back": scores(back),
            "shared words": scores(overlap_ranks(*texts)),
            "shared n-grams": scores(overlap_ranks(*texts, terms=word_grams)),
        }
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, need in (("train", True), ("dev", False), ("test", True)):
        parser.add_argument(f"--{name}", nargs="+", required=need, default=[], metavar="LANG-LANG=FILE")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and results")
    arguments = parser.parse_args(argv)
    try:
        table = run(arguments)
    except DataError as error:
        print(f"train_dual_encoder: {error}", file=sys.stderr)
        return 2
    for name, rows in table.items():
        print(name)
        for method, found in rows.items():
            print(f"  {method:20}" + "".join(f"  {key} {value:5.1f}" for key, value in found.items()))
    (arguments.out / "results.json").write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
