"""Run under torchrun by test_parallel.py: train a small method and write weights and losses, or the error."""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from toy_training import ToyMethod, toy_streams

from xferkit.trainers import Trainer
from xferkit.trainers.replicas import full_tensor


def main() -> None:
    out, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    rank = int(os.environ.get("RANK", 0))
    dropout, stop_after = settings.pop("dropout", 0.0), settings.pop("stop_after", None)
    folder = settings.pop("folder", None)
    # Registered before the trainer's, so it runs after it: what the interpreter goes down with.
    atexit.register(lambda: (out / f"left-{rank}").touch() if not dist.is_initialized() else None)
    # Other weights on each rank: rank 0's must win.
    if settings.pop("tagger", False):
        from toy_tagging import tagging

        method, streams, score = tagging(seed=rank, dropout=dropout)
    else:
        method = ToyMethod(seed=rank, dropout=dropout)
        streams, score = toy_streams(), method.score
    if stop_after is not None:
        loss, count = method.main_loss, [0]

        def counted(next_batch):
            if count[0] == stop_after:
                os._exit(9)
            count[0] += 1
            return loss(next_batch)

        method.main_loss = counted
    try:
        trainer = Trainer(progress="silent", log_every=1, eval_every=3, select="last", **settings)
        history = trainer.fit(method, streams, 6, evaluate=score, folder=folder)
    except ValueError as error:
        (out / f"error-{rank}.txt").write_text(str(error))
        raise SystemExit(2) from error
    values = [full_tensor(v.detach()).flatten().double() for v in method.module.state_dict().values()]
    result = {
        "weights": torch.cat(values).tolist(),
        "losses": [r.metrics for r in history.records],
        "scores": [e.scores["source_dev/score"] for e in history.evaluations],
        "cut": any(hasattr(p, "to_local") for p in method.module.parameters()),
    }
    (out / f"rank-{rank}.json").write_text(json.dumps(result))


main()
