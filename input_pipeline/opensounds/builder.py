"""The OpenSounds TFDS builder: array_record files, no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.audio_files import SAMPLE_RATE
from input_pipeline.opensounds import captions, index, splits
from input_pipeline.opensounds.decode import Decoded

VERSION = "1.0.0"

_DESCRIPTION = f"""\
Sounds that ship inside free-software packages, fetched by package name, each paired with the text
that ships beside it. One example is one recording with one caption: int16 mono PCM at {SAMPLE_RATE}
Hz, full scale 32767. Splits are group-wise (see input_pipeline/opensounds/splits.py): no recording,
near-duplicate, stamp text or spoken concept lies on two sides."""

FEATURES = {
    # Encoding.BYTES: as tf.Example integers a negative sample would take ten bytes.
    "audio": tfds.features.Tensor(
        shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES
    ),
    "text": tfds.features.Text(doc="caption"),
    "id": tfds.features.Text(doc="unique and stable: package/path"),
    "source": tfds.features.Text(doc="package the recording comes from"),
    "licence": tfds.features.Text(doc="licence of that package, as the package states it"),
    "kind": tfds.features.Text(doc="speech, effect or music"),
    "lang": tfds.features.Text(doc="language code of speech, else ''"),
    "label": tfds.features.Text(doc="the package's own name for the recording"),
    "group": tfds.features.Text(doc="split key; equal keys lie on one side"),
    "zeroshot_label": tfds.features.Text(
        doc="one of 44 effect classes, a General MIDI instrument, or ''"
    ),
}


class OpenSounds(tfds.core.GeneratorBasedBuilder):
    """Writes decoded clips as a TFDS dataset; the config name is the tier."""

    name = "opensounds"
    VERSION = tfds.core.Version(index.VERSION)
    # TFDS looks beside the code for checksums of downloads, which we have none of, and would import
    # importlib_resources for that, which it does not declare.
    code_path: ClassVar = None
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=tier) for tier in index.TIERS]

    def __init__(
        self,
        *,
        rows: Sequence[index.Row] = (),
        decoded: Decoded | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes the builder.

        Args:
          rows: index rows of the tier.
          decoded: their recordings and licences; needed for writing only.
          **kwargs: TFDS's own (``config``, ``data_dir``, ``file_format``).
        """
        self._rows, self._decoded = rows, decoded
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(FEATURES),
            metadata=tfds.core.MetadataDict(sample_rate=SAMPLE_RATE),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # packages are fetched by name with their own clients
        return {split: self._generate_examples(split) for split in splits.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        assert self._decoded is not None, "writing needs decoded clips"
        pcm = np.memmap(self._decoded.pcm_file, np.int16, "r")
        for example_id, row in captions.with_ids(self._rows):
            clip = self._decoded.clips.get((row.package, row.path))
            key = splits.group_key(row)
            if clip is None or splits.split_of(key) != split:
                continue
            yield (
                example_id,
                {
                    "audio": np.asarray(pcm[clip.start : clip.start + clip.length]),
                    "text": captions.caption(row),
                    "id": example_id,
                    "source": row.package,
                    "licence": self._decoded.licences[row.package],
                    "kind": row.kind,
                    "lang": row.lang,
                    "label": row.label,
                    "group": key,
                    "zeroshot_label": row.zeroshot_label,
                },
            )
