"""What one device of each kind can do: the only place where hardware figures stand.

Sources, as of 2026: Google Cloud TPU documentation, pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU
v6e". `hbm_bytes` is what the compiler says is left for a program (libtpu 0.0.42.1,
from the message of a program that does not fit), a little less than the capacity in the documents:
32, 16, 95 and 32 GiB. Interconnect bandwidth is one way, all links of a chip together;
the documents give v4 and v5e in Gbit/s (2400, 1600) and the newer pages both ways (v5e 400, v5p
1200, v6e 800 GB/s). The network between slices is a pod's figure divided by its chips
(v5e 6.4 and v6e 25.6 Tbit/s by 256) or stated by chip (v5p 50 Gbit/s).
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device: a whole chip.

    Attributes:
      name: as in `--topology`.
      hbm_bytes: of main memory that a program may take.
      flops: bfloat16 matrix products with float32 sums, operations a second at most.
      hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second to the other chips of a slice, one way, all links.
      network_bandwidth: bytes a second to other slices, one way; None where nobody states it.
      clock: cycles a second: `flops` by what its matrix units do in a cycle (v4 and v5p eight of
        128 x 128, v5e four, v6e four of 256 x 256).
      options: what the topology's description needs so that a device is a whole chip.
    """

    name: str
    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float | None
    clock: float
    options: tuple[tuple[str, str], ...] = ()


CHIPS = {
    chip.name: chip
    for chip in (
        # The two cores of a v4 share their memory when they work as one, "megacore".
        Chip(
            "v4",
            int(30.75 * GIB),
            275e12,
            1228e9,
            300e9,
            None,
            1.05e9,
            (("chip_config_name", "megacore"),),
        ),
        Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, 3.125e9, 1.5e9),
        Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 600e9, 6.25e9, 1.75e9),
        Chip("v6e", int(31.25 * GIB), 918e12, 1640e9, 400e9, 12.5e9, 1.75e9),
    )
}
