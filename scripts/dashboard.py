"""Build the W&B workspace and report of a project of locallearn: python scripts/dashboard.py ENTITY/PROJECT.

They show what every run records under the same names: results, training, a section for each block, cost. What else a
run has logged, such as the pictures of probes, W&B adds in sections of its own. `--check` builds both, sends nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

INSTALL = "pip install 'locallearn[dashboard]'"
TRAINING = {
    "train/loss": "Training loss",
    "train/accuracy": "Training accuracy",
    "validation/accuracy": "Validation accuracy",
    "test/accuracy": "Test accuracy",
    "learning_rate": "Learning rate",
}
BLOCK = {"loss": "local loss", "accuracy": "training accuracy", "test_accuracy": "test accuracy"}
COST = {
    "images_per_second": "Images per second",
    "peak_memory_bytes": "Peak memory, bytes",
    "seconds": "Seconds since the start",
}
INTRO = (
    "Every line is the mean over the runs of a strategy, its band the standard deviation. A comparison is fair only "
    "where each strategy has its own best learning rate: `locallearn tune` finds it."
)


def line(name: str, title: str, **options: Any) -> Any:
    """A curve over the steps of training, a line for each group of runs."""
    from wandb_workspaces.reports import v2 as wr

    return wr.LinePlot(title=title, x="step", y=[name], aggregate=True, groupby_rangefunc="stddev", **options)


def sections(blocks: int) -> dict[str, list[Any]]:
    """The panels of both pages, by heading."""
    from wandb_workspaces.reports import v2 as wr

    accuracy, *costs = map(wr.SummaryMetric, ("test/accuracy", "peak_memory_bytes", "images_per_second"))
    results = [wr.BarPlot(title="Test accuracy", metrics=["test/accuracy"], groupby_rangefunc="stddev")]
    for name, cost in zip(("memory", "speed"), costs, strict=True):
        results.append(wr.ScatterPlot(title=f"Accuracy and {name}", x=cost, y=accuracy))
    by_block = {
        f"Block {k:02d}": [line(f"block/{k:02d}/{name}", f"Block {k}: {title}") for name, title in BLOCK.items()]
        for k in range(blocks)
    }
    return {
        "Results": results,
        "Training": [line(*item) for item in TRAINING.items()],
        **by_block,
        "Cost": [line(*item) for item in COST.items()],
        "Settings that differ": [wr.RunComparer(diff_only="split")],
    }


def workspace(entity: str, project: str, blocks: int) -> Any:
    """A view of the project: results, training, every block, cost; runs in groups by strategy."""
    import wandb_workspaces.workspaces as ws

    shown = [
        ws.Section(name=name, panels=panels, is_open=name in ("Results", "Training"), pinned=name == "Results")
        for name, panels in sections(blocks).items()
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Strategies, blocks, cost",
        sections=shown,
        settings=ws.WorkspaceSettings(x_axis="step", group_by_prefix="first", max_runs=50),
        # the job type of a run of locallearn is its strategy
        runset_settings=ws.RunsetSettings(groupby=[ws.Metric("JobType")]),
        auto_generate_panels=True,
    )


def report(entity: str, project: str, blocks: int) -> Any:
    """A page to write on: the same figures with room for words."""
    from wandb_workspaces.reports import v2 as wr

    joined: dict[str, list[Any]] = {}
    for name, panels in sections(blocks).items():
        joined.setdefault("Block by block" if name.startswith("Block ") else name, []).extend(panels)
    parts = []
    for name, panels in joined.items():
        runs = wr.Runset(entity=entity, project=project, name="by strategy", groupby=["run.jobType"])
        parts += [wr.H1(text=name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=entity,
        project=project,
        title="Strategies compared",
        description="Local learning and decoupled training",
        blocks=[wr.TableOfContents(), wr.MarkdownBlock(text=INTRO), *parts],
        width="fluid",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("where", metavar="ENTITY/PROJECT", help="your W&B user or team, and the project")
    parser.add_argument("--blocks", type=int, default=4, help="how many blocks the runs have")
    parser.add_argument("--check", action="store_true", help="build both and send nothing; needs no account")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", given.where):
        return said(f"{given.where!r} is not of the form ENTITY/PROJECT, such as me/locallearn")
    if not 1 <= given.blocks <= 100:
        return said(f"--blocks {given.blocks}: must be between 1 and 100")
    entity, project = given.where.split("/")
    try:
        made = [workspace(entity, project, given.blocks), report(entity, project, given.blocks)]
    except ImportError as error:
        return said(f"{error.name or error} is not installed: {INSTALL}")
    if given.check:
        made[0]._to_model()  # what would be sent; of a report W&B asks the server for the project first
        sections, parts = len(made[0].sections), len(made[1].blocks)
        print(f"a workspace of {sections} sections and a report of {parts} parts; nothing sent")
        return 0
    for thing in made:
        try:
            thing.save()
        except Exception as error:  # W&B raises many kinds
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            return said(f"W&B refused it ({reason}): log in with `wandb login`, and check the network")
        print(thing.url)
    return 0


def said(sentence: str) -> int:
    print(f"dashboard: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
