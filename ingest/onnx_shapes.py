"""A network of a fixed picture size, made one of any size.

YuNet's file says 640 x 640 for its input, and the sizes that follow from it for everything else. Its layers do not care: without
them ONNX Runtime works sizes out for each picture. The file is taken apart as the protocol buffer that it is (onnx.proto3 of
the ONNX project), so that the package onnx is not needed where cameras are watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

_GRAPH: Final = 7  # of a ModelProto
_INPUT, _OUTPUT, _VALUE_INFO = 11, 12, 13  # of a GraphProto
_TYPE, _TENSOR, _SHAPE = 2, 1, 2  # of a ValueInfoProto, its TypeProto, and its Tensor


class _Field(NamedTuple):
    number: int
    tag: bytes  # number and wire type, as they stand there
    body: bytes  # the value; without its length where it has one
    sized: bool  # whether it has


def with_free_shape(model: bytes) -> bytes:
    """Give *model* without the shapes of its inputs, outputs and values. Raises ValueError where it is no ONNX file."""

    def graph(data: bytes) -> bytes:
        kept = b"".join(_written(field) for field in _fields(data) if field.number != _VALUE_INFO)
        for number in (_INPUT, _OUTPUT):
            kept = _changed(kept, number, unshaped)
        return kept

    def unshaped(value: bytes) -> bytes:
        return _changed(value, _TYPE, lambda kind: _changed(kind, _TENSOR, without_shape))

    def without_shape(tensor: bytes) -> bytes:
        return b"".join(_written(field) for field in _fields(tensor) if field.number != _SHAPE)

    if not any(field.number == _GRAPH and field.sized for field in _fields(model)):
        raise ValueError("no graph in it")
    return _changed(model, _GRAPH, graph)


def _changed(message: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """Write *message* again with the fields *number* changed."""
    return b"".join(
        _written(field._replace(body=change(field.body)) if field.number == number and field.sized else field)
        for field in _fields(message)
    )


def _written(field: _Field) -> bytes:
    return field.tag + (_varint(len(field.body)) if field.sized else b"") + field.body


def _fields(message: bytes) -> Iterator[_Field]:
    """Read the fields of a message, in order. Raises ValueError where it is none."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        tag, wire = message[start:at], key & 7
        begin = at
        if wire == 0:
            _, at = _read_varint(message, at)
        elif wire in {1, 5}:
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, begin = _read_varint(message, at)
            at = begin + length
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(message):
            raise ValueError("it ends too early")
        yield _Field(key >> 3, tag, message[begin:at], wire == 2)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends too early")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("a number without end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
