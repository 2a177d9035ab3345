"""Samples of several tensors: packed and taken apart without a change, cut where the last has been read, and trained to
the weights of a loop by hand, whatever gives them."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

import locallearn
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.inputs import InputPart, Inputs
from locallearn.models import as_blocks

N = 48
DRAWS = torch.Generator().manual_seed(0)
PICTURE = torch.randn(N, 3, 6, 6, generator=DRAWS)
NUMBERS = torch.randn(N, 4, generator=DRAWS)
TOKENS = torch.randint(7, (N, 5), generator=DRAWS)
MASK = torch.rand(N, 5, generator=DRAWS) < 0.7
MASK[:, 0] = True
AGE = torch.randn(N, generator=DRAWS)
Y = torch.randint(3, (N,), generator=DRAWS)


class Both(nn.Module):
    """A picture and some numbers, which meet before the second layer."""

    def __init__(self):
        super().__init__()
        self.see = nn.Conv2d(3, 8, 3, padding=1)
        self.weigh = nn.Linear(4, 8)
        self.middle, self.last = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, picture, numbers):
        seen = torch.relu(self.see(picture)).mean((2, 3))
        h = torch.cat([seen, torch.relu(self.weigh(numbers))], 1)
        return self.last(torch.relu(self.middle(h)))


class Words(nn.Module):
    """Tokens under a mask, and one number beside them; it takes them by name."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(7, 6), nn.Linear(7, 9), nn.Linear(9, 3)

    def forward(self, ids, mask, age):
        h = self.embed(ids) * mask[:, :, None]
        h = torch.cat([h.sum(1) / mask.sum(1, keepdim=True), age[:, None]], 1)
        return self.last(torch.tanh(self.first(h)))


def made(net: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return net()


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


CASES = {
    "by place": (Both, (PICTURE, NUMBERS)),
    "by name": (Words, {"ids": TOKENS, "mask": MASK, "age": AGE}),
}


def of(given, places):
    """Some samples of the tensors that were given."""
    if isinstance(given, dict):
        return {name: t[places] for name, t in given.items()}
    return tuple(t[places] for t in given)


def called(net: nn.Module, given) -> torch.Tensor:
    return net(**given) if isinstance(given, dict) else net(*given)


@pytest.fixture(params=CASES)
def case(request):
    net, given = CASES[request.param]
    return made(net), given


# --- one vector ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_tensors_come_back_with_their_shapes_types_and_values(dtype):
    tokens = TOKENS.clone()
    tokens[0, 0] = 2**24 - 1  # the last whole number that float32 holds as it is
    given = {"picture": PICTURE.to(dtype), "ids": tokens, "mask": MASK, "age": AGE.to(dtype)}
    inputs = Inputs.of(given, "a batch", batch=True)
    packed = inputs.pack(given)
    assert packed.shape == (N, 108 + 5 + 5 + 1)
    assert packed.dtype == dtype
    placed, by_name = inputs.unpack(packed)
    assert not placed
    assert_same(by_name, given)
    assert {name: t.dtype for name, t in by_name.items()} == {name: t.dtype for name, t in given.items()}
    one = Inputs.of({name: t[3] for name, t in given.items()}, "a sample", batch=False)
    assert one == inputs
    assert torch.equal(one.pack({name: t[3] for name, t in given.items()}, batch=False), packed[3])
    assert inputs.unpack(inputs.pack({name: t[:0] for name, t in given.items()}))[1]["picture"].shape == (0, 3, 6, 6)


def test_noise_is_what_the_model_can_read():
    given = {"ids": TOKENS, "mask": MASK, "age": AGE}
    inputs = Inputs.of(given, "a batch", batch=True)
    inputs = inputs.counted([inputs.pack(given)])
    assert [part.vocabulary for part in inputs.parts] == [7, None, None]
    assert inputs.vocabulary == 7
    _, noise = inputs.unpack(inputs.noise(500, torch.Generator().manual_seed(0)))
    assert noise["ids"].unique().tolist() == [*range(7)]
    assert noise["mask"].unique().tolist() == [False, True]
    assert abs(float(noise["age"].mean())) < 0.2
    assert abs(float(noise["age"].std()) - 1) < 0.2


def test_a_manifest_keeps_what_the_tensors_are():
    inputs = Inputs((InputPart((3, 6, 6), "numbers"), InputPart((), "tokens", "word", 9)))
    assert Inputs.saved([asdict(part) for part in inputs.parts]) == inputs
    assert Inputs.saved(None) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ((PICTURE, NUMBERS[:, :3]), r"got number 0 \[48, 3, 6, 6\], number 1 \[48, 3\]; the model reads numbers"),
        ((NUMBERS, PICTURE), "the model reads numbers"),
        ((PICTURE, TOKENS[:, :4]), "the model reads numbers"),
        ((PICTURE,), "the model reads numbers"),
        ((PICTURE, NUMBERS, AGE), "the model reads numbers"),
        ((PICTURE, NUMBERS[:7]), "the model reads numbers"),
        ({"picture": PICTURE, "numbers": NUMBERS}, "got picture"),
        ((), "got no tensors"),
    ],
)
def test_other_tensors_are_one_sentence(given, why):
    inputs = Inputs.of((PICTURE, NUMBERS), "a batch", batch=True)
    with pytest.raises(UserError, match=why):
        inputs.pack(given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (((PICTURE * 9).to(torch.uint8), NUMBERS), "uint8; where a sample has several tensors, give each as floats"),
        ((PICTURE.to(torch.complex64), NUMBERS), "complex"),
        ((PICTURE[:, :0], NUMBERS[:, :0]), "hold no numbers"),
        ({"a": NUMBERS, "b": torch.tensor(1.0)}, "b is a single number; give one for each sample"),
    ],
)
def test_what_is_no_input_is_one_sentence(given, why):
    with pytest.raises(UserError, match=why):
        Inputs.of(given, "a batch", batch=True)


