"""One function for every estimator: what `locallearn.information` is."""

from __future__ import annotations

from collections.abc import Callable

from locallearn.analysis.information.binned import Bins, binned
from locallearn.analysis.information.gaussian import gaussian
from locallearn.analysis.information.mine import mine_information
from locallearn.analysis.information.neighbours import ksg
from locallearn.analysis.information.pairwise import bounds, noise_from_distances
from locallearn.analysis.information.renyi import renyi
from locallearn.analysis.information.result import Array, Information, Samples, samples
from locallearn.errors import UserError, unknown

OTHERS: dict[str, Callable[[Samples, float | None], Information]] = {
    "gaussian": gaussian, "ksg": ksg, "mine": mine_information, "renyi": renyi
}  # fmt: skip
ESTIMATORS = tuple(sorted(["binned", "kde_lower", "kde_upper", *OTHERS]))
NEED_X = ("ksg", "mine")


def information(
    t: Array,
    y: Array | None = None,
    estimator: str = "kde_upper",
    noise_variance: float | str | None = None,
    bins: Bins = 30,
    x: Array | None = None,
) -> Information:
    """Mutual information of a layer with its input and with the label.

    Args:
        t: activations [N, D...].
        y: labels [N], for I(T;Y); samples with a label below 0 have none and are left out.
        estimator:
            kde_upper, kde_lower: pairwise bounds on the Gaussian mixture around the activations (Kolchinsky and Tracey
                2017); I(T;Y) by the class-conditional mixtures (Saxe et al. 2018); `.x_range`, `.y_range` bound both
            binned: entropy of binned activations (Shwartz-Ziv and Tishby 2017)
            ksg: nearest neighbours (Kraskov et al. 2004; Ross 2014 for labels); I(X;T) needs x
            renyi: matrix-based entropy with a = 1.01 (Sanchez Giraldo et al. 2015), up to 5000 samples; with x, of both
                kernels
            mine: a network learns a lower bound (Belghazi et al. 2018); I(X;T) needs x; `.curve` is its training
            gaussian: closed form for jointly Gaussian variables; without x, of a layer with noise; no I(T;Y)
        noise_variance: of the Gaussian noise on t; "distances" for the 90th percentile of the squared pairwise
            distances of t over 1000. By default 0.1 for kde, Silverman's rule for renyi, none for the others.
        bins: of binned: an int (their number on the layer's range), a float (their width), edges, or "tanh".
        x: inputs [N, Dx...]. Without them X is which of the N samples it is, and T a function of X with noise or bins.

    Returns: I(X;T) as `.x` and I(T;Y) as `.y`, in bits, with the convention and the warnings that belong to them.

    Raises UserError for an unknown estimator, for activations that are not finite, and where x, y or noise is needed.
    """
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    if estimator in NEED_X and x is None and y is None:
        raise UserError(f"I(X;T) by {estimator} needs the inputs: give x=[N, Dx], or y= for I(T;Y)")
    if isinstance(noise_variance, str):
        if noise_variance != "distances":
            raise UserError(f"noise_variance={noise_variance}: must be a number above 0, or distances")
        noise_variance = None if estimator == "binned" else noise_from_distances(t).noise_variance
    if estimator == "binned":
        return binned(t, y, bins)
    if estimator in ("kde_lower", "kde_upper"):
        return bounds(t, y, 0.1 if noise_variance is None else noise_variance)[estimator == "kde_upper"]
    if estimator == "gaussian" and x is None and noise_variance is None:
        raise UserError("I(X;T) of a layer without noise is infinite: give noise_variance= (or x=, for the gaussian)")
    return OTHERS[estimator](samples(t, y, x), noise_variance)
