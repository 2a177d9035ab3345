"""Where the units of a traced module end: at the user's names, or before each layer with a weight matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, fx, nn
from torch.nn import functional as F

from locallearn.errors import UserError, did_you_mean
from locallearn.models.flow import AXES, Flow

_GLOBAL_POOLS = tuple(getattr(nn, f"Adaptive{kind}Pool{n}d") for kind in ("Avg", "Max") for n in (1, 2, 3))
_GLOBAL_POOL_FUNCTIONS = tuple(getattr(F, f"adaptive_{kind}_pool{n}d") for kind in ("avg", "max") for n in (1, 2, 3))


def seams(flow: Flow, name: str, cuts: Sequence[str] | None) -> list[fx.Node]:
    """The nodes whose values the units emit, in order. What comes after the last one is the head."""
    natural = chosen = _natural(flow)
    if cuts is not None:
        chosen = sorted({_named(flow, name, word) for word in cuts}, key=flow.at.__getitem__)
        last = chosen[-1] if chosen else flow.image
        if natural and any(map(flow.weights, flow.between(last, natural[-1]))):
            chosen.append(natural[-1])  # the head begins where it naturally does, unless nothing to train is left there
    if not chosen:
        why = "no single tensor crosses from one layer with weights to the next; choose another model"
        if flow.unknown:
            why = f"the layers do not tell which axis holds the features; say it with {_axes()}, choose another model"
        raise UserError(f"{name} has no place for a cut: {why}, or write it as a locallearn.BlockModel")
    _check_asked(flow, name, chosen)
    return chosen


def _axes(word: str | None = None) -> str:
    """How to say where the features are, of all units or of one."""
    first, last = AXES
    return f"axes={{{word!r}: {first!r}}} or {last!r}" if word else f"axes={first!r} or {last!r}"


def _check_asked(flow: Flow, name: str, chosen: Sequence[fx.Node]) -> None:
    """Raise UserError where the user gave axes that nothing has."""
    ends = [path for node in chosen for path in flow.paths(node)]
    for word in flow.asked if isinstance(flow.asked, Mapping) else ():
        if word not in ends:
            raise UserError(f"axes of {word!r}: no unit of {name} ends there; cut there, or leave it out")
    if isinstance(flow.asked, str) and all(flow.values[node].dim() == 2 for node in chosen):
        raise UserError(f"axes={flow.asked}: every unit of {name} hands on vectors, which have one axis; leave it out")


def _natural(flow: Flow) -> list[fx.Node]:
    """A unit begins at a layer with a weight matrix; normalisation, activation and pooling belong to the one before,
    but what gives up the map (global pooling, flattening) to the one behind."""
    edges = [flow.image, *flow.bounds, flow.logits]
    ends: list[fx.Node] = []
    heavy = False
    seam: fx.Node | None = None
    pieces = [flow.between(before, after) for before, after in pairwise(edges)]
    last = max((k for k, piece in enumerate(pieces) if _answers(flow, piece)), default=-1)
    for k, (before, after) in enumerate(pairwise(edges)):
        piece = pieces[k]
        if k == last or any(_is_matrix(weight) for node in piece for weight in flow.weights(node)):
            if heavy:
                ends.append(seam or before)
            heavy, seam = True, None
        elif heavy and seam is None and _gives_up_map(flow, before, after, piece):
            seam = before
    return ends


def _answers(flow: Flow, piece: list[fx.Node]) -> bool:
    """Whether a layer of a piece could be the last one, which may have a single output."""
    return any(w.dim() > 1 for node in piece if node.op == "call_module" for w in flow.weights(node))


def _is_matrix(weight: Tensor) -> bool:
    """Not a scale or a bias, nor a position embedding or class token, which begin with a 1."""
    return isinstance(weight, nn.Parameter) and weight.dim() > 1 and len(weight) > 1


def _gives_up_map(flow: Flow, before: fx.Node, after: fx.Node, piece: list[fx.Node]) -> bool:
    if flow.values[after].dim() < flow.values[before].dim():
        return True
    modules = [flow.module.get_submodule(str(n.target)) for n in piece if n.op == "call_module"]
    functions = {n.target for n in piece if n.op == "call_function"}
    return any(isinstance(m, _GLOBAL_POOLS) for m in modules) or not functions.isdisjoint(_GLOBAL_POOL_FUNCTIONS)


def _named(flow: Flow, name: str, word: str) -> fx.Node:
    """The node behind which the user wants a cut, or the sentence that says why there can be none."""
    calls = flow.tracer.calls.get(word)
    if calls is None:
        raise UserError(_unknown(flow, name, word))
    if len(calls) > 1:
        raise UserError(f"{name} runs {word!r} {len(calls)} times, so a cut after it is ambiguous; {_choices(flow)}")
    node = calls[0].value
    if node is None:
        raise UserError(f"{name} cannot be cut after {word!r}: it does not return one tensor; {_choices(flow)}")
    if node in flow.bounds:
        return node
    here = flow.at[node]
    if node in flow.unknown:
        raise UserError(
            f"{name} cannot be cut after {word!r}: it emits {list(flow.values[node].shape[1:])}, and the layers do not "
            f"tell which axis holds the features; say it with {_axes(word)}, or {_choices(flow, here)}"
        )
    if node is flow.logits:
        why = "it returns the logits, so nothing is left for the head"
    elif node not in flow.values:
        why = "it does not return one tensor"
    elif flow.tied_at(here):
        why = "a layer before it is used again behind it"
    elif others := [other for other in flow.crossing(here) if other is not node]:
        why = f"the forward branches at {_label(flow, others[-1])!r}, whose output is still needed behind it"
    else:
        why = "what it returns is not a batch of features"
    raise UserError(f"{name} cannot be cut after {word!r}: {why}; {_choices(flow, here)}")


def _unknown(flow: Flow, name: str, word: str) -> str:
    whole = next((path for path in flow.tracer.opaque if word.startswith(f"{path}.")), None)
    if whole is not None:
        return f"{name} cannot be cut after {word!r}: {whole!r} stays in one piece, as {flow.tracer.opaque[whole]}"
    if word in dict(flow.module.named_modules()):
        return f"{name} cannot be cut after {word!r}: its forward does not call it as a module; {_choices(flow)}"
    return f"{name} has no module {word!r}: {did_you_mean(word, flow.tracer.calls)}{_choices(flow)}"


def _choices(flow: Flow, near: int | None = None, count: int = 8) -> str:
    """The names after which a cut can go: the two nearest to a position, or the first few."""
    names = {flow.at[node]: _label(flow, node) for node in flow.bounds if flow.paths(node)}
    if near is not None:
        below = [n for i, n in names.items() if i < near][-1:]
        above = [n for i, n in names.items() if i > near][:1]
        return f"cut after {' or '.join(map(repr, below + above))} instead" if names else "it cannot be cut by name"
    listed = list(dict.fromkeys(sorted(names.values(), key=lambda n: n.count("."))))
    return f"cut after one of {', '.join(listed[:count])}{', ...' if len(listed) > count else ''}"


def _label(flow: Flow, node: fx.Node) -> str:
    """The shortest module path that returns this value."""
    if node is flow.image:
        return "the image"
    return min(flow.paths(node), key=len, default=node.name)


def unit_name(flow: Flow, before: fx.Node, after: fx.Node) -> str:
    """The last module of a unit: of those that return its output the widest that lies wholly inside."""
    paths = flow.paths(after)
    start = flow.at[before]
    inside = [path for path in paths if flow.tracer.calls[path][0].start > start]
    if inside:
        return min(inside, key=len)
    modules = [str(n.target) for n in flow.between(before, after) if n.op == "call_module"]
    return max(paths, key=len, default=modules[-1] if modules else after.name)
