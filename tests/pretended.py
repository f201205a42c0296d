"""A card that is not there: code runs on the CPU, and every tensor knows whether it would lie on the card.

For machines without CUDA. Under `pretended_card`, `torch.device("cuda:0")` is answered by ordinary tensors whose
storage is marked. An operation on a marked and an unmarked tensor raises what CUDA would raise, so does a draw with a
generator of the other device, and what makes the host wait for the card (`item`, boolean indices, copies to the host)
is written down with the functions that asked for it. Numbers are the CPU's own: a run on the pretended card must end as
one on the CPU does. What it cannot show: kernels of the card, their memory and their speed.
"""

import contextlib
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.utils.checkpoint
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

import bayesarch

CARD = torch.device("cuda", 0)
HOST = torch.device("cpu")
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal"}
"""Operations whose result has a size or a value that the host needs."""

MOVES = {"aten::copy_", "aten::_to_copy", "aten::set_"}
STAGED = 2**16
"""Bytes up to which a copy from memory that is not pinned is staged at once; a larger one waits for its turn."""

SOURCE = str(Path(bayesarch.__file__).parent)


def leaves(value) -> Iterator:
    """Yield what lies in lists, tuples and dicts; torch's own way is several times as slow, and is what counts here."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    else:
        yield value


class Wait(NamedTuple):
    """What made the host wait for the card, and the functions of ours that asked for it, the innermost first."""

    what: str
    asked_by: tuple[str, ...]


class Generator(torch.Generator):
    """A generator that says where it lives."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, device="cpu")
        made.lives = torch.device(device)
        return made

    @property
    def device(self):
        return self.lives


class Marks:
    """Which storages lie on the card, which on the host; what is not in here takes sides with what it meets."""

    kept: ClassVar[dict[int, tuple[StorageWeakRef, torch.device]]] = {}  # of all blocks: caches of ours live on

    def __init__(self):
        self.waits: list[Wait] = []
        self.pinned: set[int] = set()
        self.capturing = None
        """The CUDA graph that is being captured (`captured.py`): nothing may wait then."""

    def __getitem__(self, tensor) -> torch.device | None:
        ref, device = self.kept.get(tensor.untyped_storage()._cdata, (None, None))
        return None if ref is None or ref.expired() else device

    def put(self, tensor, device) -> None:
        storage = tensor.untyped_storage()
        if len(self.kept) > 20_000:
            for key in [key for key, (ref, _) in self.kept.items() if ref.expired()]:
                del self.kept[key]
        self.kept[storage._cdata] = (StorageWeakRef(storage), device)

    def waited(self, what: str) -> None:
        """Write down the functions of ours that made the host wait."""
        if self.capturing:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        frames = (frame for frame, _ in traceback.walk_stack(None))
        ours = [f.f_code for f in frames if f.f_code.co_filename.startswith(SOURCE)]
        self.waits.append(Wait(what, tuple(code.co_qualname for code in ours)))


class Watching(TorchDispatchMode):
    """Sees every operation."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here; torch would ask its compiler at every operation."""
        return False


