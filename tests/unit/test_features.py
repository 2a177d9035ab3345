"""Feature maps, first-layer filters and reconstruction: against direct forwards, scikit-learn and known answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import Tensor, nn

from locallearn.analysis.decoder import decoder, kept, reconstruct, ridge, standardised
from locallearn.analysis.features import as_maps, as_pixels, first_filters, maps, tiles
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.models.plain import mlp
from locallearn.models.recurrent import rnn
from locallearn.probes import Moment, Probe, Row
from locallearn.probes.base import Curve, Seen
from locallearn.probes.depth import by_layer, outputs, sample
from locallearn.probes.features import Features
from locallearn.probes.filters import Filters
from locallearn.probes.reconstruction import ReconstructionProbe
from locallearn.training.probing import START, look

CONF = Path(__file__).parents[2] / "conf" / "probe"


def draws(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- analysis: maps and filters


def test_maps_are_the_mean_the_first_component_of_sklearn_and_the_channels_that_vary_most():
    h = draws(7, 5, 4) * torch.tensor([1, 5, 0, 2, 4, 3, 0.5]).double()[:, None, None] + 1
    found = maps(h, channels=3)
    flat = h.flatten(1).T.numpy()  # positions are the samples
    pca = PCA().fit(flat)
    component = pca.transform(flat)[:, 0].reshape(5, 4)
    assert found.numbers.tolist() == [1, 4, 5]
    assert torch.equal(found.channels, h[[1, 4, 5]].float())
    np.testing.assert_allclose(found.mean, h.mean(0), rtol=1e-6)
    sign = np.sign((component * (h.mean(0) - h.mean()).numpy()).sum())
    np.testing.assert_allclose(found.component, sign * component, rtol=1e-5, atol=1e-5)
    assert found.share == pytest.approx(pca.explained_variance_ratio_[0])
    assert found.dead == pytest.approx(1 / 7)


def test_maps_of_constant_and_of_tiny_features_are_numbers():
    constant = maps(torch.full((3, 4, 4), 2.0))
    assert (constant.share, constant.dead) == (0.0, 1.0)
    assert torch.equal(constant.mean, torch.full((4, 4), 2.0))
    assert maps(draws(3, 4, 4) * 1e-200).share == pytest.approx(maps(draws(3, 4, 4)).share)


def test_vectors_and_sequences_are_one_map():
    folded = as_maps(torch.arange(7.0))
    assert folded.shape == (1, 3, 3)
    assert folded.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 3]
    assert as_maps(torch.zeros(4, 9)).shape == (1, 4, 9)


def test_filters_are_the_weights_of_the_first_layer():
    model = mlp((3, 4, 5), 2, width=6, depth=2)
    name, found = first_filters(model.units, (3, 4, 5))
    assert name == "0.1"
    assert torch.equal(found, model.units[0][1].weight.reshape(6, 3, 4, 5))
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 5), nn.Conv2d(8, 8, 3))
    assert torch.equal(first_filters(net, (3, 9, 9))[1], net[1].weight)


def test_tiles_show_a_known_weight():
    filters = torch.zeros(2, 1, 2, 2)
    filters[0, 0] = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
    canvas = tiles(filters)  # every weight is 12 dots wide, and a line of 2 stands between
    assert canvas.shape == (24, 50, 3)
    assert canvas[::12, :24:12, 0].tolist() == [[0.625, 0.25], [0.5, 1.0]]
    assert canvas[5, 24:26].eq(1).all()
    assert canvas[:, 26:].eq(0.5).all(), "a filter of zeros is grey"
    colour = tiles(torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(1, 3, 24, 24))
    assert colour[3, 3].tolist() == [1.0, 0.0, 0.5]
    assert tiles(torch.ones(5, 2, 3, 3)).shape[:2] == (3 * 24 + 2 * 2, 4 * 24 + 3 * 2), "a tile for each channel"


@pytest.mark.parametrize(
    ("model", "image", "said"),
    [
        (lambda: rnn((7, 4), 3, width=5), (7, 4), "the inputs are [7, 4], not images"),
        (lambda: mlp((9,), 3), (9,), "the inputs are [9], not images"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 3, 3), "no convolution of 1 channels and no linear"),
    ],
)
def test_a_model_without_filters_says_so(model, image, said):
    with pytest.raises(UserError) as error:
        first_filters(model(), image)
    assert said in str(error.value)


# --- analysis: decoders


def test_kept_is_what_sklearn_says():
    truth, decoded = draws(50, 2, 3, 3), draws(50, 2, 3, 3, seed=1) * 0.3
    found = kept(decoded, truth, peak=2.0)
    flat = truth.flatten(1), decoded.flatten(1)
    assert found.explained_variance == pytest.approx(r2_score(*flat, multioutput="variance_weighted"))
    assert found.mse == pytest.approx(float(((truth - decoded) ** 2).mean()))
    assert found.psnr == pytest.approx(20 * math.log10(2) - 10 * math.log10(found.mse))
    assert kept(truth, truth) == (0.0, 1.0, None)
    assert kept(truth.mean(0).expand_as(truth), truth).explained_variance == pytest.approx(0)
    assert kept(torch.ones(3, 2), torch.ones(3, 2)).explained_variance == 0


@pytest.mark.parametrize("features", [5, 80])  # fewer than samples, and more
@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_ridge_is_that_of_sklearn(features, penalty):
    h, x = draws(40, features) + 1, draws(40, 1, 2, 3, seed=1) - 2
    new = draws(9, features, seed=2)
    theirs = Ridge(alpha=penalty).fit(h, x.flatten(1)).predict(new)
    found, used = ridge(h, x, new, penalty)
    np.testing.assert_allclose(found.flatten(1), theirs, rtol=1e-8, atol=1e-10)
    assert used == penalty


def test_the_penalty_has_the_least_generalised_cross_validation_error():
    """By the hat matrix written out, for every penalty that was tried."""
    h, x = draws(30, 12), draws(30, 4, seed=1)
    x[:, 0] += h[:, 0] * 2
    _, used = ridge(h, x, h)
    centred, target = h - h.mean(0), x - x.mean(0)
    gram = centred @ centred.T
    errors = {}
    for exponent in range(-8, 3):
        penalty = 10.0**exponent * float(torch.linalg.eigvalsh(gram).mean())
        left = torch.eye(30).double() - gram @ torch.linalg.inv(gram + penalty * torch.eye(30).double())
        errors[penalty] = float((left @ target).square().sum() / (left.trace() - 1) ** 2)
    assert used == pytest.approx(min(errors, key=lambda p: errors[p]))


def test_features_in_float32_get_the_penalty_of_float64():
    """More features than samples, and a large mean: what float32 sums lose would pass for a small eigenvalue."""
    h, x = (draws(60, 3000) + 30).float(), draws(60, 4, seed=1)
    x[:, 0] += h[:, :100].double().sum(1) / 10
    found, penalty = ridge(h, x, h[:9] * 1.1)
    exact, expected = ridge(h.double(), x, (h[:9] * 1.1).double())
    assert penalty == pytest.approx(expected)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found, Ridge(alpha=penalty).fit(h.double(), x).predict(h[:9].double() * 1.1), atol=1e-3)


def test_linear_features_keep_all_and_constant_ones_only_the_mean():
    x, new = draws(200, 1, 4, 4).float(), draws(60, 1, 4, 4, seed=1).float()
    mixed = torch.linalg.qr(draws(16, 16, seed=2))[0].float()
    decoded, _ = ridge(x.flatten(1) @ mixed, x, new.flatten(1) @ mixed)
    assert kept(decoded, new).explained_variance > 0.9999
    many, others = draws(500, 16, seed=3), draws(500, 16, seed=4)
    half = kept(ridge(many[:, :8], many, others[:, :8])[0], others).explained_variance
    lost = others[:, 8:].var(0).sum() / others.var(0).sum()  # what no function of the other half can know
    assert half == pytest.approx(1 - float(lost), abs=0.02)
    for constant in (torch.ones(200, 5), torch.ones(200, 2, 4, 4)):
        for decoded in (ridge(constant, x, constant[:60])[0], reconstruct(constant, x, constant[:60], steps=20)):
            assert kept(decoded, new).explained_variance == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("flat", [False, True])
def test_a_network_learns_the_identity(flat):
    x, new = draws(300, 1, 4, 4).float(), draws(60, 1, 4, 4, seed=1).float()
    h = (x.flatten(1), new.flatten(1)) if flat else (x, new)
    decoded = reconstruct(h[0], x, h[1], steps=600 if flat else 200)
    assert decoded.shape == new.shape
    assert kept(decoded, new).explained_variance > (0.9 if flat else 0.99)


@pytest.mark.parametrize("size", [(5, 7, 7), (5, 4, 4), (5, 12, 12), (5, 1, 1), (9,), (6, 4)])
@pytest.mark.parametrize("image", [(2, 10, 10), (7,)])
def test_a_decoder_for_every_shape(size, image):
    assert decoder(size, image)(torch.randn(3, *size)).shape == (3, *image)


def test_the_network_depends_on_its_seed_alone():
    x = draws(64, 1, 4, 4).float()
    torch.manual_seed(5)
    first = reconstruct(x, x, x, steps=5, seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    assert torch.equal(reconstruct(x, x, x, steps=5, seed=3), first)
    assert not torch.equal(reconstruct(x, x, x, steps=5, seed=4), first)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was not used"


def test_standardised_features_have_no_scale_and_rounding_is_no_information():
    h = draws(30, 3, 4, 4).float() * 1e-20
    h[:, 1] = 1e6 + draws(30, 4, 4)  # varies by 1e-6 of its mean
    found, other = standardised(h, h / 2)
    torch.testing.assert_close(found[:, [0, 2]].std((0, 2, 3), correction=0), torch.ones(2))
    assert found[:, 1].eq(0).all()
    assert other[:, 1].eq(0).all()
    torch.testing.assert_close(other[:, 0].std(), found[:, 0].std() / 2)


def test_features_beyond_what_the_decoder_has_seen_are_cut_to_it():
    h = draws(30, 3, 4, 4).float()
    found, other = standardised(h, h * 3)
    assert other.amin((0, 2, 3)).equal(found.amin((0, 2, 3)))
    assert other.amax((0, 2, 3)).equal(found.amax((0, 2, 3)))


@pytest.mark.parametrize("shift", [-2.0, -3.0, -4.0])
def test_near_dead_units_put_nothing_back_and_spoil_nothing(shift):
    """ReLU units that hardly any sample activates: standardised, what is left of them among the training samples would
    be blown up, and an ordinary activation of a held-out sample would outweigh everything."""
    images, weight = draws(700, 60).float(), draws(60, 50, seed=1).float() / 60**0.5
    net = images @ weight
    h = (net + shift).relu()
    h[:, :3] = net[:, :3]  # three units live
    h[:, 3] = 0.0
    h[5, 3], h[650, 3] = 1e-3, 1.0  # and one is as good as dead until it is tried
    few, others = standardised(h[:600], h[600:])
    live, held_out = standardised(h[:600, :3], h[600:, :3])
    without = kept(ridge(live, images[:600], held_out)[0], images[600:]).explained_variance
    assert kept(ridge(few, images[:600], others)[0], images[600:]).explained_variance > without - 0.02
    network = reconstruct(h[:600], images[:600], h[600:], steps=100)
    assert kept(network, images[600:]).explained_variance > -0.02


def test_features_that_are_no_numbers_are_refused():
    x = torch.zeros(4, 2)
    with pytest.raises(UserError, match="NaN or infinite"):
        ridge(torch.full((4, 3), math.nan), x, x)
    with pytest.raises(UserError, match="3 features for 4 inputs"):
        reconstruct(torch.zeros(3, 3), x, x)


# --- probes


def test_the_features_probe_holds_a_direct_forward(learner, data):
    probe = Features(image=3, layers=(0, 2), channels=2)
    with torch.random.fork_rng():
        seen = probe.look(learner, data, START)
    x = next(data.evaluation(data.test, 10))[0][3:4]
    model = learner.model.eval()
    with torch.no_grad():
        first = model.units[0](x)
        third = model.units[2](model.units[1](first))
    assert [row["layer"] for row in seen.rows] == [0, 2]
    assert torch.allclose(seen.arrays["000/mean"], first[0].mean(0), atol=1e-6)
    assert torch.allclose(seen.arrays["000/channels"], first[0][seen.arrays["000/numbers"]], atol=1e-6)
    assert torch.allclose(seen.arrays["002/channels"].flatten()[:120], third[0], atol=1e-6)
    raw = next(data.test.store.take(data.test.index[3:4], 1))[0]
    assert torch.allclose(seen.arrays["input"], raw / 255, atol=1e-6)


def drawn(probe: Probe, learner: Learner, data: Data) -> tuple[list[Row], dict[str, object]]:
    """Rows of two looks at the same weights, and the pictures of both."""
    rows: list[Row] = []
    arrays = {}
    for epoch in (0, 4):
        seen = look("mine", probe, learner, data, Moment(epoch, epoch))
        rows += [{"epoch": epoch, "step": epoch, **row} for row in seen.rows]
        arrays[epoch] = seen.arrays
    return rows, probe.draw(rows, arrays)


@dataclass(frozen=True)
class Sparsity(Probe):
    """Share of each unit's outputs that are 0."""

    curves = (Curve("zeros", "share of zeros"),)

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, _ = sample(data, "test", 50)
        return Seen(by_layer(learner, ({"zeros": float((h == 0).float().mean())} for h in outputs(learner, inputs))))


