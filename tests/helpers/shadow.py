"""An accelerator without a GPU: tensors on the device `shadow` are real numbers of the CPU under another name.

PyTorch takes it for a device of its own, so that whatever asks "not the CPU?" goes the way of a GPU, with the bits of a
CPU. Every operation is looked at: tensors of two devices in one raise `Mixed`, as on a GPU; where a GPU would make the
host wait (a number that is read, a copy to the host, one from it that blocks) the place is noted in `waits`; and draws
come from the generator of the device, which nobody else seeds.

It is registered once and for a whole process, before the first backward pass: PyTorch starts the threads of all devices
there. So tests run in a process of their own, which `process` gives them.
"""

from __future__ import annotations

import gc
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

from helpers import ROOT
from locallearn import accelerator

COUNT = 3
aten = torch.ops.aten
waits: list[str] = []
"""What the host would have waited for, and where, since `watched` began."""

READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
"""Their result, or its shape, depends on numbers that the host must see."""
OWN = ("silu_backward", "mish_backward", "native_channel_shuffle")
"""What PyTorch would compute in another way than on a CPU where a device has no kernel for it."""
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Mixed(RuntimeError):
    """Tensors, or a generator, of two devices in one operation."""


class Backend:
    """What stands in the place of `torch.cuda`: a module in all but name."""

    def __init__(self) -> None:
        self.default_generators = tuple(torch.Generator().manual_seed(100 + i) for i in range(COUNT))
        self.index = 0

    def init(self) -> None: ...

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return COUNT

    def current_device(self) -> int:
        return self.index

    def set_device(self, device: Any) -> None:
        self.index = device if isinstance(device, int) else torch.device(device).index

    def manual_seed_all(self, seed: int) -> None:
        for generator in self.default_generators:
            generator.manual_seed(seed)

    def get_rng_state(self, device: Any = "shadow") -> Tensor:
        return self.default_generators[_home(torch.device(device)).index].get_state()

    def set_rng_state(self, state: Tensor, device: Any = "shadow") -> None:
        self.default_generators[_home(torch.device(device)).index].set_state(state)

    def synchronize(self, device: Any = None) -> None:
        _note("synchronize")

    def get_device_name(self, device: Any = None) -> str:
        return "Shadow"

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(total_memory=1 << 34)

    def max_memory_allocated(self, device: Any = None) -> int:
        return 12345

    def empty_cache(self) -> None: ...

    def reset_peak_memory_stats(self, device: Any = None) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


backend = Backend()


class Shadow(Tensor):
    """A tensor on `shadow:INDEX`; `numbers` are its numbers."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> Shadow:
        facts = {"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype}
        made = Tensor._make_wrapper_subclass(cls, real.shape, device=device, **facts)
        made.numbers = real
        return made

    def __init__(self, real: Tensor, device: torch.device) -> None: ...

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"Shadow({self.numbers}, {self.device})"

    def untyped_storage(self) -> Any:
        return self.numbers.untyped_storage()

    def tolist(self) -> Any:
        _note("tolist")
        return self.numbers.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"{self.device} tensors have no numpy array")

    def __deepcopy__(self, memo: dict[int, Any]) -> Shadow:
        made = Shadow(self.numbers.clone(), self.device).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            made._is_param = True
        return memo.setdefault(id(self), made)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        parts = list(_leaves([args, *kwargs.values()]))
        here = next(part.device for part in parts if isinstance(part, Shadow))
        home = _home(kwargs.get("device") or here)
        if func in (aten.copy_.default, aten._to_copy.default):
            _look_at_copy(func, args, kwargs)
        else:
            _look(func, args, parts, here)
        named = {name: _bare(value) for name, value in kwargs.items()}
        if kwargs.get("device") is not None:
            named["device"] = torch.device("cpu")
        with _drawing(here) if _draws(func) else nullcontext():
            out = func(*map(_bare, args), **named)
        if home.type == "cpu" or (func is aten.copy_.default and not isinstance(args[0], Shadow)):
            return out
        if (place := _written(func)) is not None:
            return args[place]
        out = _worn(out, home)
        return return_and_correct_aliasing(func, args, kwargs, out) if _aliases(func) else out


def _leaves(parts: Any) -> Iterator[Any]:
    for part in parts:
        if isinstance(part, list | tuple):
            yield from _leaves(part)
        else:
            yield part


def _bare(value: Any) -> Any:
    """With the numbers of every Shadow in its place."""
    if isinstance(value, list | tuple):
        return [_bare(part) for part in value]
    return value.numbers if isinstance(value, Shadow) else value


def _worn(value: Any, device: torch.device) -> Any:
    """With a Shadow in the place of every tensor."""
    if isinstance(value, list | tuple):
        return type(value)([_worn(part, device) for part in value])
    return Shadow(value, device) if isinstance(value, Tensor) else value


@lru_cache
def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


@lru_cache
def _written(func: Any) -> int | None:
    """The place of the argument that it changes and returns, such as `self` of `add_`; PyTorch finds it anew each time,
    which takes half of the time of a step."""
    changed = [at for at, argument in enumerate(func._schema.arguments) if argument.alias_info and argument.is_write]
    alone = len(changed) == len(func._schema.returns) == 1 and not func._schema.arguments[changed[0]].kwarg_only
    return changed[0] if alone and torch.Tag.inplace_view not in func.tags else None


@lru_cache
def _aliases(func: Any) -> bool:
    """Whether it returns one of its arguments, or a view of it."""
    return any(returned.alias_info is not None for returned in func._schema.returns)


def _home(device: torch.device) -> torch.device:
    """With its index."""
    return torch.device("shadow", backend.index) if device.type == "shadow" and device.index is None else device


def _look(func: Any, args: Any, parts: list[Any], here: torch.device) -> None:
    """Refuse what a GPU would, and note what it would wait for. Numbers, tensors [] of the CPU, may go anywhere."""
    for part in parts:
        away = isinstance(part, Tensor) and part.device != here and not (part.device.type == "cpu" and part.dim() == 0)
        if away or isinstance(part, torch.Generator):
            raise Mixed(f"{func}: {part.device} beside {here} at {_place()}")
    masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)] if func in INDEXED else []
    if func in READS or masks:
        _note(str(func))


def _look_at_copy(func: Any, args: Any, kwargs: Any) -> None:
    """Note a copy between host and device that blocks."""
    source, target = args[0].device, _home(kwargs.get("device") or args[0].device)
    late = kwargs.get("non_blocking", False)
    if func is aten.copy_.default:
        source, target, late = args[1].device, args[0].device, late or any(args[2:])
    if "cpu" in (source.type, target.type) and not late:
        _note(f"{func} from {source} to {target}")


def _note(what: str) -> None:
    waits.append(f"{what} at {_place()}")


def _place() -> str:
    """The line of the project, or of a test, that is running."""
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT)) and f.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "a backward pass"


@contextmanager
def _drawing(device: torch.device) -> Iterator[None]:
    """PyTorch's global generator draws what that of the device would."""
    host, own = torch.default_generator, backend.default_generators[device.index]
    before = host.get_state()
    host.set_state(own.get_state())
    try:
        yield
    finally:
        own.set_state(host.get_state())
        host.set_state(before)


