"""Reads a compiled program: loops with their trip counts, collectives, and traffic to HBM.

XLA's own totals count the body of a loop once, however often it runs, and a stack of scanned layers
is a loop. This reader walks the optimised module from its entry and multiplies by the trip counts.

Traffic is what the top-level instructions (a fusion is one) read and write. Arrays that the
compiler has placed in on-chip memory (`S(1)` in their layout) cost nothing, a slice of a larger
array costs the slice, and arrays are as large as their tiles make them.

The syntax is that of `jax.stages.Compiled.as_text()`: XLA's HLO text.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_TILE = re.compile(r"T\(([\d,]+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)?)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
# Bookkeeping that moves nothing.
_FREE = frozenset(
    (
        *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "domain"),
        *("while", "conditional", "call", "after-all", "opt-barrier", "add-dependency"),
        *("partition-id", "replica-id", "get-dimension-size", "custom-call-done"),
        *("copy-done", "slice-done", "async-done", "async-update"),
    )
)
_SLICES = ("dynamic-slice", "slice", "gather")
_THROUGH = ("bitcast", "copy", "reshape", "transpose", "convert")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: its bytes as laid out in tiles, and whether it lies in main memory."""

    bytes: int
    in_hbm: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the program.

    Attributes:
      name: unique in its computation.
      opcode: as in HLO, "fusion" or "all-reduce-start".
      arrays: the leaves of its result.
      operands: names of instructions of the same computation.
      text: what follows the operands: attributes.
      literal: what stands between the parentheses.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    literal: str
    root: bool

    @property
    def called(self) -> list[str]:
        """Names of the computations it calls."""
        return [name for group in _CALLED.findall(self.text) for name in _NAME.findall(group)]

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute such as `body` names."""
        found = re.search(rf"\b{name}=%([\w.\-]+)", self.text)
        return found.group(1) if found else None


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of the program.

    Attributes:
      kind: a member of `COLLECTIVES`.
      times: how often it runs in a step.
      bytes: of its operands on one device, each time.
      group: devices that take part.
      wire_bytes: what one device sends each time with the ring algorithm.
    """

    kind: str
    times: int
    bytes: int
    group: int

    @property
    def wire_bytes(self) -> float:
        """What one device sends each time if the devices form a ring."""
        others = (self.group - 1) / max(self.group, 1)
        if self.kind == "all-reduce":
            return 2 * others * self.bytes
        if self.kind == "all-gather":
            return (self.group - 1) * self.bytes
        if self.kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
            return others * self.bytes
        return float(self.bytes)