def test_tokens_that_float32_would_round_are_refused():
    tokens = TOKENS.clone()
    tokens[2, 2] = 2**24
    inputs = Inputs.of((tokens, AGE), "a batch", batch=True)
    with pytest.raises(UserError, match="token 16777216: must be below 16777216 in inputs of several tensors"):
        inputs.pack((tokens, AGE))


# --- the cut ---------------------------------------------------------------------------------------------------------


def test_a_cut_goes_where_the_last_tensor_has_been_read(case):
    net, given = case
    inputs = Inputs.of(given, "a batch", batch=True)
    inputs = inputs.counted([inputs.pack(given)])
    model = as_blocks(net, image=inputs.image, inputs=inputs)
    assert len(model.units) == 2
    truth = called(net, given)
    assert torch.equal(model(inputs.pack(given)), truth)
    assert torch.equal(model(given), truth)


class Late(nn.Module):
    """Reads its second tensor last of all."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, numbers, age):
        return self.last(torch.relu(self.second(torch.relu(self.first(numbers))))) * age[:, None]


def test_a_tensor_that_is_read_late_leaves_no_place_for_a_cut_before():
    inputs = Inputs.of((NUMBERS, AGE), "a batch", batch=True)
    with pytest.raises(UserError, match="Late has no place for a cut"):
        as_blocks(Late(), image=inputs.image, inputs=inputs)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["backprop", "dgl", "dfa", "deep_supervision"])
def test_a_loop_of_ones_own_takes_them_as_they_are(case, strategy):
    net, given = case
    twin = made(type(net))
    settings = {"classes": 3, "inputs": given, "blocks": "max", "device": "cpu", "optim": {"lr": 0.1}}
    learner = locallearn.build(strategy, net, **settings)
    packed = locallearn.build(strategy, twin, **settings)
    for start in range(0, N, 16):
        places = torch.arange(start, start + 16)
        ours = learner.step(of(given, places), Y[places])
        theirs = packed.step(packed.model.inputs.pack(of(given, places)), Y[places])
        assert ours == theirs
    assert_same(dict(learner.state()), dict(packed.state()))
    assert torch.equal(learner(given), called(net.eval(), given))
    halves = [(of(given, places), Y[places]) for places in (slice(0, 24), slice(24, N))]
    assert learner.evaluate(given, Y) == pytest.approx(learner.evaluate(halves))
    assert learner.predict(given)[-1].shape == (N, 3)


def test_backprop_is_a_loop_by_hand(case):
    net, given = case
    twin = made(type(net))
    optim = SGD(lr=0.1, momentum=0.0, weight_decay=0.0)
    learner = locallearn.build("backprop", net, classes=3, inputs=given, blocks=1, device="cpu", optim=optim)
    by_hand = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        learner.step(given, Y)
        by_hand.zero_grad()
        F.cross_entropy(called(twin, given), Y).backward()
        by_hand.step()
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6), name


def test_an_own_loop_hears_what_is_wrong():
    learner = locallearn.build("dgl", made(Both), classes=3, inputs=(PICTURE, NUMBERS), blocks=2, device="cpu")
    before = {name: t.clone() for name, t in learner.state().items()}
    for given, why in (
        (PICTURE, "give a tuple of them, or a mapping of their names to them"),
        ((PICTURE, NUMBERS[:5]), "the model reads numbers"),
        ("text", "not a tensor"),
    ):
        with pytest.raises(UserError, match=why):
            learner.step(given, Y)
    assert_same(dict(learner.state()), before)
    single = locallearn.build("dgl", nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), image=(4,), classes=3, blocks=1)
    with pytest.raises(UserError, match="was built for one; to build it for several, give inputs="):
        single.step((NUMBERS, AGE), Y)


@pytest.mark.parametrize(
    ("strategy", "objective", "why"),
    [("dgl", "reconstruction", "reads numbers, but the data are tokens of a vocabulary of 7")],
)
def test_what_reads_numbers_is_refused_where_there_are_tokens(strategy, objective, why):
    given = CASES["by name"][1]
    with pytest.raises(UserError, match=why):
        locallearn.build(strategy, made(Words), classes=3, inputs=given, blocks="max", objective=objective)


# --- a run -----------------------------------------------------------------------------------------------------------


class Samples(Dataset):
    def __init__(self, given):
        self.given = given

    def __len__(self):
        return N

    def __getitem__(self, place):
        return of(self.given, place), int(Y[place])


class Columns(Samples):
    """As a set of Hugging Face's gives its rows."""

    def __getitem__(self, place):
        return {**of(self.given, place), "label": int(Y[place])}


