"""Stacks of equal layers in a traced graph: PyTorch traces three, the others are copies of those.

PyTorch's exporter takes some 10 ms for every operation of a graph, so a stack of twelve or sixteen
layers would be most of the minute that an export may take. The layers of a stack differ in their
weights, and every other one may move its windows; so each further layer is a copy of the one two
before it, with its own weights. What comes out is compared with JAX like everything else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alm_jax.interop.onnx_tracing import PREFIX

if TYPE_CHECKING:  # of the extra `onnx`
    import onnx_ir as ir
    from torch import Tensor, nn

TRACED = 3  # the second and the third are copied: what enters them is another layer's output
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules that it comes from


@contextlib.contextmanager
def few_layers(model: nn.Module) -> Iterator[dict[str, int]]:
    """Shortens the stacks of a model for as long as it is traced.

    Yields:
      Name of a stack -> number of its layers, of those that are shortened.
    """
    from torch import nn

    stacks = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) > TRACED
    }
    for name, stack in stacks.items():
        model.set_submodule(name, stack[:TRACED])
    try:
        yield {name: len(stack) for name, stack in stacks.items()}
    finally:
        for name, stack in stacks.items():
            model.set_submodule(name, stack)


def complete_stacks(
    graph: ir.Graph, layers: Mapping[str, int], parameters: Mapping[str, Tensor]
) -> None:
    """Adds the layers that were not traced, in place.

    Args:
      graph: as PyTorch's exporter made it, within `few_layers`.
      layers: what `few_layers` gave; a stack that the graph does not compute is left out.
      parameters: of the whole model, by name.
    """
    for stack, count in layers.items():
        traced = [_nodes(graph, f"{PREFIX}{stack}.{layer}") for layer in range(TRACED)]
        if not traced[0]:
            continue
        # What leaves each layer; the last traced one's goes on to what comes after the stack.
        layered = {node for layer in traced for node in layer}
        after = [node for node in graph if node not in layered]
        leaves = [
            _handed(nodes, followers, graph)
            for nodes, followers in zip(traced, [*traced[1:], after], strict=True)
        ]
        last = leaves[-1]
        uses, state = list(last.uses()), last
        for layer in range(TRACED, count):
            source = 2 - layer % 2  # counted from 0: even layers are like the third
            names = f"{PREFIX}{stack}.{source}.", f"{PREFIX}{stack}.{layer}."
            known = {leaves[source - 1]: state}
            graph.extend(_copies(traced[source], known, names, parameters, graph))
            state = known[leaves[source]]
        for use in uses:
            use.node.replace_input_with(use.idx, state)
        for number, output in enumerate(graph.outputs):
            if output is last:
                state.name, last.name = last.name, state.name
                graph.outputs[number] = state
    graph.sort()


def _nodes(graph: ir.Graph, module: str) -> list[ir.Node]:
    return [node for node in graph if repr(module) in node.metadata_props.get(_SCOPES, "")]


def _handed(nodes: Sequence[ir.Node], followers: Sequence[ir.Node], graph: ir.Graph) -> ir.Value:
    """What `nodes` compute for `followers`; sizes and constants, which many share, do not count."""
    import onnx_ir as ir

    made = {
        value: None
        for node in nodes
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and node.op_type != "Constant"
    }
    taken = [value for node in followers for value in node.inputs if value in made]
    taken += [value for value in graph.outputs if value in made]
    (value,) = dict.fromkeys(taken)
    assert value is not None
    return value


def _copies(
    nodes: Sequence[ir.Node],
    known: dict[ir.Value, ir.Value],
    names: tuple[str, str],
    parameters: Mapping[str, Tensor],
    graph: ir.Graph,
) -> list[ir.Node]:
    """The nodes again, for another layer.

    Args:
      nodes: of a layer.
      known: a value -> its counterpart; those of weights and of what the nodes give are added.
      names: how the names of the layer's weights begin, and those of the other layer's.
      parameters: of the whole model.
      graph: gets the weights.
    """
    import onnx_ir as ir

    def counterpart(value: ir.Value | None) -> Any:
        if value is None or value in known:
            return value if value is None else known[value]
        name = str(value.name)
        if not name.startswith(names[0]) or name.removeprefix(PREFIX) not in parameters:
            return value
        other = name.replace(names[0], names[1], 1)
        weight = ir.tensor(parameters[other.removeprefix(PREFIX)], name=other)
        known[value] = ir.Value(name=other, shape=value.shape, type=value.type, const_value=weight)
        graph.register_initializer(known[value])
        return known[value]

    made = []
    for node in nodes:
        outputs = [ir.Value(shape=value.shape, type=value.type) for value in node.outputs]
        known |= dict(zip(node.outputs, outputs, strict=True))
        made.append(
            ir.Node(
                node.domain,
                node.op_type,
                [counterpart(value) for value in node.inputs],
                node.attributes.values(),
                overload=node.overload,
                outputs=outputs,
                version=node.version,
            )
        )
    return made
