"""Plans as text: one in full, and several side by side."""

from __future__ import annotations

from ml_collections import ConfigDict

from alm_jax.perf.chips import GIB
from alm_jax.perf.planning import Plan


def size(value: float) -> str:
    """Bytes in GiB, or MiB where those are few."""
    return f"{value / GIB:.2f} GiB" if value >= GIB / 10 else f"{value / 2**20:.2f} MiB"


def describe(plan: Plan, config: ConfigDict) -> str:
    """A plan for a person; `config` is the one it was made of."""
    s = plan.state
    mesh = " x ".join(f"{axis}={count}" for axis, count in plan.mesh.items())
    lines = [
        f"{plan.config} on {plan.topology}: {plan.chips} devices"
        + (f" in {plan.slices} slices" if plan.slices > 1 else "")
        + f", mesh {mesh}, batch {plan.batch_size} ({plan.batch_size / plan.chips:g} a device)",
        "",
        f"parameters    {s.parameters / 1e6:10.2f} M",
        "",
        "memory of one device",
        f"  parameters  {size(s.parameter_bytes):>14}",
        f"  optimiser   {size(s.optimizer_bytes):>14}",
        f"  other state {size(s.other_bytes):>14}",
        f"  batch       {size(s.batch_bytes):>14}",
    ]
    lines.append(f"  activations {size(plan.compiled.temporaries):>14}  (temporaries of the step)")
    if plan.compiled.program is not None:
        lines.append(f"  program     {size(plan.compiled.program):>14}")
    lines.append(f"  peak        {size(plan.needed):>14}" + _of_capacity(plan))
    lines += ["", f"FLOPs of the model  {plan.flops:.4g} a step, {_per_clip(plan):.4g} a clip"]
    if plan.executed_flops != plan.flops:
        ratio = plan.executed_flops / plan.flops
        lines.append(
            f"FLOPs executed      {plan.executed_flops:.4g}, {ratio:.2f} times as many (what remat"
            " repeats, passes of float32 products)"
        )
    lines += ["", *_collectives(plan)]
    lines += ["", *_bounds(plan)] if plan.roofline else []
    lines += ["", *_largest(plan)] if plan.largest_batch else []
    lines += ["", *advice(plan, config)] if not plan.fits else []
    return "\n".join(lines)


def _per_clip(plan: Plan) -> float:
    return plan.flops / plan.batch_size


def _of_capacity(plan: Plan) -> str:
    if plan.hbm_capacity is None:
        return "  (simulated devices: nothing limits it)"
    share = plan.needed / plan.hbm_capacity
    text = f"  = {share:.0%} of {size(plan.hbm_capacity)}"
    if not plan.fits:
        text += f": does not fit, {size(plan.needed - plan.hbm_capacity)} too much"
    return text


def _collectives(plan: Plan) -> list[str]:
    if not plan.compiled.collectives:
        return ["collectives: none"]
    lines = ["collectives of one device     count           bytes       sent (ring)"]
    for kind, row in plan.compiled.collectives.items():
        lines.append(f"  {kind:<24}{row['count']:>9,}{row['bytes']:>16,}{row['wire_bytes']:>18,}")
    return lines


def _bounds(plan: Plan) -> list[str]:
    r, compiled = plan.roofline, plan.compiled
    assert r is not None
    network = "unknown" if r.network_seconds is None else f"{1e3 * r.network_seconds:.1f} ms"
    lines = [
        "roofline (a step takes no less than the longest of these)",
        f"  compute     {1e3 * r.compute_seconds:10.1f} ms",
        f"  HBM         {1e3 * r.hbm_seconds:10.1f} ms  ({compiled.hbm_traffic / 1e9:.1f} GB)",
        f"  chip links  {1e3 * r.link_seconds:10.1f} ms",
    ]
    if plan.slices > 1:
        lines.append(f"  network     {network:>13}")
    lines += [
        f"  step        {1e3 * r.step_seconds:10.1f} ms  bound by {r.bound_by}:"
        f" {r.clips_per_second_per_chip:.0f} clips/s a chip, MFU at most {r.mfu_bound:.2f}",
    ]
    if r.compiler_seconds is not None:
        lines.append(
            f"the compiler's own estimate, one instruction after the other:"
            f" {1e3 * r.compiler_seconds:.1f} ms"
        )
    return lines


def _largest(plan: Plan) -> list[str]:
    best = plan.largest_batch
    assert best is not None
    if not best.batch_size:
        return ["largest batch: none fits; the state alone is too large"]
    text = (
        f"largest batch that fits: {best.batch_size} ({best.batch_size / plan.chips:g} a device,"
        f" {size(best.needed)}"
    )
    if best.too_large is not None:
        text += f"; {best.too_large} does not fit"
    return [text + ")"]


def advice(plan: Plan, config: ConfigDict) -> list[str]:
    """What to change so that the step fits, the cheapest first; every line is a valid command."""
    lines = ["to make it fit, any of"]
    rows = plan.mesh["data"] * plan.mesh["fsdp"]
    best = plan.largest_batch
    half = plan.batch_size // 2 // rows * rows
    if best is not None and best.batch_size:
        lines.append(f"  --config.data.batch_size={best.batch_size}: a smaller batch")
    elif half:
        lines.append(f"  --config.data.batch_size={half}: half of the batch")
    parts = 2 * config.train.get("microbatches", 1)
    if plan.in_parts and plan.batch_size // rows % parts == 0:
        lines.append(f"  --config.train.microbatches={parts}: the batch in parts, same gradient")
    stacks = {n: p for n in sorted(config.model) if isinstance(p := config.model[n], ConfigDict)}
    for name, part in stacks.items():
        # With dropout of its weights attention stays XLA's.
        if part.get("attention", "fused") != "fused" and not part.get("attention_dropout"):
            lines.append(f"  --config.model.{name}.attention=fused: logits stay on the chip (TPU)")
    for name, part in stacks.items():
        if part.get("remat", "full") != "full":
            lines.append(
                f"  --config.model.{name}.remat=full: recompute all of {name} (now {part.remat!r})"
            )
    state = plan.state.parameter_bytes + plan.state.optimizer_bytes + plan.state.other_bytes
    most = plan.chips // plan.slices // max(1, config.mesh.tensor)  # within a slice
    if config.mesh.data == -1 and config.mesh.fsdp < most:  # -1 takes what is left
        lines.append(
            f"  --config.mesh.fsdp={most}: spread the state ({size(state)} a device now) over more"
            " devices"
        )
    lines.append("  more devices with the same global batch, or a chip with more memory")
    return lines


def table(plans: list[Plan]) -> str:
    """Several plans side by side, as Markdown."""
    rows = [
        "| topology | chips | batch | HBM a chip | of it | collectives a chip | bound | step at"
        " least | clips/s a chip | MFU at most |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        share = "-" if plan.hbm_capacity is None else f"{plan.needed / plan.hbm_capacity:.0%}"
        row = [plan.topology, f"{plan.chips}", f"{plan.batch_size}", size(plan.needed), share]
        moved = sum(r["bytes"] for r in plan.compiled.collectives.values())
        row.append(f"{moved / 2**20:.0f} MiB")
        if (r := plan.roofline) is None:
            row += ["-"] * 4
        else:
            row += [
                r.bound_by,
                f"{1e3 * r.step_seconds:.1f} ms",
                f"{r.clips_per_second_per_chip:.0f}",
                f"{r.mfu_bound:.2f}",
            ]
        rows.append("| " + " | ".join(row) + " |")
    return "\n".join(rows)