class Stream(IterableDataset):
    def __len__(self):
        return N

    def __iter__(self):
        return (((PICTURE[i], NUMBERS[i]), int(Y[i])) for i in range(N))


SETTINGS = {"strategy": "dgl", "batch_size": 8, "blocks": 2, "epochs": 2, "device": "cpu", "threads": 1, "quiet": True}


def trained(net, data, tmp_path, name, **settings):
    return locallearn.train(model=made(net), data=data, out=str(tmp_path / name), **{**SETTINGS, **settings})


def weights(result, net):
    return dict(locallearn.load(result.run_dir, model=made(net)).state_dict())


@pytest.mark.slow
def test_tensors_data_sets_and_loaders_train_the_same(case, tmp_path):
    net, given = case
    truth = trained(type(net), (given, Y), tmp_path, "tensors")
    sets = {"items": Samples(given), "loader": DataLoader(Samples(given), batch_size=8, shuffle=True)}
    if isinstance(given, dict):
        sets["columns"] = Columns(given)
    for name, data in sets.items():
        assert_same(weights(trained(type(net), data, tmp_path, name), type(net)), weights(truth, type(net)))
    again = locallearn.resume(truth.run_dir, model=made(type(net)), data=(given, Y), epochs=3)
    longer = trained(type(net), (given, Y), tmp_path, "longer", epochs=3)
    assert set(again.metrics) == set(longer.metrics)
    loaded = locallearn.load(truth.run_dir, model=(ours := made(type(net))))
    assert torch.equal(loaded(given), called(ours, given))


@pytest.mark.slow
def test_a_set_that_can_only_be_gone_through(tmp_path):
    parts = {"train": Stream(), "test": ((PICTURE, NUMBERS), Y)}
    result = trained(Both, parts, tmp_path, "passes")
    assert set(result.metrics) >= {"test/accuracy"}


@pytest.mark.slow
def test_two_processes_end_with_the_bits_of_one(case, tmp_path):
    net, given = case
    serial = trained(type(net), (given, Y), tmp_path, "serial")
    pipeline = trained(type(net), (given, Y), tmp_path, "pipeline", runtime="pipeline")
    assert_same(weights(pipeline, type(net)), weights(serial, type(net)))


@pytest.mark.slow
def test_a_run_is_tested_on_samples_of_its_kind_alone(tmp_path):
    given = CASES["by name"][1]
    result = trained(Words, (given, Y), tmp_path, "run")
    few = {**given, "ids": TOKENS.clamp(max=3)}
    assert locallearn.evaluate(result.run_dir, model=made(Words), data=(few, Y))["accuracy"] >= 0
    for data, why in (
        (({**given, "ids": TOKENS + 3}, Y), "trained on tokens below 7, but data=objects has the token 9"),
        (({**given, "mask": MASK.float()}, Y), "was trained on samples of several tensors"),
        ((NUMBERS, Y), "but those of data=objects are one tensor"),
    ):
        with pytest.raises(UserError, match=why):
            locallearn.evaluate(result.run_dir, model=made(Words), data=data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (((PICTURE, NUMBERS[:40]), Y), "the inputs of data"),
        ((((PICTURE * 9).to(torch.uint8), NUMBERS), Y), "pixels as floats that you have normalised"),
        ({"train": ((PICTURE, NUMBERS), Y), "test": (NUMBERS, Y)}, "a sample of the test part is one tensor"),
        (((PICTURE * float("nan"), NUMBERS), Y), "not finite"),
        (((PICTURE, NUMBERS), Y[:40]), "48 samples but 40 labels"),
        ({"train": Stream(), "test": ((PICTURE, NUMBERS, AGE), Y)}, "a sample of the test part is numbers"),
    ],
)
def test_data_that_cannot_be_are_one_sentence(data, why, tmp_path):
    with pytest.raises(UserError, match=why):
        trained(Both, data, tmp_path, "run")
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.slow
def test_a_model_of_one_tensor_is_refused(tmp_path):
    with pytest.raises(UserError, match="mlp reads one tensor, but a sample has 2"):
        locallearn.train(model="mlp", data=((PICTURE, NUMBERS), Y), out=str(tmp_path / "run"), **SETTINGS)
