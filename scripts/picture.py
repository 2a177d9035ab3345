"""Draw accuracy by block over training from run folders, one panel a run:

python -m locallearn -m strategy=dgl,backprop,greedy,shallow model=vgg16 epochs=5 out=runs/picture
python scripts/picture.py runs/picture docs/images/blocks.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

from locallearn.figures import by_depth, panels, save
from locallearn.names import ACCURACY, TEST, TEST_ACCURACY, by_block
from locallearn.runs.read import read


def main(folder: Path, target: Path) -> None:
    runs = [run for run in read([folder]) if run.done]
    if not runs:
        sys.exit(f"there is no finished run in {folder}")
    figure, axes = panels(len(runs), width=2.6)
    for axis, run in zip(axes, runs, strict=True):
        epochs = [record["epoch"] for record in run.history]
        blocks = by_block(run.history[-1], ACCURACY, TEST)
        for block, colour in zip(blocks, by_depth(len(blocks)), strict=True):
            line = [by_block(record, ACCURACY, TEST)[block] for record in run.history]
            axis.plot(epochs, line, "o-", ms=3, color=colour, label=f"block {block}")
        accuracy = run.summary[TEST_ACCURACY]
        axis.set(title=f"{run.strategy} ({accuracy:.3f})", xlabel="epoch", ylim=(0, 1.02), xticks=epochs)
    axes[0].set_ylabel(f"test accuracy, {run.names['model']} on {run.names['data']}")
    handles = max(axes, key=lambda axis: len(axis.lines)).get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False)
    for file in save(figure, target.with_suffix("")):
        print(file)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
