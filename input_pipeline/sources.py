"""A prepared dataset on disk as a sequence of examples: random access, and text without the audio.

The dataset is an ordinary TFDS dataset (array_record files, see `alm prepare`). TFDS says where its
records lie; the records, which are `tf.train.Example` messages, are parsed here because TFDS's own
decoder costs three times as much as reading them: 13,000 against 3,100 clips of 1.6 s a second on
one core (both with the audio stored as bytes; as int64 lists, TFDS's default, it is about 1,900).
"""

import functools
import hashlib
import json
import os
import re
import resource
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from alm_jax.errors import UserError, did_you_mean

PREPARE_HINT = "build it with `alm prepare` (`alm prepare --help` lists what it can build)"
GENERATED = "text_generated"  # the feature with captions by a model; older datasets have none
_FINGERPRINT_RECORDS = 16
_OTHER_FILES = 512  # that a process may have open beside shards
_opened: list[int] = []  # shards of every dataset that this process has opened


class Source(Sequence[dict[str, Any]]):
    """One split of a prepared dataset; make it with `open_source`.

    `source[i]` is a dict: `audio` int16 [S] (mono PCM, read-only), text features as str, lists of
    text as tuples of str, numbers as numpy scalars or arrays. Safe to share between threads.
    Pickles to the paths of its files: no worker gets a copy of the records or of an index.

    Attributes:
      directory: the version folder that was opened.
      split: the split's name, as given.
      sample_rate: Hz as the dataset's metadata state it, None where they do not.
    """

    def __init__(
        self,
        records: Sequence[bytes],
        *,
        directory: str,
        split: str,
        audio_encoding: str,
        list_features: frozenset[str],
        sample_rate: int | None,
        description: str,
    ) -> None:
        self._records = records
        self._audio_encoding = audio_encoding
        self._list_features = list_features
        self._description = description
        self.directory = directory
        self.split = split
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        features = self._features(index)
        example = {"audio": self._audio(features)}
        example.update(self._everything_but_audio(features))
        return example

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def audio_and_captions(self, index: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns the audio int16 [S] and every caption of one example: what a batch is made of."""
        features = self._features(index)
        return self._audio(features), _texts(features["text"])

    def audio_and_texts(self, index: int) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
        """Returns audio int16 [S], captions, and the captions that a model wrote beside them."""
        features = self._features(index)
        return self._audio(features), _texts(features["text"]), _texts(features[GENERATED])

    def without_audio(self, index: int) -> dict[str, Any]:
        """Returns captions, id, labels, source, ... of one example; its audio is not decoded."""
        return self._everything_but_audio(self._features(index))

    def metadata(self) -> Iterator[dict[str, Any]]:
        """Yields every example in order without its audio."""
        return map(self.without_audio, range(len(self)))

    def captions(self) -> Iterator[str]:
        """Yields every caption in the order of the examples (several each, where there are)."""
        for index in range(len(self)):
            yield from _texts(self._features(index)["text"])

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Samples of every example, int32 [n]; the first use reads the split once."""
        lengths = (len(self._audio(self._features(index))) for index in range(len(self)))
        return np.fromiter(lengths, np.int32, len(self))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the split, 16 hexadecimal digits, the same wherever the dataset lies.

        Over the dataset's name, version, features, shard sizes and up to 16 evenly spaced examples
        with their audio: another resampler or another order of examples shows, a single changed
        caption between the sampled ones does not.
        """
        digest = hashlib.sha256(self._description.encode())
        for index in np.linspace(0, len(self) - 1, min(_FINGERPRINT_RECORDS, len(self))):
            # Not the raw record: the order of fields in a serialised message is not defined.
            example = self[int(index)]
            digest.update(example.pop("audio").tobytes())
            digest.update(repr(sorted(example.items())).encode())
        return digest.hexdigest()[:16]

    def _features(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {self.directory} split {self.split}: {len(self)}")
        try:
            return tf_example_pb2.Example.FromString(self._records[int(index)]).features.feature
        except DecodeError as error:
            raise UserError(
                f"{self.directory}: example {index} of split {self.split!r} is damaged ({error});"
                " delete the folder and build it again with `alm prepare`"
            ) from error

    def _audio(self, features: Any) -> np.ndarray:
        feature = features["audio"]
        if self._audio_encoding == "none":
            return np.asarray(feature.int64_list.value, np.int16)
        value = feature.bytes_list.value[0]
        if self._audio_encoding == "zlib":
            value = zlib.decompress(value)
        return np.frombuffer(value, np.int16)

    def _everything_but_audio(self, features: Any) -> dict[str, Any]:
        example: dict[str, Any] = {}
        for name in sorted(features):
            if name == "audio":
                continue
            kind = features[name].WhichOneof("kind")
            values: Any
            if kind == "bytes_list":
                values = _texts(features[name])
            else:
                values = np.asarray(getattr(features[name], kind).value if kind else ())
            example[name] = values if name in self._list_features else values[0]
        return example

    def __repr__(self) -> str:
        return f"Source({self.directory!r}, split={self.split!r}, examples={len(self)})"


def open_source(directory: str | os.PathLike[str], split: str) -> Source:
    """Opens one split of a prepared dataset.

    Args:
      directory: the dataset's folder. Either a version (`data/opensounds/tiny/1.0.0`) or the folder
        above it, whose newest version is then taken.
      split: a split's name, or a part of one in TFDS's notation (`train[:10%]`).

    Returns:
      The split's examples.

    Raises:
      UserError: no dataset there, no such split, an empty split, or features that are not ours.
    """
    path = resolve_version(directory)
    builder = tfds.builder_from_directory(path)
    splits = {name: info.num_examples for name, info in builder.info.splits.items()}
    for name in re.findall(r"[A-Za-z_][\w.-]*(?=\[|\+|\s|$)", split) or [split]:
        if name not in splits:
            listed = ", ".join(f"{key} ({count})" for key, count in splits.items())
            raise UserError(
                f"{path}: no split {name!r}; it has {listed or 'none'}{did_you_mean(name, splits)}"
            )
    audio_encoding, list_features = _checked_features(path, builder)
    try:
        num_examples = builder.info.splits[split].num_examples
    except ValueError as error:
        raise UserError(f"{path}: split {split!r} is not in TFDS's notation ({error})") from error
    if not num_examples:
        raise UserError(f"{path}: split {split!r} has no examples; see prepare_report.json there")
    _allow_open_files(sum(info.num_shards for info in builder.info.splits.values()))
    records = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    ).data_source
    sample_rate = dict(builder.info.metadata or {}).get("sample_rate")
    return Source(
        records,
        directory=path,
        split=split,
        audio_encoding=audio_encoding,
        list_features=list_features,
        sample_rate=None if sample_rate is None else int(sample_rate),
        description=_description(builder, split),
    )


def _allow_open_files(shards: int) -> None:
    """Raises this process' limit of open files: array_record keeps one for each shard it read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _opened.append(shards)
    wanted = sum(_opened) + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def resolve_version(directory: str | os.PathLike[str]) -> str:
    """Returns the folder that holds `dataset_info.json`: `directory` or its newest version.

    Raises:
      UserError: there is none; the message says what was found instead.
    """
    path = epath.Path(os.path.expanduser(os.fspath(directory)))
    if (path / "dataset_info.json").exists():
        return os.fspath(path)
    if not path.exists():
        raise UserError(f"there is no dataset folder {path}; {PREPARE_HINT}")
    folders = [child.name for child in path.iterdir() if child.is_dir()] if path.is_dir() else []
    versions = sorted(
        (tuple(map(int, name.split("."))), name)
        for name in folders
        if re.fullmatch(r"\d+\.\d+\.\d+", name) and (path / name / "dataset_info.json").exists()
    )
    if versions:
        return os.fspath(path / versions[-1][1])
    configs = sorted(name for name in folders if any((path / name).glob("*/dataset_info.json")))
    if configs:
        named = ", ".join(os.fspath(path / name) for name in configs)
        raise UserError(f"{path} is a folder of datasets; give one of them: {named}")
    unfinished = any(name.startswith("incomplete.") for name in folders)
    raise UserError(
        f"{path} holds no finished TFDS dataset (no dataset_info.json in it or in a version folder"
        f" below){'; a build there was interrupted' if unfinished else ''}; {PREPARE_HINT}"
    )


def _checked_features(path: str, builder: Any) -> tuple[str, frozenset[str]]:
    """Returns how the audio is stored ('none', 'bytes', 'zlib') and which features are lists."""
    file_format = builder.info.file_format
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{path} is stored as {file_format.value if file_format else 'nothing known'}: no"
            " random access; build it again with file_format='array_record'"
        )
    features = dict(builder.info.features or {})
    missing = [name for name in ("audio", "text") if name not in features]
    if missing:
        raise UserError(
            f"{path} has no feature {' and '.join(map(repr, missing))} (it has"
            f" {', '.join(sorted(features))}); {PREPARE_HINT}"
        )
    audio = features["audio"]
    if (
        type(audio) is not tfds.features.Tensor
        or audio.np_dtype != np.int16
        or audio.shape != (None,)
    ):
        raise UserError(
            f"{path}: feature 'audio' is {audio!r}; needed is mono PCM, Tensor(shape=(None,),"
            f" dtype=int16); {PREPARE_HINT}"
        )
    encoding = str(audio.to_json_content().encoding) or "none"
    return encoding, frozenset(name for name, feature in features.items() if feature.shape)


def _texts(feature: Any) -> tuple[str, ...]:
    return tuple(value.decode("utf-8", "replace") for value in feature.bytes_list.value)


def _description(builder: Any, split: str) -> str:
    info = builder.info
    config = builder.builder_config.name if builder.builder_config else ""
    shards = {name: [list(s.shard_lengths), int(s.num_bytes)] for name, s in info.splits.items()}
    features = {name: [str(f.np_dtype), str(f.shape)] for name, f in info.features.items()}
    parts = [info.name, config, str(info.version), features, shards, split]
    return json.dumps(parts, sort_keys=True)