def _factory(func: Any) -> Callable[..., Shadow]:
    """Makes a tensor from no other."""

    def kernel(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Shadow:
        return Shadow(func(*args, device="cpu", **kwargs), _home(device))

    return kernel


def _never(*args: Any) -> None:
    raise AssertionError("a Shadow is unwrapped before")


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What `torch.tensor(..., device="shadow")` does in the end, which dispatches to no subclass."""
    _look_at_copy(aten.copy_.default, (target, source), {"non_blocking": non_blocking})
    a, b = (t.numbers if isinstance(t, Shadow) else t for t in (target, source))
    a.copy_(b)
    return target


def _data_of(tensor: Tensor, value: Tensor) -> None:
    """`tensor.data = value`; PyTorch knows how only within one kind of device, or between a CPU and a GPU."""
    if isinstance(tensor, Shadow) != isinstance(value, Shadow):
        torch.utils.swap_tensors(tensor, value)
        return
    if isinstance(tensor, Shadow):
        tensor.numbers = value.numbers
    _DATA.__set__(tensor, value)


_DATA = torch._C.TensorBase.data
_LIBRARY: list[Any] = []


def possible() -> bool:
    """Whether PyTorch has the hook, which is not public."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def register() -> None:
    """Make `shadow` a device of this process, and the kind that runs know."""
    backend_registration._setup_privateuseone_for_python_backend("shadow", backend)
    library = torch.library.Library("aten", "IMPL")
    for name in ("empty.memory_format", "empty_strided", "arange", "arange.start", "arange.start_step", "eye", "eye.m"):
        packet, _, overload = name.partition(".")
        library.impl(name, _factory(getattr(getattr(aten, packet), overload or "default")), "PrivateUse1")
    library.impl("_efficientzerotensor", _factory(aten.zeros.default), "PrivateUse1")  # of derivatives in forward mode
    for name in OWN:
        library.impl(name, _never, "PrivateUse1")
    library.impl("_copy_from", _copied, "PrivateUse1")
    autocast = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")  # under it nothing is rounded
    autocast.fallback(torch.library.fallthrough_kernel)
    _LIBRARY.extend([library, autocast])
    Tensor.pin_memory = lambda tensor, device=None: tensor.clone()
    Tensor.data = property(_DATA.__get__, _data_of)
    accelerator.KIND = "shadow"
    gc.freeze()  # a step makes many small objects: going through all modules again and again takes half of its time


@contextmanager
def watched() -> Iterator[list[str]]:
    """The places where the host waits meanwhile."""
    waits.clear()
    yield waits


@contextmanager
def process() -> Iterator[Callable[..., Any]]:
    """A process with the device, and what calls a function of a module there: (function, *arguments) -> its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), register) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()
