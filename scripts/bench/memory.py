"""P5 and P6: bytes that autograd holds at the peak of a step. Counted, so one step is enough."""

from __future__ import annotations

import torch

from bench.goals import Report
from bench.method import Bench, exact
from bench.subjects import alone, batch_of, learner_of, model_of
from locallearn.analysis.cost import SavedBytes
from locallearn.engine import Learner
from locallearn.models import BlockModel


def measure(bench: Bench, report: Report, subject: str) -> None:
    """P5 as the field counts it for a comparison of methods: activations; P6 with the weights that autograd keeps."""
    model, (x, y) = model_of(subject, bench.quick), batch_of(bench.quick)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if bench.quick else 2)  # changes no count

    def peaks(strategy: str, balance: str) -> tuple[int, int]:
        learner = learner_of(model, strategy, model.cut(4, balance))
        return _peak(learner, x, y, True), _peak(learner, x, y, False)

    whole, activations = peaks("backprop", "flops")
    parts = {"backprop_bytes": whole, "checkpointed_backprop": peaks("checkpoint", "flops")[0] / whole}
    for balance in ("flops", "memory"):
        for head in ("linear", "mlp_sr"):
            held, held_activations = peaks(f"dgl {head}", balance)
            on, judged = f"{subject}, {head} heads", subject == "vgg16" and head == "linear"
            why = "the block with the first layers holds most, and heads count too; a goal is set for linear heads"
            report.add(f"P6 {balance}", on, exact(held / whole), why, judged, **parts)
            if balance == "flops":
                largest = max(_alone(model, f"dgl {head}", k, x, y) for k in range(4))
                sizes = {"bytes": held_activations, "largest_block_bytes": largest, "backprop_bytes": activations}
                report.add("P5", on, exact(held_activations / largest), "a graph outlives its block", **sizes)
    torch.set_num_threads(threads)


def _peak(learner: Learner, x: torch.Tensor, y: torch.Tensor, with_weights: bool) -> int:
    with SavedBytes(() if with_weights else (p for _, p in learner.parameters())) as saved:
        learner.learn(x, y)
    return saved.peak


def _alone(model: BlockModel, strategy: str, k: int, x: torch.Tensor, y: torch.Tensor) -> int:
    """Block k of the cut by FLOPs by itself."""
    learner, step = alone(model, strategy, model.cut(4), range(k, k + 1), x, y)
    with SavedBytes(p for _, p in learner.parameters()) as saved:
        step()
    return saved.peak
