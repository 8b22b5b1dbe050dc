"""MAN-MoE as a tagger on two made-up languages of uneven sentences, small and without dropout unless asked."""

from __future__ import annotations

import random
from types import SimpleNamespace

import torch

from xferkit.data.encoding import encode_tagging
from xferkit.data.lexicon import Lexicon
from xferkit.data.streams import DomainData, DomainStream
from xferkit.data.vocabulary import LabelSet, WordVocabulary
from xferkit.methods import ClassifierSpec, MANMoEConfig, build_method, method_config
from xferkit.models import CharVocabulary
from xferkit.models.encoders import EncoderConfig, make_encoder

LANGUAGES = {"xa": "abcd", "xb": "efgh", "xc": "aceg"}
TAGS = LabelSet(["EVEN", "ODD"])


def sentences(language: str, num: int) -> list[SimpleNamespace]:
    """Words of 1 to 5 letters of the language, tagged by the parity of their length; 1 to 9 words."""
    draw = random.Random(language)
    rows = []
    for line in range(num):
        words = tuple(
            "".join(draw.choices(LANGUAGES[language], k=draw.randint(1, 5)))
            for _ in range(draw.randint(1, 9))
        )
        tags = tuple(("EVEN", "ODD")[len(word) % 2] for word in words)
        rows.append(SimpleNamespace(words=lambda words=words: words, text="", labels=tags, line=line + 1))
    return rows


def tagging(seed: int = 0, dropout: float = 0.0, method: str = "man_moe", num: int = 40):
    """The method, its streams (labelled: xa, xb; unlabelled: and xc) and a function that scores xc."""
    data = {language: sentences(language, num) for language in LANGUAGES}
    words = [word for rows in data.values() for row in rows for word in row.words()]
    vocabulary, letters = WordVocabulary(sorted(set(words))), CharVocabulary(words, min_count=1)
    lexicon = Lexicon(vocabulary, letters)
    encoded = {language: encode_tagging(rows, lexicon, TAGS) for language, rows in data.items()}
    labelled = [DomainData(name, *encoded[name]) for name in ("xa", "xb")]
    unlabelled = [DomainData(name, encoded[name][0]) for name in LANGUAGES]
    streams = {
        "labelled": DomainStream(labelled, 6, seed=0, name="labelled"),
        "unlabelled": DomainStream(unlabelled, 4, seed=0, name="unlabelled"),
    }
    torch.manual_seed(seed)
    encoder = EncoderConfig(
        feature_dim=8, layers=1, dropout=dropout, word_dim=6, char_dim=4, char_flag_dim=2, char_channels=6,
        char_widths=(2, 3), char_out=6,
    )  # fmt: skip
    spec = ClassifierSpec(
        make_encoder=lambda: make_encoder(encoder, len(vocabulary), len(letters)),
        num_classes=len(TAGS),
        num_sources=2,
        target_inputs=encoded["xc"][0],
        learning_rate=0.01,
        tagging=True,
    )
    sizes = dict.fromkeys(("private_dim", "expert_hidden", "predictor_hidden", "discriminator_hidden"), 8)
    config = MANMoEConfig(lambda1=0.05, lambda2=0.3, k=2, dropout=dropout, detach_gate_input=False, **sizes)
    family = issubclass(method_config(method), MANMoEConfig)
    built = build_method(method, spec, config if family else None)

    def score() -> dict[str, float]:
        texts, tags = encoded["xc"]
        every = torch.arange(len(texts))
        gold, predicted = tags.select(every), built.predict(texts.select(every)).argmax(-1)
        return {"source_dev/score": (predicted == gold)[gold >= 0].float().mean().item()}

    return built, streams, score