def test_a_new_probe_is_a_look_and_the_names_of_its_curves(learner, data):
    rows, pictures = drawn(Sparsity(), learner, data)
    assert [row["name"] for row in rows] == 2 * learner.model.names
    assert all(0 < row["zeros"] < 1 for row in rows)
    (axes,) = pictures["test_features"].axes
    assert axes.get_ylabel() == "share of zeros"
    assert [list(line.get_ydata()) for line in axes.lines] == [[row["zeros"]] * 2 for row in rows[:4]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == learner.model.names


@pytest.mark.slow
@pytest.mark.parametrize("network", [False, True])
def test_each_probe_gives_rows_and_pictures_and_changes_nothing(network, learner, data):
    before = {n: t.clone() for n, t in learner.state().items()}
    decoded = ReconstructionProbe(samples=40, decoder="network" if network else "linear", steps=3)
    rows, pictures = drawn(decoded, learner, data)
    assert [(r["block"], r["layer"]) for r in rows] == [(0, 0), (1, 3)] * 2
    assert rows[:2] == [{**r, "epoch": 0, "step": 0} for r in rows[2:]], "the same weights, the same numbers"
    assert set(pictures) == {"reconstruction", "reconstruction-00000", "reconstruction-00004"}
    if not network:
        assert set(drawn(Features(channels=2), learner, data)[1]) == {"features-00000", "features-00004"}
        rows, pictures = drawn(Filters(), learner, data)
        assert rows[0]["filters"] == 6
        assert 0 < float(rows[0]["cosine"]) < 1
        assert set(pictures) == {"filters"}
    assert all(torch.equal(t, before[n]) for n, t in learner.state().items())


def test_reconstruction_by_hand(learner, data):
    """The second unit's output of 60 training images, scikit-learn's ridge with the probe's own penalty."""
    seen = ReconstructionProbe(layers=(1,), samples=60).look(learner, data, START)
    train, test = sample(data, "train", 60)[0], sample(data, "test", 500)[0]
    with torch.no_grad():
        h = [learner.model.units[1](learner.model.units[0](x)) for x in (train, test)]
    mean = h[0].double().mean((0, 2, 3), keepdim=True)
    std = h[0].double().std((0, 2, 3), correction=0, keepdim=True)
    least, most = h[0].amin((0, 2, 3), keepdim=True), h[0].amax((0, 2, 3), keepdim=True)
    flat = [((part.double().clamp(least, most) - mean) / std).flatten(1) for part in h]
    x, truth = (as_pixels(images, data.pixels).flatten(1) for images in (train, test))
    _, penalty = ridge(flat[0], x, flat[1])
    theirs = r2_score(truth, Ridge(alpha=penalty).fit(flat[0], x).predict(flat[1]), multioutput="variance_weighted")
    (row,) = seen.rows
    assert row["explained_variance"] == pytest.approx(theirs, abs=1e-4)
    assert 0.2 < float(row["explained_variance"]) < 1
    assert "block" not in row
    assert row["layer"] == 1


@pytest.mark.parametrize("name", ["features", "filters", "reconstruction"])
def test_the_yaml_has_the_defaults_and_the_class(name):
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith(f"# @package probe.{name}\n")
    assert text.splitlines()[2].startswith("# paper: ")
    options = yaml.safe_load(text)
    cls = {"features": Features, "filters": Filters, "reconstruction": ReconstructionProbe}[name]
    assert options.pop("_target_") == f"{cls.__module__}.{cls.__name__}"
    assert cls(**options) == cls(every="log")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda learner, data: Features(image=999).look(learner, data, START), "has 359 samples; choose 0-358"),
        (lambda learner, data: Features(layers=(9,)).look(learner, data, START), "layers=[9]: lenet has units 0-3"),
        (lambda learner, data: Features(image=-1), "probe.features.image=-1: must be a whole number of at least 0"),
        (lambda learner, data: Filters(filters=0), "probe.filters.filters=0: must be a whole number of at least 1"),
        (lambda learner, data: ReconstructionProbe(decoder="liner"), "did you mean 'linear'?"),
        (lambda learner, data: ReconstructionProbe(layers=(4,)).look(learner, data, START), "lenet has units 0-3"),
    ],
)
def test_a_mistake_is_one_sentence(call, said, learner, data):
    with pytest.raises(UserError) as error:
        call(learner, data)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