class Program:
    """A module's computations, and what running its entry once costs one device."""

    def __init__(self, text: str):
        """Parses `Compiled.as_text()`."""
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._parse(text)
        if not self.entry:
            raise ValueError("the text has no ENTRY computation; it is no HLO module")

    def _parse(self, text: str) -> None:
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            if current is None:
                # `%name (parameters) -> result {`, at the start of a line.
                if line.endswith("{") and (line.startswith(("%", "ENTRY"))):
                    found = _NAME.search(line)
                    assert found is not None
                    current = self.computations.setdefault(found.group(1), {})
                    if line.startswith("ENTRY"):
                        self.entry = found.group(1)
            elif line.startswith("}"):
                current = None
            elif (instruction := _instruction(line)) is not None:
                for name in instruction.operands:
                    if "#" in name and name not in current:
                        current[name] = _element(name, current)
                current[instruction.name] = instruction

    def runs(self) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
        """Every instruction outside fusions, with its computation and how often it runs."""
        yield from self._runs(self.entry, 1)

    def _runs(
        self, name: str, times: int
    ) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield instruction, computation, times
            if instruction.opcode == "while":
                body = instruction.attribute("body")
                assert body is not None
                yield from self._runs(body, times * self.trip_count(instruction))
            elif instruction.opcode == "conditional":
                # One of the branches runs; the one that costs most is the bound.
                branches = [n for n in instruction.called if n in self.computations]
                yield from self._runs(max(branches, key=self._weight), times)
            elif instruction.opcode in ("call", "async-start"):
                for called in instruction.called:
                    yield from self._runs(called, times)

    def _weight(self, name: str) -> int:
        return sum(array.bytes for i in self.computations[name].values() for array in i.arrays)

    def trip_count(self, loop: Instruction) -> int:
        """How often a `while` runs; 1 where the program does not say.

        The compiler writes it into the loop's configuration, or the condition compares the counter,
        which starts at zero, with a constant.
        """
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(found.group(1))
        name = loop.attribute("condition")
        condition = self.computations.get(name or "", {})
        root = next((i for i in condition.values() if i.root), None)
        if root is not None and root.opcode == "fusion":
            # The comparison is fused: its constant is an operand, or lies inside.
            inner = self.computations[root.called[0]]
            root = next((i for i in inner.values() if i.root), None)
            condition = condition | inner
        if root is None or root.opcode != "compare":
            return 1
        constants = [i for i in condition.values() if i.opcode == "constant"]
        named = [i for i in constants if i.name in root.operands] or constants
        if len(named) != 1 or not named[0].literal.lstrip("-").isdigit():
            return 1
        limit = int(named[0].literal)
        return max(1, limit + ("direction=LE" in root.text))

    def collectives(self, devices: int) -> list[Collective]:
        """The collective operations, those inside fusions included.

        Args:
          devices: how many run the program, for groups that name none.
        """
        found = []
        for instruction, computation, times in self.runs():
            inner = [(instruction, computation)]
            if instruction.opcode in ("fusion", "custom-call"):
                inner = [
                    (i, self.computations[name])
                    for name in instruction.called
                    for i in self.computations.get(name, {}).values()
                ]
            for i, scope in inner:
                kind = i.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    size = sum(a.bytes for name in i.operands for a in scope[name].arrays)
                    found.append(Collective(kind, times, size, _group_size(i.text, devices)))
        return found

    def hbm_bytes(self) -> int:
        """Bytes that one device reads from and writes to its main memory in a step."""
        return sum(times * self._traffic(i, c, hbm=True) for i, c, times in self.runs())

    def operand_bytes(self) -> int:
        """Bytes of all operands and results of fusions, wherever they lie: a pessimistic bound."""
        return sum(times * self._traffic(i, c, hbm=False) for i, c, times in self.runs())

    def estimated_cycles(self) -> int:
        """Sum of the cycles that the TPU compiler notes beside its instructions; 0 elsewhere."""
        total = 0
        for instruction, _, times in self.runs():
            if cycles := re.search(r'"estimated_cycles":"(\d+)"', instruction.text):
                total += times * int(cycles.group(1))
        return total

    def traffic_by_instruction(self) -> list[tuple[int, int, Instruction]]:
        """(bytes in a step, runs, instruction), the largest first: where the traffic goes."""
        rows = [(times * self._traffic(i, c, hbm=True), times, i) for i, c, times in self.runs()]
        return sorted((row for row in rows if row[0]), key=lambda row: -row[0])

    def _traffic(
        self, instruction: Instruction, scope: dict[str, Instruction], *, hbm: bool
    ) -> int:
        op = instruction.opcode
        if op in _FREE or (op.endswith("-done") and op.removesuffix("-done") in COLLECTIVES):
            return 0

        def size(arrays: tuple[Array, ...]) -> int:
            return sum(a.bytes for a in arrays if a.in_hbm or not hbm)

        if op in ("copy-start", "slice-start", "async-start"):
            # The result holds source, destination and a context: what arrives is what was read.
            target = instruction.arrays[1:2]
            source = scope[instruction.operands[0]].arrays if instruction.operands else ()
            from_hbm = any(a.in_hbm or not hbm for a in source)
            return (target[0].bytes if from_hbm and target else 0) + size(target)
        written = [size((array,)) for array in instruction.arrays]
        if op in _SLICES:
            return 2 * sum(written)
        if op == "dynamic-update-slice":
            return 2 * size(scope[instruction.operands[1]].arrays)
        inner = self.computations.get(instruction.called[0], {}) if op == "fusion" else {}
        updated = _updates(inner) if inner else {}
        for place, (_, update) in updated.items():
            written[place] = update if written[place] else 0
        in_place = {target for target, _ in updated.values()}
        read = 0
        for number, name in enumerate(instruction.operands):
            arrays = scope[name].arrays
            if not size(arrays):
                continue
            if inner:
                read += 0 if number in in_place else _read(inner, number, size(arrays))
            else:
                read += size(arrays)
        return read + sum(written)


