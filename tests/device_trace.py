"""A step on the CPU, watched as if it ran on a GPU: what would lie there, and where the host would wait for it.

Storages that come through `core.transfer.upload`, and factories that name a device, are marked as the device's, and so
is all that is computed from them. What is made in C++ without an input (buckets of DDP, say) takes the side of what it
first meets; everything else is the host's. Red is what would fail on a GPU or wait for it: an operation on tensors of
both sides (but for 0-dim constants), a value or a shape read from the device's tensors, a copy by another way.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Side = Literal["device", "host", "either"]
FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros")
COPYING = ("tensor", "as_tensor", "asarray")  # of values: with a device, they copy and wait
READING = ("numpy", "tolist", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__", "item")
COLLECTIVE = ("all_gather_into_tensor", "all_reduce", "broadcast", "reduce_scatter_tensor")
ROOT = Path(__file__).resolve().parent.parent
_OUTSIDE = ("tests/device_trace.py", ".venv")


class DeviceTrace(TorchDispatchMode):
    """Marks storages while it is entered; writes down what is red while `is_watching`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_watching = False
        self.reds: list[str] = []
        self.num_operations = 0  # on the device's tensors, while watching
        self._sides: dict[int, Side] = {}
        self._kept: list[Any] = []  # storages that are marked, so that no other one takes their place in memory
        self._made_as: Side | None = None  # by the factory that is at work
        self._unknown: Side = "host"  # what is taken of storages that nobody has seen being made
        self._patches = ExitStack()

    def __enter__(self) -> DeviceTrace:
        self._patch()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def mark(self, tensor: Tensor, side: Side) -> Tensor:
        """Put a tensor's storage on a side."""
        storage = tensor.untyped_storage()
        self._sides[storage._cdata] = side
        self._kept.append(storage)
        return tensor

    def side(self, tensor: Tensor) -> Side:
        return self._sides.get(tensor.untyped_storage()._cdata, self._unknown)

    def red(self, what: str) -> None:
        """Note where the product does it."""
        if self.is_watching:
            frames = [f for f in traceback.extract_stack() if str(ROOT) in f.filename]
            ours = [f for f in frames if not any(part in f.filename for part in _OUTSIDE)]
            place = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "?"
            self.reds.append(f"{what} at {place}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        self._judge(func, given, args)
        results = func(*args, **(kwargs or {}))
        side = self._side_of(given)
        for tensor in [*tree_leaves(results), *given]:
            if isinstance(tensor, Tensor) and self._is_open(tensor):
                self.mark(tensor, side)
        return results

    def _judge(self, func: Any, given: list[Tensor], args: Any) -> None:
        on_device = [x for x in given if self.side(x) == "device"]
        if not on_device:
            return
        self.num_operations += self.is_watching
        if any(self.side(x) == "host" and x.ndim for x in given):
            self.red(f"{func} of the device's and the host's tensors")
        reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if func is torch.ops.aten.index.Tensor:  # its shape depends on values only where a mask indexes
            reads = {x for x in tree_leaves(args[1]) if isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)}
        if reads:
            self.red(f"{func} reads the device's tensor")

    def _side_of(self, given: list[Tensor]) -> Side:
        sides = {self.side(x) for x in given if x.ndim or len(given) == 1} or {self.side(x) for x in given}
        if not given:
            return self._made_as or "either"
        return "device" if "device" in sides else "host" if "host" in sides else "either"

    def _is_open(self, tensor: Tensor) -> bool:
        """Whether its storage is new, or has not taken a side yet."""
        return self._sides.get(tensor.untyped_storage()._cdata, "either") == "either"

    def _patch(self) -> None:
        def patch(owner: Any, name: str, value: Any) -> None:
            self._patches.enter_context(mock.patch.object(owner, name, value))

        import core.transfer

        patch(core.transfer, "_sent", lambda x, device: self.mark(self._copy(x), "device"))
        patch(core.transfer, "_fetched", lambda x: (self.mark(self._copy(x), "host"), None))
        for name in (*FACTORIES, *COPYING):
            patch(torch, name, self._making(getattr(torch, name), name in COPYING))
        for name in READING:
            patch(Tensor, name, self._reading(getattr(Tensor, name), name))
        patch(Tensor, "to", self._moving(Tensor.to))
        for name in COLLECTIVE:
            patch(torch.distributed, name, self._collective(getattr(torch.distributed, name)))

    def _collective(self, act: Callable) -> Callable:
        def acts(*args: Any, **kwargs: Any) -> Any:
            self._unknown = "either"  # gloo has buffers of its own, as NCCL has on the device
            try:
                return act(*args, **kwargs)
            finally:
                self._unknown = "host"

        return acts

    def _copy(self, x: Tensor) -> Tensor:
        was, self.is_watching = self.is_watching, False
        try:
            return x.detach().clone()
        finally:
            self.is_watching = was

    def _making(self, make: Callable, copies: bool) -> Callable:
        def made(*args: Any, **kwargs: Any) -> Any:
            named = kwargs.get("device") is not None
            if named and copies and not any(isinstance(x, Tensor) and self.side(x) == "device" for x in args):
                self.red(f"torch.{make.__name__} copies to the device")
            outer, self._made_as = self._made_as, "device" if named else "host"
            try:
                result = make(*args, **kwargs)
            finally:
                self._made_as = outer
            if named and isinstance(result, Tensor) and not any(result is x for x in args):
                self.mark(result, "device")
            return result

        return made

    def _reading(self, read: Callable, name: str) -> Callable:
        def reads(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.side(tensor) == "device":
                self.red(f".{name}() of the device's tensor")
            return read(tensor, *args, **kwargs)

        return reads

    def _moving(self, move: Callable) -> Callable:
        def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            wanted = [x for x in (*args, *kwargs.values()) if isinstance(x, (torch.device, str))]
            if wanted and self.side(tensor) == "host":
                self.red(".to(device) of the host's tensor")
            return move(tensor, *args, **kwargs)

        return moved


def watch_training(trace: DeviceTrace) -> None:
    """Plant: runs are traced, and watched in the loop but for thaws, log lines, validations, saves, ends of epochs."""
    from trainer.run.run import Run

    def paused(act: Callable) -> Callable:
        def acts(*args: Any, **kwargs: Any) -> Any:
            was, trace.is_watching = trace.is_watching, False
            try:
                return act(*args, **kwargs)
            finally:
                trace.is_watching = was

        return acts

    def batches(run: Run) -> Iterator[Any]:
        _mark_holders(trace, run)
        trace.is_watching = True
        yield from real_batches(run)
        trace.is_watching = False

    real_batches = Run.batches
    Run.batches = batches  # type: ignore[method-assign]
    for name in ("thaw", "log", "evaluate", "save", "account", "leave", "finish"):
        setattr(Run, name, paused(getattr(Run, name)))


def _mark_holders(trace: DeviceTrace, run: Any) -> None:
    """What `open_run` put on the device: weights, averages, moments, what the objective keeps."""
    holders = run.holders
    modules = [holders.model, *([holders.averaged.module] if holders.averaged else [])]
    state = [*holders.optimizer.state_dict()["state"].values(), holders.objective_state]
    for leaf in [*tree_leaves(state), *(x for module in modules for x in (*module.parameters(), *module.buffers()))]:
        if isinstance(leaf, Tensor):
            trace.mark(leaf, "device")


@contextmanager
def traced() -> Iterator[DeviceTrace]:
    """A run that is opened and trained inside is traced."""
    trace = DeviceTrace()
    watch_training(trace)
    with trace:
        yield trace
