"""Training steps of the MAN-MoE tagger on streams of sentences: tokens a second, and what its loader takes of them.

The sizes are the paper's for NER (three sources and a target, 16 sentences of each in a batch, BiLSTMs of 128, 300
units of fixed word vectors, a CharCNN of 200 x {3, 4, 5} to 128); the sentences are made up, see synthetic_text. A
step is the trainer's: draws from two streams, a discriminator update and a main update, each with its checks. Every
call goes the same few steps from the same place in the streams, so that all variants see the same batches.

- ``reference``: ``ops="reference"``: plain PyTorch mixtures, whose dropout masks come from an emulated counter
  generator, ``torch.nn.LSTM`` and ``nn.Conv1d``. It keeps our CharCNN and our dropout outside the mixtures.
- ``batched``: the same with mixtures on batched products and torch's dropout in them.
- ``plain``: the same with torch's dropout and convolutions of characters everywhere, as one would write it.
- ``fused.batched``: ours, all but the mixtures, which are those of ``batched``: what the fused op itself brings.
- ``loader``: no competitor but the draws and gathered batches of the same steps, nothing else.

Tokens are all that go through the model, those of unlabelled sentences included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from benchmarks.harness import Bench, Case, Options, Variant
from benchmarks.ops.bench_moe_mlp_mix import batched_mixture
from benchmarks.synthetic_text import Language
from benchmarks.systems.steps import Groups, mixture_function, profile_step

__all__ = ["cases"]

_NUM_TAGS = 17
_PROFILED_CALLS = 3
# What a step asks for, in order: the discriminator's batch, then the main update's two.
_ASKED = ("unlabelled", "labelled", "unlabelled")

_GROUPS: Groups = (
    ("expert mixtures (xfercore ops)", ("xfercore::",)),
    ("BiLSTM, its forward and backward loops", ("BiLSTMLayer",)),
    ("maxima over windows", ("PooledWindows", "TextMax", "maximum", "aten::gt", "aten::where")),
    ("autograd engine", ("autograd::engine", "Backward", "AccumulateGrad")),
    ("optimisers", ("adam", "Optimizer")),
    ("lookup, packing and scattering", ("embedding", "index", "gather", "scatter", "masked", "nonzero")),
    (
        "matrix products",
        ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "einsum", "linear", "conv"),
    ),
    ("random numbers", ("bernoulli", "dropout", "random")),
    ("sigmoid and tanh", ("sigmoid", "tanh")),
    ("finding distinct words, sorting", ("unique", "sort")),
    ("Python between operators", ("phase:",)),
)


@dataclass(frozen=True)
class _Corpus:
    """Encoded texts of all languages, the target last; tags of the sources; given word vectors."""

    names: list[str]
    texts: list[Any]
    tags: list[Any]
    vectors: Tensor
    num_chars: int

    def streams(self, batch_size: int) -> dict[str, Any]:
        """Streams of their own for whoever asks, at their start."""
        from xferkit.data.streams import DomainData, DomainStream

        labelled = [
            DomainData(name, texts, tags)
            for name, texts, tags in zip(self.names[:-1], self.texts, self.tags, strict=False)
        ]
        unlabelled = [DomainData(name, texts) for name, texts in zip(self.names, self.texts, strict=True)]
        return {
            "labelled": DomainStream(labelled, batch_size, seed=0, name="labelled"),
            "unlabelled": DomainStream(unlabelled, batch_size, seed=0, name="unlabelled"),
        }


def _corpus(num_sources: int, num_sentences: int, word_dim: int) -> _Corpus:
    from xferkit.data.encoding import encode_tagging
    from xferkit.data.lexicon import Lexicon
    from xferkit.data.records import Record
    from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary, count_words

    labels = LabelSet(f"T{i:02}" for i in range(_NUM_TAGS))
    names = [f"l{number}" for number in range(num_sources + 1)]
    records = []
    for number in range(num_sources + 1):
        sentences, ranks = Language(number).sentences(num_sentences)
        # The tag of a word is that of its rank: there is something to learn.
        tags = [[labels.names[rank % _NUM_TAGS] for rank in row.tolist()] for row in ranks]
        rows = zip(sentences, tags, strict=True)
        records.append([Record(tuple(words), tuple(row), line + 1) for line, (words, row) in enumerate(rows)])
    counts = count_words(record.tokens for rows in records for record in rows)
    lexicon = Lexicon(WordVocabulary.from_counts(counts), CharVocabulary.from_counts(counts), max_chars=24)
    encoded = [encode_tagging(rows, lexicon, labels) for rows in records]
    vectors = torch.randn(len(lexicon.words), word_dim).mul_(0.1)
    vectors[0] = 0.0
    texts = [texts for texts, _ in encoded]
    return _Corpus(names, texts, [tags for _, tags in encoded], vectors, len(lexicon.chars))


class _Loader:
    """Draws and gathers the batches of some steps, always the same ones."""

    def __init__(self, streams: dict[str, Any], steps: int, device: str) -> None:
        self.streams, self.steps, self.device = streams, steps, device
        self.start = {name: stream.state_dict() for name, stream in streams.items()}

    def rewind(self) -> None:
        for name, stream in self.streams.items():
            stream.load_state_dict(self.start[name])

    def batches(self) -> list[Any]:
        self.rewind()
        return [
            self.streams[name].draw().shard().to(self.device) for _ in range(self.steps) for name in _ASKED
        ]

    def __call__(self) -> Sequence[Tensor]:
        self.batches()
        return ()


class _Stepper:
    """A tagger with parameters and streams of its own, trained some steps at a call by the trainer's updates."""

    def __init__(
        self,
        case: Case,
        corpus: _Corpus,
        steps: int,
        ops: Any,
        mixture: Callable[..., Any] | None = None,
        *,
        plain: bool = False,
    ) -> None:
        from xferkit.methods import ClassifierSpec, MANMoE
        from xferkit.methods.presets import encoder_preset, man_moe_preset
        from xferkit.models import make_encoder
        from xferkit.trainers import TrainerConfig
        from xferkit.trainers.replicas import Replica, make_accelerator
        from xferkit.trainers.updates import Updater

        p = float(case.shape["p"])
        torch.manual_seed(0)
        encoder = replace(encoder_preset("paper", "ner"), dropout=p)
        config = replace(man_moe_preset("paper", "ner"), dropout=p)
        if case.options.quick:
            encoder = replace(encoder, feature_dim=16, char_dim=8, char_channels=8, char_out=8)
            names = ("private_dim", "expert_hidden", "predictor_hidden", "discriminator_hidden")
            sizes: dict[str, Any] = dict.fromkeys(names, 16)
            config = replace(config, **sizes)
        spec = ClassifierSpec(
            make_encoder=lambda: make_encoder(
                encoder, len(corpus.vectors), corpus.num_chars, corpus.vectors, ops=ops
            ),
            num_classes=_NUM_TAGS,
            num_sources=int(case.shape["K"]),
            dropout=p,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            ops=ops,
            tagging=True,
        )
        self.method = MANMoE(spec, config)
        if plain:
            _without_our_layers(self.method.module)
        trainer = TrainerConfig(device="cpu" if case.options.device == "cpu" else "auto")
        self.replica = Replica(self.method, trainer, make_accelerator(trainer))
        self.loader = _Loader(corpus.streams(int(case.shape["batch"])), steps, case.options.device)
        self.updater = Updater(self.replica, self.loader.streams, trainer)
        self.phases = self.method.stages(1)[0].phases
        self.mixture = mixture
        self.method.module.train()

    def __call__(self) -> Sequence[Tensor]:
        """Some steps, every phase in order."""
        self.loader.rewind()
        with mixture_function(self.mixture):
            for _ in range(self.loader.steps):
                for phase in self.phases:
                    with record_function(f"phase:{getattr(phase, 'name', 'loop')}"):
                        self.updater.step([phase], "in a benchmark")
        return ()

    def first_loss(self) -> float:
        """The main loss of the model as it stands, dropout masks from a fixed seed."""
        self.loader.rewind()
        torch.manual_seed(1)
        streams = self.loader.streams
        device = self.loader.device
        with mixture_function(self.mixture), torch.no_grad():
            return float(self.method.main_loss(lambda name: streams[name].next().to(device)).total)


