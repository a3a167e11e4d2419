"""XLA options for programs that run once: little optimisation, half the time, same results."""

from importlib.metadata import version

OPTIONS: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
# A newer jaxlib has no other emitters, and ends the process at a flag that it does not know.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
