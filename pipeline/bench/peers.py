"""The networks of other projects, rebuilt layer by layer with random weights: a face costs the same whatever they have learned.

Their weights are not ours to ship, and need not be: speed is a matter of layers and sizes. They run on ONNX Runtime, which is
faster than what these projects run on (Keras; TensorFlow.js), so that the comparison errs in their favour.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FACE_API_SIDE: Final = 112
DEEPFACE_SIDE: Final = 224


class Peer(NamedTuple):
    """A network and what it costs."""

    model: bytes  # ONNX: float32 `image` (n, 3, side, side) in
    side: int
    parameters: int


class _Builder:
    """Strings layers together; each method gives the name of what it makes."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.parameters = 0

    def _weight(self, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = self._rng.random(shape, np.float32) - np.float32(0.5)
        self.parameters += values.size
        self.weights.append(numpy_helper.from_array(values * np.float32(fan_in**-0.5), f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output."""
        name = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def conv(self, x: str, taken: int, given: int, side: int, *, stride: int = 1, valid: bool = False) -> str:
        """Convolve, with bias."""
        return self.node(
            "Conv", x, self._weight(given, taken, side, side), self._weight(given), strides=[stride] * 2,
            auto_pad="VALID" if valid else "SAME_UPPER",
        )  # fmt: skip

    def separable(self, x: str, taken: int, given: int) -> str:
        """Convolve by channel, then across channels, with bias."""
        x = self.node("Conv", x, self._weight(taken, 1, 3, 3), group=taken, auto_pad="SAME_UPPER")
        return self.conv(x, taken, given, 1)

    def peer(self, side: int, *outputs: str) -> Peer:
        """Close the graph."""
        graph = helper.make_graph(
            self.nodes, "peer", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, side, side])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], self.weights,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return Peer(model.SerializeToString(), side, self.parameters)


def face_api() -> Peer:
    """Rebuild face-api.js' AgeGenderNet: TinyXception with two main blocks (src/xception/TinyXception.ts), and two heads."""
    b = _Builder()

    def reduction(x: str, taken: int, given: int, *, activated: bool = True) -> str:
        out = b.separable(b.node("Relu", x) if activated else x, taken, given)
        out = b.separable(b.node("Relu", out), given, given)
        out = b.node("MaxPool", out, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
        return b.node("Add", out, b.conv(x, taken, given, 1, stride=2))

    x = b.node("Relu", b.conv("image", 3, 32, 3, stride=2))
    x = reduction(x, 32, 64, activated=False)
    x = reduction(x, 64, 128)
    for _ in range(2):
        out = x
        for _ in range(3):
            out = b.separable(b.node("Relu", out), 128, 128)
        x = b.node("Add", out, x)
    x = reduction(x, 128, 256)
    x = b.node("Relu", b.separable(x, 256, 512))
    x = b.node("GlobalAveragePool", x)
    return b.peer(FACE_API_SIDE, b.conv(x, 512, 1, 1), b.conv(x, 512, 2, 1))


def deepface_vgg() -> Peer:
    """Rebuild one of deepface's attribute models: VGG-Face (VGG-16 as convolutions) with another last layer.

    deepface runs three of them on a face, for age (101 classes), gender (2) and race (6): deepface/models/demography.
    """
    b = _Builder()
    x, taken = "image", 3
    for block in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for given in block:
            x, taken = b.node("Relu", b.conv(x, taken, given, 3)), given
        x = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Relu", b.conv(x, 512, 4096, 7, valid=True))
    x = b.node("Relu", b.conv(x, 4096, 4096, 1))
    return b.peer(DEEPFACE_SIDE, b.conv(x, 4096, 101, 1))


def int8_product(side: int) -> bytes:
    """Make a matrix product of bytes, *side* x *side* each: what int8 arithmetic reaches where nothing is in its way."""
    weights = np.random.default_rng(0).integers(-127, 128, (side, side), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])], "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [side, side])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [side, side])], [numpy_helper.from_array(weights, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