def _without_our_layers(module: nn.Module) -> None:
    """torch's dropout and the convolutions that keep every window, in place of ours."""
    from xferkit.models.char_cnn import CharCNNEncoder
    from xferkit.models.dropout import FastDropout

    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, FastDropout):
                setattr(part, name, nn.Dropout(child.p))
        if isinstance(part, CharCNNEncoder):
            part.fast = False


def _batch_sizes(batches: list[Any], steps: int) -> dict[str, float]:
    """What a step goes through, on average."""

    def mean(counts: list[int]) -> float:
        return sum(counts) / steps

    return {
        "tokens": mean([int(batch.inputs.lengths.sum()) for batch in batches]),
        "labelled_tokens": mean([int(b.inputs.lengths.sum()) for b in batches if b.labels is not None]),
        "padded_tokens": mean([batch.inputs.ids.numel() for batch in batches]),
        "distinct_words": mean([len(batch.inputs.spellings.chars) for batch in batches]),
    }


def _setup(case: Case) -> Bench:
    options = case.options
    steps = 1 if options.quick else 2
    corpus = _corpus(int(case.shape["K"]), 60 if options.quick else 3000, 12 if options.quick else 300)

    def stepper(ops: str, mixture: Callable[..., Any] | None = None, *, plain: bool = False) -> _Stepper:
        return _Stepper(case, corpus, steps, ops, mixture, plain=plain)

    fused, reference = stepper("fused"), stepper("reference")
    ours, expected = fused.first_loss(), reference.first_loss()
    if not abs(ours - expected) <= 1e-3 * abs(expected):
        raise RuntimeError(f"{case.name}: fused and reference losses differ, {ours} and {expected}")
    loader = _Loader(corpus.streams(int(case.shape["batch"])), steps, options.device)
    batches = loader.batches()
    tokens = sum(int(batch.inputs.lengths.sum()) for batch in batches)
    variants = [
        Variant("fused", "ours", fused),
        Variant("reference", "eager", reference),
        Variant("batched", "eager", stepper("reference", batched_mixture)),
        Variant("plain", "eager", stepper("reference", batched_mixture, plain=True)),
        Variant("fused.batched", "eager", stepper("fused", batched_mixture)),
        Variant("loader", "part", loader),
    ]
    if options.compile:
        # The number of tokens differs from batch to batch.
        compiled = torch.compile(batched_mixture, dynamic=True)
        variants.append(Variant("fused.batched.compiled", "compiled", stepper("fused", compiled)))

    def profile() -> dict[str, Any]:
        found = profile_step(
            fused, options.device, _GROUPS, calls=1 if options.quick else _PROFILED_CALLS, steps=steps
        )
        batch = _batch_sizes(batches, steps)
        text = ", ".join(f"{count:,.0f} {what.replace('_', ' ')}" for what, count in batch.items())
        return {**found, "batch": batch, "table": f"  a step has {text};\n{found['table']}"}

    return Bench(variants, profile=profile, amount=("tokens", tokens))


def cases(options: Options) -> list[Case]:
    """Rows: steps without and with the paper's dropout."""
    return [
        Case(
            op="man_moe_tagging",
            passes="step",
            shape={"K": 3, "batch": 2 if options.quick else 16, "p": p},
            options=options,
            setup=_setup,
        )
        for p in (0.0, 0.5)
    ]