class Operations(Watching):
    """Every operation, those of a backward pass too: its tensors must lie on one device."""

    def __init__(self, marks: Marks):
        super().__init__()
        self.marks = marks

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [t for t in leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        found = {self.marks[t] for t in tensors if t.ndim or len(tensors) == 1} - {None}
        if name in {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}:
            found = {self.marks[args[0]]} - {None}  # indices may lie on the host
            if CARD in found and any(t is not None and t.dtype == torch.bool for t in args[1]):
                self.marks.waited("a boolean index")
            if CARD in found and any(t is not None and self.marks[t] != CARD for t in args[1]):
                self.marks.waited("an index from the host")
        if len(found) > 1 and name not in MOVES:
            where = [f"{tuple(t.shape)} on {self.marks[t]}" for t in tensors]
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {', '.join(where)}")
        crossing = name == "aten::copy_" and None not in self.copied(args) and len({*self.copied(args)}) == 2
        ahead = crossing and self.copied(args)[0] == CARD and args[2:] == (True,) and not self.marks.capturing
        if (name in WAITS and CARD in found) or (crossing and not ahead):
            self.marks.waited(name)
        if name == "aten::repeat_interleave" and CARD in found and kwargs.get("output_size") is None:
            self.marks.waited(name)
        scalars = {self.marks[t] for t in tensors} - {None}
        result = func(*args, **kwargs)
        device = self.marks[args[0]] if name in MOVES and args else next(iter(found or scalars), None)
        for out in leaves(result):
            if isinstance(out, torch.Tensor) and device is not None and self.marks[out] is None:
                self.marks.put(out, device)
        return result

    def copied(self, args):
        """Return where a copy goes and where it comes from."""
        return self.marks[args[0]], self.marks[args[1]]


@cache
def name_of(func) -> str:
    """Return the name of what was called, with where it is from."""
    return resolve_name(func) or getattr(func, "__name__", str(func))


@cache
def short_of(name: str) -> str:
    """Return the last part of a function's or property's name."""
    return name.removesuffix(".__get__").removesuffix(".__set__").rsplit(".", 1)[-1]


class Calls(TorchFunctionMode):
    """Every call from Python: where it wants its result."""

    def __init__(self, marks: Marks):
        super().__init__()
        self.marks = marks

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = name_of(func)
        short = short_of(name)
        if short in {"device", "is_cuda", "is_cpu"} and args and name.endswith("__get__"):
            device = self.marks[args[0]] or HOST
            return {"device": device, "is_cuda": device.type == "cuda", "is_cpu": device.type == "cpu"}[short]
        if short in {"numpy", "__array__"} and self.marks[args[0]] == CARD:
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
        if short == "tolist" and self.marks[args[0]] == CARD:
            self.marks.waited("tolist")
        if short == "pin_memory":
            pinned = args[0].clone()
            self.marks.put(pinned, HOST)
            self.marks.pinned.add(pinned.untyped_storage()._cdata)
            return pinned
        if short in {"to", "cpu", "cuda"} and args and isinstance(args[0], torch.Tensor):
            return self.moved(short, args, kwargs)
        return self.made(func, name, args, kwargs)

    def moved(self, short, args, kwargs):
        """Answer `to`, `cpu` and `cuda`: a copy where the device changes."""
        tensor, here = args[0], self.marks[args[0]] or HOST
        like = [value for value in args[1:] if isinstance(value, torch.Tensor)]
        words = {key: value for key, value in kwargs.items() if key not in {"device", "non_blocking", "copy"}}
        typed = [value for value in args[1:] if isinstance(value, (torch.dtype, torch.Tensor))]
        if typed:
            words["dtype"] = getattr(typed[0], "dtype", typed[0])
        named = [value for value in (*args[1:], kwargs.get("device")) if isinstance(value, (str, torch.device))]
        target = {"cpu": HOST, "cuda": CARD}.get(short, here)
        if named or like:
            target = torch.device(named[0]) if named else self.marks[like[0]] or HOST
        out = torch.Tensor.to(tensor, **words) if words else tensor
        if target.type == here.type and not kwargs.get("copy"):
            return out
        if here == CARD and target.type != here.type:
            self.marks.waited("a copy to the host")
        small = tensor.nbytes <= STAGED or tensor.untyped_storage()._cdata in self.marks.pinned
        ahead = kwargs.get("non_blocking") and small
        # a captured copy would read the host's memory at each replay, when it is long gone
        if here == HOST and target.type != here.type and (self.marks.capturing or not ahead):
            self.marks.waited("a copy to the card")
        out = out.clone() if out.untyped_storage()._cdata == tensor.untyped_storage()._cdata else out
        self.marks.put(out, CARD if target.type == "cuda" else HOST)
        return out

    def made(self, func, name, args, kwargs):
        """Make what is asked for on the CPU, and mark it."""
        asked = kwargs.get("device")
        device = None if asked is None else CARD if torch.device(asked).type == "cuda" else HOST
        if asked is not None:
            kwargs["device"] = HOST
        flat = list(leaves((args, kwargs)))
        given = any(isinstance(t, torch.Tensor) for t in flat)
        generator = next((g for g in flat if isinstance(g, torch.Generator)), None)
        graph = self.marks.capturing
        if graph and generator is not None and generator.device.type == "cuda" and generator not in graph.streams:
            raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")
        result = func(*args, **kwargs)
        if device == CARD and short_of(name) in {"tensor", "as_tensor", "asarray", "new_tensor"}:
            self.marks.waited("numbers made a tensor of the card")
        for out in leaves(result):
            if not isinstance(out, torch.Tensor):
                continue
            if device is not None:
                self.marks.put(out, device)
            elif name.endswith("__deepcopy__"):
                self.marks.put(out, self.marks[args[0]] or HOST)
            elif not given and self.marks[out] is None:
                self.marks.put(out, HOST)
            if generator is not None and (self.marks[out] or HOST).type != generator.device.type:
                raise RuntimeError(f"Expected a '{self.marks[out] or HOST}' generator but found '{generator.device}'")
        return result


@contextlib.contextmanager
def pretended_card(monkeypatch) -> Iterator[Marks]:
    """Run a block on a machine that seems to have a card; gives what made the host wait."""
    marks = Marks()
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "pretended")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, **words: autocast("cpu", **words))
    parse = torch._C._nn._parse_to

    def parse_to(*args, **kwargs):  # of `module.to(tensor)`, which asks the tensor below Python
        with torch._C.DisableTorchFunction():
            device, *rest = parse(*args, **kwargs)
        return (marks[args[0]] or device if args and isinstance(args[0], torch.Tensor) else device, *rest)

    monkeypatch.setattr(torch._C._nn, "_parse_to", parse_to)
    grouped = torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype

    def group(lists):  # likewise; nothing here is clipped on two devices at once
        return {(marks[lists[0][0]] or HOST, dtype): kept for (_, dtype), kept in grouped(lists).items()}

    monkeypatch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", group)
    # what is computed twice is compared by where it lies, which is asked below Python the second time
    known = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    monkeypatch.setitem(known, "default", lambda tensor: (tensor.shape, tensor.dtype))
    with Operations(marks), Calls(marks):
        yield marks
