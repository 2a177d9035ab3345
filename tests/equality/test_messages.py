"""Messages between stages: every layout that strides can say arrives, and so do the bits of what reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from helpers import ROOT, TESTS
from helpers.message_worker import FAMILIES, learner_of, train
from helpers.nets import tiny_learner, tiny_model
from helpers.strategies import make
from locallearn.contract import Packet
from locallearn.errors import RunError
from locallearn.runtime.link import TARGETS
from locallearn.runtime.message import DTYPES, Signature, Slot, alike
from locallearn.runtime.replay import ReplayStage, _copy


def arrived(t: Tensor | None, message: torch.dtype | None = None) -> tuple[Tensor, int]:
    """What a tensor is on the other side, and how many numbers travelled."""
    signature = Signature.of([None, t], message)
    slot = Slot(torch.full((signature.size,), 255, dtype=torch.uint8))
    signature.write([None, t], slot)
    told = Signature.told(signature.text)
    assert told.size == signature.size
    nothing, found = received = told.empty(torch.device("cpu"))
    told.read(received, slot)
    assert nothing is None
    slot.memory.fill_(0)  # what has arrived lies in memory of its own
    return found, signature.size // (t.dtype if message is None or not t.is_floating_point() else message).itemsize


def assert_arrives(t: Tensor, most: int | None = None) -> Tensor:
    """With its values, type and strides, also those of dimensions of size 1; at most so many numbers travel."""
    found, count = arrived(t)
    assert torch.equal(found, t)
    assert (found.dtype, found.shape, found.stride()) == (t.dtype, t.shape, t.stride())
    assert count <= (t.numel() if most is None else most)
    return found


SIZES = [(2, 3, 4, 5), (2, 8, 1, 1), (1, 8, 1, 1), (2, 1, 4, 4), (2, 1, 1, 1), (1, 1, 1, 1), (2, 3, 1, 5), (2, 3, 5, 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_every_order_of_dimensions_arrives(size, order):
    t = torch.randn([size[i] for i in order]).permute([order.index(i) for i in range(4)])
    assert t.shape == size
    assert_arrives(t)
    for free in (1, 7, size[1], 1000):  # the stride of a dimension of size 1 is anybody's choice
        strides = [free if n == 1 else stride for n, stride in zip(t.shape, t.stride(), strict=True)]
        assert_arrives(torch.empty_strided(size, strides).copy_(t))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_what_pooling_and_its_gradient_give_arrives_and_convolves_to_the_same_bits(size, layout):
    """The gradient of a 1x1 map has the strides (C, 1, C, C)."""
    torch.manual_seed(0)
    h = torch.randn(size).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(16, size[1], 1, 1).contiguous(memory_format=layout)
    out = F.conv2d(F.adaptive_avg_pool2d(h, 1), weight)
    out.square().sum().backward()
    for t in (h, h.grad, out, h.grad[:, :1], h.grad.flatten(1), h.detach().mean((2, 3))):
        assert_arrives(t)
    a, b = F.conv2d(h.grad, weight), F.conv2d(assert_arrives(h.grad), weight)
    assert torch.equal(a, b)
    assert a.stride() == b.stride()


BASE = torch.arange(2 * 6 * 5 * 4, dtype=torch.float32).view(2, 6, 5, 4)
PARTS = {
    "expanded": (BASE[:, :, :1, :1].contiguous().expand(2, 6, 5, 4), 12),
    "expanded from nothing": (torch.tensor(3.0).expand(4, 5), 1),
    "a slice of the channels": (BASE[:, 1:4], 2 * 3 * 20),
    "every second channel": (BASE[:, ::2], 2 * 3 * 20),
    "a window of a map": (BASE[:, :, 1:3, 2:], 2 * 6 * 4),
    "one position": (BASE[:, :, 2, 1], 12),
    "a slice, expanded": (BASE[:, 1:3, :1, :1].expand(2, 2, 7, 3), 4),
    "transposed and sliced": (BASE.transpose(1, 3)[:, 1:3], 2 * 2 * 30),
    "one sample of many": (torch.randn(8, 3, 4, 4)[3:4], 48),
    "half a vector": (torch.randn(4, 10).chunk(2, dim=1)[1], 20),
    "windows over a signal": (torch.arange(10.0).unfold(0, 4, 1), 10),
    "a number": (torch.tensor(2.5), 1),
    "no sample": (torch.empty(0, 3, 4), 0),
    "no channel": (torch.empty(3, 0, 4), 0),
    "eight dimensions": (torch.randn(1, 2, 1, 2, 1, 2, 1, 2).permute(7, 6, 5, 4, 3, 2, 1, 0), 16),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_larger_tensors_arrive(name):
    """A slice keeps its gaps and an expansion its repetition, as the block above sees them in one process; neither
    travels."""
    assert_arrives(*PARTS[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_arrive(dtype):
    assert_arrives((torch.randn(4, 3) * 3).to(dtype).t())


@pytest.mark.parametrize("name", [*PARTS, "channels last"])
def test_halved_messages_keep_the_strides(name):
    t = PARTS[name][0] if name in PARTS else BASE.contiguous(memory_format=torch.channels_last)
    found, _ = arrived(t, torch.bfloat16)
    assert torch.equal(found, t.bfloat16().float())
    assert (found.dtype, found.stride()) == (t.dtype, t.stride())
    labels, _ = arrived(torch.arange(300), torch.bfloat16)
    assert torch.equal(labels, torch.arange(300)), "whole numbers are not rounded"


def test_what_cannot_travel_is_refused():
    with pytest.raises(RunError, match=r"not torch.complex64 \[1\]: choose runtime=serial"):
        Signature.of([torch.zeros(1, dtype=torch.complex64)], None)


def test_several_tensors_lie_side_by_side_and_only_like_messages_share_a_signature():
    message = [torch.rand(3), None, torch.rand(2, 5).t(), torch.tensor([True, False]), torch.empty(0, 7), torch.rand(9)]
    signature = Signature.of(message, None)
    slot = Slot(torch.zeros(signature.size, dtype=torch.uint8))
    signature.write(message, slot)
    received = signature.empty(torch.device("cpu"))
    signature.read(received, slot)
    for sent, found in zip(message, received, strict=True):
        assert (sent is None and found is None) or torch.equal(sent, found)
    assert all(place.start % 64 == 0 for place in signature.bytes)
    others = ([t] for t in (torch.rand(3, 4), torch.rand(4, 3), torch.rand(4, 3).t(), torch.rand(3, 4).double()))
    assert len({alike(one) for one in [*others, [None], [torch.rand(3, 4)]]}) == 5


@pytest.mark.parametrize("size", [(2, 8, 1, 1), (1, 8, 1, 1), (2, 1, 4, 4), (1, 1, 1, 1), (2, 3, 4, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_waits_in_a_buffer_keeps_its_strides(size, layout):
    """Also in a checkpoint and back."""
    model = tiny_model()
    learners = [tiny_learner(make("dgl"), model, stage=partial(ReplayStage, buffer=2, slow=None)) for _ in range(2)]
    channels = size[1]
    h = torch.randn(size).contiguous(memory_format=layout)
    alike = [h, h.as_strided(size, (channels, 1, channels, channels)) if h[0].numel() == channels else h]
    for k, t in enumerate(alike, 1):
        learners[0].stage.buffers[k].push(_copy(Packet(t, torch.zeros(size[0], dtype=torch.int64))), 0)
    state = {n: t.contiguous().clone() for n, t in learners[0].stage.state().items()}
    learners[1].stage.load_state(state)
    for k, t in enumerate(alike, 1):
        (found,) = learners[1].stage.buffers[k].waiting
        assert torch.equal(found.packet.h, t)
        assert found.packet.h.stride() == t.stride()


@pytest.fixture(scope="module", params=["ring", "gloo"])
def finished(request, tmp_path_factory) -> Path:
    """The folder in which two stages of every family have left their states."""
    folder = tmp_path_factory.mktemp("families")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{TESTS}"}
    command = [sys.executable, "-m", "helpers.message_worker"]
    stages = [subprocess.Popen([*command, str(rank), request.param, str(folder)], env=environment) for rank in range(2)]
    try:
        assert [stage.wait(600) for stage in stages] == [0, 0]
    finally:
        for stage in stages:
            stage.kill()
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("pipeline")
@pytest.mark.fault("R6")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_stages_of_every_family_end_as_one_process(family, channels_last, finished):
    """At 32x32 the maps of most become 1x1 on the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    serial = train(learner_of(family, channels_last), lowest=True)
    torch.set_num_threads(threads)
    states = [load_file(finished / f"{family}-{channels_last}-{rank}.safetensors") for rank in range(2)]
    joined = states[0] | states[1]
    expected = serial.state()
    assert joined.keys() == expected.keys()
    assert not [n for n, t in expected.items() if not torch.equal(t, joined[n])]


def test_targets_keep_their_bits_where_floats_travel_as_bfloat16():
    """A coordinate of a box above 256 has no bfloat16 of its own."""
    packet = [torch.tensor([300.3]), torch.tensor([[[0.0, 301.0, 17.3, 333.7, 40.1]]]), torch.tensor([301.0])]
    signature = Signature.of(packet, torch.bfloat16, whole=TARGETS)
    slot = Slot(torch.zeros(signature.size, dtype=torch.uint8))
    signature.write(packet, slot)
    told = Signature.told(signature.text)
    h, y, side = received = told.empty(torch.device("cpu"))
    told.read(received, slot)
    assert torch.equal(y, packet[1])
    assert torch.equal(h, packet[0].bfloat16().float())
    assert float(side) != 301
