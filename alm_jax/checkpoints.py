"""Checkpoints of a workdir: state, input position and metadata, saved in the background."""

from __future__ import annotations

import logging
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.train_state import TrainState, join

# Orbax warns three times whenever a checkpoint is opened for reading, which is what was asked for.
logging.getLogger("absl").addFilter(
    lambda record: (
        record.filename != "checkpoint_manager.py" or "read" not in record.getMessage().lower()
    )
)


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        every_steps: int = 1,
        keep: int = 1,
        read_only: bool = False,
    ):
        self.directory = _folder(workdir)
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=every_steps,
            max_to_keep=keep,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=options,
            item_names=("state", "loader", "metadata"),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "loader": ocp.JsonCheckpointHandler(),
                "metadata": ocp.JsonCheckpointHandler(),
            },
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint; a half-written one does not count."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether the step is to be saved: the first, every `every_steps`, and on preemption."""
        return self._manager.latest_step() != step and self._manager.should_save(step)

    def save(
        self,
        step: int,
        state: TrainState,
        loader: dict[str, Any],
        metadata: dict[str, Any],
        *,
        force: bool = False,
    ) -> bool:
        """Saves if the step is due (or `force`), in the background; returns whether it does."""
        if not (self._manager.latest_step() != step if force else self.due(step)):
            return False
        return self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_as_dict(state)),
                loader=ocp.args.JsonSave(loader),
                metadata=ocp.args.JsonSave(metadata),
            ),
            force=force,
        )

    def restore(
        self, shapes: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """State in the given shardings, on however many devices there are, and loader position."""
        step = self.latest_step if step is None else step
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=sharding
            ),
            _as_dict(shapes),
            _as_dict(shardings),
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), loader=ocp.args.JsonRestore()
            ),
        )
        empty: dict[str, Any] = {"ema": None, "stats": {}}
        return TrainState(**{**empty, **restored["state"]}), restored["loader"]

    def restore_params(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays of the model to evaluate (averaged, where that is kept) as numpy, and metadata.

        Raises:
          UserError: if there is no whole checkpoint.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise UserError(
                f"{self.directory} holds no finished checkpoint. Train first: "
                f"alm train --config=... --workdir={self.directory.parent}"
            )
        metadata = self._manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        )["metadata"]
        tree = self._manager.item_metadata(step)["state"]
        structure = tree.tree if hasattr(tree, "tree") else tree
        part = "ema" if structure.get("ema") else "params"
        with ocp.PyTreeCheckpointer() as reader:
            path = self.directory / str(step) / "state"
            parts = [part, "stats"] if structure.get("stats") else [part]
            wanted = {name: jax.tree.map(lambda _: 0, structure[name]) for name in parts}
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            restored = reader.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=wanted, restore_args=arguments, partial_restore=True
                ),
            )
        return join(restored[part], restored.get("stats")), metadata

    def wait(self) -> None:
        """Returns when every save has reached the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and releases the manager's threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def _as_dict(state: TrainState) -> dict[str, Any]:
    """The state as orbax stores it: no entry for an average or statistics that are not kept."""
    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    if state.ema is not None:
        tree["ema"] = state.ema
    return {**tree, "stats": state.stats} if state.stats else tree


def latest_step(workdir: str | os.PathLike[str]) -> int | None:
    """Step of the newest whole checkpoint of a workdir, None where there is none.

    Reads the folder and nothing else, so that one process of several may ask.
    """
    folder = _folder(workdir)
    return max(ocp.utils.checkpoint_steps(folder), default=None) if folder.is_dir() else None


def _folder(workdir: str | os.PathLike[str]) -> epath.Path:
    """Where a workdir keeps its checkpoints; an absolute path or a bucket's URL."""
    path = epath.Path(workdir)
    return (path if "://" in os.fspath(path) else path.absolute()) / "checkpoints"


def flat_names(params: Any) -> dict[str, Any]:
    """Dotted name -> leaf, e.g. {"audio.embed.kernel": array}."""
    return {
        ".".join(map(str, path)): leaf
        for path, leaf in nnx.traversals.flatten_mapping(params).items()
    }


def run_metadata(config: ConfigDict, dataset: str, tokenizer: str) -> dict[str, Any]:
    """What a checkpoint says of its run: name, and fingerprints of dataset and tokenizer."""
    return {
        "config_name": config.name,
        "dataset_fingerprint": dataset,
        "tokenizer_fingerprint": tokenizer,
    }
