"""Checkpoints of a workdir: state, input position and metadata, saved in the background."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.checksums import check_checksums, write_checksums
from alm_jax.errors import UserError
from alm_jax.parallel import distributed
from alm_jax.train_state import TrainState, join

_ITEMS = ("state", "loader", "metadata")


def _worth_showing(record: logging.LogRecord) -> bool:
    """Leaves out what orbax says although it was asked for, or is said by an error of ours."""
    if record.filename == "checkpoint_manager.py":  # three warnings when opened for reading
        return "read" not in record.getMessage().lower()
    # The stacks of its threads when a write fails; the failure itself reaches the main thread.
    if record.name == "asyncio":
        return "async_serialize" not in record.getMessage()
    return not (record.exc_info and record.filename in ("future.py", "async_checkpointer.py"))


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_worth_showing)


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
            # Orbax calls it on one process, in the background, before the checkpoint counts.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._saving = -1
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=options,
            item_names=_ITEMS,
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

    def latest_written(self) -> int | None:
        """As `latest_step`, after waiting for a save that is under way."""
        self.wait()
        return self.latest_step

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
        """Saves if the step is due (or `force`), in the background; returns whether it does.

        Raises:
          UserError: this save or the one before could not be written.
        """
        if not (self._manager.latest_step() != step if force else self.due(step)):
            return False
        with self._writing():
            self._manager.wait_until_finished()
            self._saving = step
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
        """State in the given shardings, on however many devices there are, and loader position.

        Raises:
          UserError: there is no whole checkpoint, or it cannot be read.
        """
        step = self._chosen(step)
        self._check(step)
        target = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=sharding
            ),
            _as_dict(shapes),
            _as_dict(shardings),
        )
        with self._reading(step):
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
          UserError: there is no whole checkpoint, or it cannot be read.
        """
        step = self._chosen(step)
        self._check(step)
        with self._reading(step):
            return self._restore_params(step)

    def _chosen(self, step: int | None) -> int:
        """The step, or that of the newest whole checkpoint."""
        step = self.latest_step if step is None else step
        if step is None:
            raise UserError(
                f"{self.directory} holds no finished checkpoint. Train first: "
                f"alm train --config=... --workdir={self.directory.parent}"
            )
        return step

    def _restore_params(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
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
        """Returns when every save has reached the disk.

        Raises:
          UserError: one could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and releases the manager's threads.

        Raises:
          UserError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says what a failed write means for the run, as far as the disk is to blame."""
        try:
            yield
        except (OSError, ValueError) as error:
            reason = _system_reason(error)
            if reason is None:
                raise
            whole = _steps(self.directory)
            kept = f"step {max(whole)}" if whole else "none"
            raise UserError(
                f"a checkpoint could not be written to {self.directory}: {reason}. The newest "
                f"whole one is as it was: {kept}. Make room or mend the folder; the same command "
                "goes on from there"
            ) from error

    def _seal(self) -> None:
        """Writes the checksums of the checkpoint that is being saved, under its name of then."""
        names = [path.name for path in self.directory.iterdir()]
        unnamed = [name for name in names if name.startswith(f"{self._saving}.orbax-checkpoint")]
        # In a bucket, where nothing can be renamed, it has its final name from the beginning.
        write_checksums(self.directory / max(unnamed, default=str(self._saving)), _ITEMS)

    def _check(self, step: int) -> None:
        """Compares the files with their checksums; the first process does so for all."""

        def compare() -> bytes:
            try:
                check_checksums(self.directory / str(step))
            except (UserError, OSError) as error:
                raise UserError(self._unreadable(step, str(error))) from error
            return b""

        distributed.from_first(compare)

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Says what to do about a checkpoint that cannot be read; nothing is deleted."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise whatever the damage leads to
            reason = " ".join(str(error).split())[:300]
            raise UserError(self._unreadable(step, f"{type(error).__name__}: {reason}")) from error

    def _unreadable(self, step: int, reason: str) -> str:
        others = [other for other in _steps(self.directory) if other != step]
        then = f"goes on from step {max(others)}" if others else "starts from the beginning"
        path = self.directory / str(step)
        return (
            f"the checkpoint {path} cannot be read ({reason}). If the disk or the bucket is at "
            "fault, mend that and try again. If the checkpoint is damaged, move it away "
            f"(mv {path} {self.directory.parent}/damaged_{step}); training then {then}"
        )


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
    return max(_steps(_folder(workdir)), default=None)


def _steps(folder: epath.Path) -> list[int]:
    """Steps of the whole checkpoints in a folder."""
    return list(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def _system_reason(error: Exception) -> str | None:
    """What the operating system said about a failed write; None if it was not that."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # Tensorstore: "...: No space left on device [os_error_code='28']".
    found = re.search(r"([^:\[\]]+) \[os_error_code=", str(error))
    return found[1].strip() if found else None


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
