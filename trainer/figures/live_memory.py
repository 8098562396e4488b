"""The memory of a computation from the shapes of its tensors alone: nothing of size is allocated or computed."""

import weakref
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


aten = torch.ops.aten
TAKE_MASKS = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class LiveMemory(TorchDispatchMode):
    """
    A context in which tensors with fractions are fake: they have shapes and no values. What a layout is read off
    (token types, grids, masks, indices) is real and computed as ever, so that shapes which depend on it are known. The
    bytes of all that is alive are counted, also those that FSDP2 takes and frees.

    Attributes:
        fake (`FakeTensorMode`): in which the parameters have to be made.
        now, peak (`int`): bytes that are alive, and the most that were.
    """

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._resize = torch.UntypedStorage.resize_

    def count(self, tensor: torch.Tensor):
        """Counts a tensor that may have been made elsewhere."""
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        self._count(local.untyped_storage())

    def __enter__(self):
        def resize_and_count(storage, size):  # no operation that a mode sees
            self._resize(storage, size)
            if storage._cdata in self._sizes:
                self._count(storage)

        torch.UntypedStorage.resize_ = resize_and_count
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again with the local tensors
        tensors = _tensors((args, kwargs))
        if not tensors:
            output = self._made(func, args, kwargs)
        elif not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            output = func(*args, **kwargs)
        elif func is aten._local_scalar_dense.default:
            return 0  # nobody knows
        else:
            if func in TAKE_MASKS:
                args = _by_number(*args)
            with self.fake:
                output = (_grouped_product if func is aten._grouped_mm.default else func)(*args, **kwargs)
        for leaf in _tensors(output):
            self.count(leaf)
        return output

    def _made(self, func: Callable, args, kwargs):
        with self.fake:
            output = func(*args, **kwargs)
        return output if any(leaf.is_floating_point() for leaf in _tensors(output)) else func(*args, **kwargs)

    def _count(self, storage: torch.UntypedStorage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._forget, key)
        self.now += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int):
        self.now -= self._sizes.pop(key)


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _by_number(tensor: torch.Tensor, places: list[torch.Tensor | None], *rest) -> tuple:
    """Places that a mask marks, which is real, as their numbers: so it is known how many they are."""
    numbers = []
    for place in places:
        numbers += place.nonzero().unbind(-1) if place is not None and place.dtype == torch.bool else [place]
    return tensor, numbers, *rest


def _grouped_product(left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor, *_) -> torch.Tensor:
    """Of tokens and the experts' weights, or for each expert of tokens and tokens. torch's has bf16 only."""
    experts = (len(offsets),) if left.ndim == right.ndim == 2 else ()
    return left.new_empty(*experts, left.shape[-2], right.shape[-1])


__all__ = ["LiveMemory"]
