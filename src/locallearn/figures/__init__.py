"""Pictures that a paper can print: one style, colours that the colour-blind can tell apart, SVG and PNG."""

from locallearn.figures.style import COLOURS, by_depth, by_strategy, epoch_axis, name_layers, panels, save

__all__ = ["COLOURS", "by_depth", "by_strategy", "epoch_axis", "name_layers", "panels", "save"]