def _parameter(computation: dict[str, Instruction], number: int) -> Instruction | None:
    for instruction in computation.values():
        if instruction.opcode == "parameter" and instruction.literal == str(number):
            return instruction
    return None


def _read(computation: dict[str, Instruction], number: int, whole: int) -> int:
    """Bytes that a fusion reads of its operand `number`: its slices, if all it does is slice."""
    parameter = _parameter(computation, number)
    if parameter is None:
        return whole
    names, total = [parameter.name], 0
    while names:
        name = names.pop()
        for user in computation.values():
            if name not in user.operands:
                continue
            if user.opcode in _SLICES and user.operands[0] == name:
                total += sum(array.bytes for array in user.arrays)
            elif user.opcode == "bitcast":
                names.append(user.name)
            else:
                return whole
    return min(total, whole)


def _updates(computation: dict[str, Instruction]) -> dict[int, tuple[int, int]]:
    """Results of a fusion that are an operand with a slice replaced.

    Returns:
      result -> (number of the operand that is updated in place, bytes of the slice).
    """
    root = next(i for i in computation.values() if i.root)
    results = [computation[n] for n in root.operands] if root.opcode == "tuple" else [root]
    found = {}
    for place, result in enumerate(results):
        while result.opcode in _THROUGH:
            result = computation[result.operands[0]]
        if result.opcode != "dynamic-update-slice":
            continue
        target = computation[result.operands[0]]
        while target.opcode in _THROUGH:
            target = computation[target.operands[0]]
        if target.opcode == "parameter":
            update = computation[result.operands[1]]
            found[place] = (int(target.literal), sum(a.bytes for a in update.arrays))
    return found


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"unbalanced parentheses in HLO: {text[:200]}")


def _instruction(line: str) -> Instruction | None:
    """Parses `%name = shape opcode(operands), attributes`."""
    head, equals, rest = line.partition(" = ")
    if not equals or "%" not in head:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    literal = rest[opening + 1 : closing]
    return Instruction(
        name=head.rpartition("%")[2],
        opcode=rest[:opening],
        arrays=tuple(_array(*found) for found in _ARRAY.findall(shape)),
        operands=tuple(_OPERAND.findall(literal)),
        text=rest[closing + 1 :],
        literal=literal,
        root=head.lstrip().startswith("ROOT"),
    )


def _element(name: str, scope: dict[str, Instruction]) -> Instruction:
    """`%name#2`, which newer compilers write for a get-tuple-element of their own (JAX 0.12)."""
    whole, _, index = name.partition("#")
    arrays = scope[whole].arrays[int(index) : int(index) + 1]
    return Instruction(name, "get-tuple-element", arrays, (whole,), f", index={index}", "", False)


def _array(dtype: str, dims: str, layout: str) -> Array:
    sizes = [int(d) for d in dims.split(",") if d]
    order, _, rest = layout.partition(":")
    if (tile := _TILE.search(rest)) and sizes:
        # The minor-most dimensions are padded to whole tiles.
        minor = [int(d) for d in order.split(",")]
        for dimension, multiple in zip(minor, reversed(tile[1].split(",")), strict=False):
            sizes[dimension] = -(-sizes[dimension] // int(multiple)) * int(multiple)
    if dtype in _BITS:
        bits = _BITS[dtype]
    else:
        bits = int(re.sub(r"\D*(\d+).*", r"\1", dtype)) * (2 if dtype.startswith("c") else 1)
    space = _SPACE.search(rest)
    return Array(math.prod(sizes) * bits // 8, space is None or space[1] == "0")


def _group_size(text: str, devices: int) -> int:
    """Devices in one group of a collective, in any of the three ways that HLO writes groups."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota[2])
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(groups[1].split(","))
    return devices


def summary(collectives: list[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> how often in a step (`count`), `bytes` and `wire_bytes` of one device in a step."""
    rows: dict[str, dict[str, int]] = collections.defaultdict(
        lambda: {"count": 0, "bytes": 0, "wire_bytes": 0}
    )
    for one in collectives:
        row = rows[one.kind]
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["wire_bytes"] += round(one.times * one.wire_bytes)
    return dict(sorted(rows.items()))
