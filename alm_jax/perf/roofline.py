"""The shortest time that a step can take on a chip: whichever of its three limits is reached first.

A roofline takes arithmetic, traffic to main memory and traffic between chips as overlapping
perfectly, so the real step is slower. Source: Williams et al., "Roofline", CACM 52(4), 2009.
"""

from __future__ import annotations

import dataclasses

from alm_jax.perf.chips import Chip
from alm_jax.perf.compiling import Compiled


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds of a step, in seconds.

    Attributes:
      compute_seconds: executed operations at the chip's peak.
      hbm_seconds: traffic to main memory at its bandwidth.
      link_seconds: traffic between chips, in a ring, over all links of a chip.
      network_seconds: all-reduce of what leaves a slice, over the data centre's network; 0 for one
        slice, None where the network's bandwidth is not known.
      step_seconds: the largest of them.
      bound_by: which one it is: "compute", "hbm", "link" or "network".
      clips_per_second_per_chip: at that time.
      mfu_bound: operations of the model by what the chips could do in that time; no step has more.
      compiler_seconds: the cycles that the compiler estimates for its instructions one after the
        other, without waiting for other chips; no bound, but nearer to what will be seen. None
        where machine code was not made.
    """

    compute_seconds: float
    hbm_seconds: float
    link_seconds: float
    network_seconds: float | None
    step_seconds: float
    bound_by: str
    clips_per_second_per_chip: float
    mfu_bound: float
    compiler_seconds: float | None


def roofline(
    compiled: Compiled,
    chip: Chip,
    *,
    chips: int,
    slices: int,
    batch_size: int,
    model_flops: int,
    executed_flops: int,
) -> Roofline:
    """Bounds of a compiled step.

    Args:
      compiled: the step, of one chip.
      chip: its figures.
      chips: how many there are.
      slices: how many slices they make.
      batch_size: global.
      model_flops: operations that the model needs, all chips together.
      executed_flops: operations that are executed, all chips together.
    """
    wire = sum(row["wire_bytes"] for row in compiled.collectives.values())
    # Across slices every chip sends its share of what its slice has summed: 2 (n - 1) / n of it.
    reduced = compiled.collectives.get("all-reduce", {"bytes": 0})["bytes"]
    crossing = 2 * (slices - 1) / slices * reduced * slices / chips
    bandwidth, cycles = chip.network_bandwidth, compiled.estimated_cycles
    limits: dict[str, float | None] = {
        "compute": executed_flops / chips / chip.flops,
        "hbm": compiled.hbm_traffic / chip.hbm_bandwidth,
        "link": wire / chip.link_bandwidth,
        "network": 0.0 if slices == 1 else crossing / bandwidth if bandwidth else None,
    }
    known = {name: seconds for name, seconds in limits.items() if seconds is not None}
    bound_by = max(known, key=known.__getitem__)
    seconds = known[bound_by]
    return Roofline(
        compute_seconds=known["compute"],
        hbm_seconds=known["hbm"],
        link_seconds=known["link"],
        network_seconds=limits["network"],
        step_seconds=seconds,
        bound_by=bound_by,
        clips_per_second_per_chip=batch_size / chips / seconds,
        mfu_bound=model_flops / (chips * chip.flops * seconds),
        compiler_seconds=None if cycles is None else cycles / chip.clock,
    )
