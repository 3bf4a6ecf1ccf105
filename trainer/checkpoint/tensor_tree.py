"""Nested Python values with tensors in them, as safetensors or JSON and back, bit for bit, without pickle.

JSON has no tuples, no integer keys and no tensors, and loses them silently. Here they carry a mark, so that an
optimizer's state comes back as the same Python object: types, key types, dtypes, bits and memory layout.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

Pieces = list[bytes | memoryview]  # of a file, one behind the other; the memory of tensors on the CPU is not copied
_DTYPES = {  # in the order in which safetensors lays them out
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_RANKS = {dtype: rank for rank, dtype in enumerate(_DTYPES)}
_TENSOR, _TUPLE, _PAIRS = "$tensor", "$tuple", "$pairs"


def encode_tensors(tensors: Mapping[str, Tensor]) -> Pieces:
    """A state dict as safetensors; tied and strided tensors are written out plainly."""
    return _as_safetensors(tensors, {})


def decode_tensors(data: bytes) -> dict[str, Tensor]:
    """The state dict, on the CPU."""
    return load(data)


def encode_tree(tree: Any) -> Pieces:
    """Any nesting of dicts, lists, tuples, scalars and tensors as one safetensors file.

    Raises:
        TypeError: a value of another type; the message names its place.
    """
    tensors: dict[str, Tensor] = {}
    described = json.dumps(_describe(tree, "", tensors))
    return _as_safetensors(tensors, {"__metadata__": {"tree": described}})


def decode_tree(data: bytes) -> Any:
    """What `encode_tree` was given; tensors on the CPU, with the strides they had."""
    (header_bytes,) = struct.unpack("<Q", data[:8])
    described = json.loads(data[8 : 8 + header_bytes])["__metadata__"]["tree"]
    return _rebuild(json.loads(described), load(data))


def dump_json(tree: Any) -> bytes:
    """Nested values without tensors as JSON that `parse_json` turns into the same object."""
    return (json.dumps(_describe(tree, "", None), indent=1) + "\n").encode()


def parse_json(data: bytes) -> Any:
    """What `dump_json` was given."""
    return _rebuild(json.loads(data), {})


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nesting, its containers made anew, with `change(tensor)` in the place of every tensor."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(item, change) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(item, change) for item in tree)
    return tree


def _describe(value: Any, place: str, tensors: dict[str, Tensor] | None) -> Any:
    if value is None or isinstance(value, bool | int | float | str):  # numpy.float64 is a float
        return value
    if isinstance(value, Tensor) and tensors is not None:
        name = place or "value"
        tensors[name] = value
        return {_TENSOR: name, "strides": list(value.stride())}
    if isinstance(value, list):
        return [_describe(item, _join(place, i), tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_TUPLE: [_describe(item, _join(place, i), tensors) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _describe(item, _join(place, key), tensors) for key, item in value.items()}
        return {_PAIRS: [[key, _describe(item, _join(place, key), tensors)] for key, item in value.items()]}
    raise TypeError(f"{place or 'value'}: a {type(value).__name__} cannot be saved without pickle; convert it first.")


def _rebuild(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_rebuild(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return _restride(tensors[value[_TENSOR]], value["strides"])
    if _TUPLE in value:
        return tuple(_rebuild(item, tensors) for item in value[_TUPLE])
    if _PAIRS in value:
        return {key: _rebuild(item, tensors) for key, item in value[_PAIRS]}
    return {key: _rebuild(item, tensors) for key, item in value.items()}


def _as_safetensors(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> Pieces:
    # What `safetensors.torch.save` gives, to the byte. That one makes three copies of it while it holds the
    # interpreter's lock: the training loop would stand still for all of them.
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    order = sorted(plain, key=lambda name: (_RANKS[plain[name].dtype], name))
    begin = 0
    for name in order:
        tensor, end = plain[name], begin + plain[name].nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [struct.pack("<Q", len(text)) + text, *(_bytes_of(plain[name]) for name in order)]


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _restride(tensor: Tensor, strides: list[int]) -> Tensor:
    # Fused optimizers compare the strides of a parameter and its moments, and refuse a pair that differs.
    if list(tensor.stride()) == strides:
        return tensor
    return torch.empty_strided(tensor.size(), strides, dtype=tensor.dtype).copy_(tensor)


def _join(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)
