"""Draw the picture of the README from run folders: accuracy by block over training, one panel a run.

python -m locallearn -m strategy=dgl,backprop,greedy,shallow model=vgg16 epochs=5 out=runs/picture
python scripts/picture.py runs/picture docs/images/blocks.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from locallearn.names import TEST_ACCURACY, by_block
from locallearn.runs.read import read

COLOURS = ["#440154", "#31688e", "#35b779", "#e69f00", "#cc79a7", "#56b4e9"]  # distinct for the colour-blind


def main(folder: Path, target: Path) -> None:
    runs = [run for run in read([folder]) if run.done]
    if not runs:
        sys.exit(f"there is no finished run in {folder}")
    plt.rcParams.update({"svg.hashsalt": "locallearn", "font.size": 9})
    figure, axes = plt.subplots(1, len(runs), figsize=(2.6 * len(runs), 2.7), sharey=True, squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        records = run.history
        for block in by_block(records[-1], "test_accuracy"):
            epochs, values = [r["epoch"] for r in records], [by_block(r, "test_accuracy")[block] for r in records]
            axis.plot(epochs, values, "o-", ms=3, color=COLOURS[block % 6], label=f"block {block}")
        axis.set(title=f"{run.strategy} ({run.summary[TEST_ACCURACY]:.3f})", xlabel="epoch", ylim=(0, 1.02))
        axis.set_xticks(range(1, len(records) + 1))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel(f"test accuracy, {runs[-1].names['model']} on {runs[-1].names['data']}")
    richest = max(axes[0], key=lambda axis: len(axis.lines))
    figure.tight_layout(rect=(0, 0, 0.91, 1))
    figure.legend(*richest.get_legend_handles_labels(), frameon=False, loc="center right")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
