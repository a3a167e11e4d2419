"""A graph for onnxruntime: traced by PyTorch's exporter (`dynamo=True`), completed, simplified."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

OPSET = 20
PREFIX = "model."  # of the model's names in a graph
TRANSPOSED = ".T"  # behind the name of a weight [inputs, outputs]


def trace(
    function: Callable[..., Any],
    loaded: Any,
    weights: Weights | None,
    inputs: Mapping[str, Any],
    sizes: Mapping[str, str],
    outputs: list[str],
    path: Path,
) -> None:
    """Writes one graph.

    Args:
      function: of `inputs`, by name and in their order.
      loaded: the model whose parameters it uses.
      weights: the file beside `path` to which the graph refers; None: it holds its own weights.
      inputs: name -> example [B, ...].
      sizes: name of an input -> name of the size of its second axis, which is free as the batch is.
      outputs: names of what the function returns.
      path: the file.
    """
    import onnx_ir
    import torch

    from alm_jax.interop.onnx_stacks import complete_stacks, few_layers

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded

        def forward(self, *given: Any) -> Any:
            return function(*given)

    batch = torch.export.Dim("batch", min=1)
    free = {name: torch.export.Dim(name, min=1) for name in sizes.values()}
    shapes = tuple({0: batch} | ({1: free[sizes[n]]} if n in sizes else {}) for n in inputs)
    parameters = loaded.state_dict()
    with torch.inference_mode(), _undisturbed():
        with few_layers(loaded) as layers:
            program = torch.onnx.export(
                Graph().eval(),
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(shapes,),
                input_names=list(inputs),
                output_names=outputs,
                optimize=False,
                verbose=False,
            )
        assert program is not None
        model = program.model
        complete_stacks(model.graph, layers, parameters)
        _transpose_weights(model.graph)
        values = list(model.graph.initializers.values())
        _simplify(model)
        if weights is not None:
            weights.take(model.graph)
        onnx_ir.save(model, path)
    # The optimiser's rules remember the graph that they saw last, and with it the weights.
    for value in (*values, *model.graph.initializers.values()):
        value.const_value = None


class Weights:
    """Weights of all graphs of a model, each once, in a file beside them."""

    def __init__(self, path: Path, names: Iterable[str]):
        """An empty file.

        Args:
          path: where.
          names: of the model's parameters.
        """
        self.path = path
        self._names = {PREFIX + name for name in names}
        self._places: dict[str, tuple[int, int]] = {}  # name -> first byte, bytes

    def take(self, graph: Any) -> None:
        """Writes those weights of a graph that no other had, and has the graph refer to all."""
        import onnx_ir

        with self.path.open("ab") as file:
            for name, value in graph.initializers.items():
                if name.removesuffix(TRANSPOSED) not in self._names:
                    continue  # a constant of this graph
                if name not in self._places:
                    array = np.ascontiguousarray(value.const_value.numpy())
                    self._places[name] = file.tell(), array.nbytes
                    file.write(array.data)
                offset, size = self._places[name]
                value.const_value = onnx_ir.ExternalTensor(
                    self.path.name,
                    offset,
                    size,
                    value.dtype,
                    shape=value.shape,
                    name=name,
                    base_dir=self.path.parent,
                )


def _transpose_weights(graph: Any) -> None:
    """Stores weights [outputs, inputs] the way they are multiplied with, in place."""
    import onnx_ir

    for node in list(graph):
        if node.op_type != "Transpose" or "perm" not in node.attributes:
            continue
        weight, axes = node.inputs[0], list(node.attributes["perm"].as_ints())
        if axes == sorted(axes):  # the exporter's lookups have one
            node.outputs[0].replace_all_uses_with(weight)
            graph.remove(node, safe=True)
            continue
        if not weight.is_initializer() or axes != [1, 0]:
            continue
        name = f"{weight.name}{TRANSPOSED}"
        if name not in graph.initializers:
            tensor = onnx_ir.tensor(weight.const_value.numpy().T, name=name)
            shape = onnx_ir.Shape(tensor.shape.numpy())
            value = onnx_ir.Value(name=name, shape=shape, type=weight.type, const_value=tensor)
            graph.register_initializer(value)
        node.outputs[0].replace_all_uses_with(graph.initializers[name])
        graph.remove(node, safe=True)
        if not weight.uses():
            del graph.initializers[weight.name]


def _simplify(graph: Any) -> None:
    """Computes what is constant once and drops what is said twice, in place.

    `ONNXProgram.optimize` does this too, but then looks for its patterns at every node, some of
    them through the whole graph each time: half the seconds of an export, for rewritings that
    onnxruntime makes again when it opens the file.
    """
    import onnx_ir.passes.common as passes
    from onnx_ir.passes import Sequential
    from onnxscript.optimizer import fold_constants_ir

    passes.InlinePass()(graph)
    for node in list(graph.graph):
        # After a softmax, 0 for NaN, for rows that -inf masks altogether. The exporter masks with
        # the least float instead, so none is NaN, and to look takes a fifth of a tower's time.
        if node.op_type == "IsNaN" and node.inputs[0].producer().op_type == "Softmax":
            for user in node.outputs[0].consumers():
                user.outputs[0].replace_all_uses_with(node.inputs[0])
    fold_constants_ir(graph, onnx_shape_inference=True)
    Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.ClearMetadataAndDocStringPass(),  # where each node's code lies on this machine
    )(graph)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """The exporter undisturbed; its progress and its warnings are none of the user's business."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    gc.disable()  # would look again and again through what lives on: a seventh of the time
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        gc.enable()
