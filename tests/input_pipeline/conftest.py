"""Small TFDS datasets with known content, for the tests of sources and loader."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline.sources import open_source
from input_pipeline.text import Tokenizer

WORDS = ["dog", "cat", "violin", "door", "bell", "engine", "rain", "frog", "drum", "whistle"]
PLACES = ["room", "park", "street", "forest", "hall"]
TEXT_FEATURES = ["text", "id", "source", "licence", "kind"]
TEXT_FEATURES += ["lang", "label", "group", "zeroshot_label"]
SAMPLE_RATE = 1000  # keeps the clips small


def caption(index: int) -> str:
    word, place = WORDS[index % len(WORDS)], PLACES[index // 2 % len(PLACES)]
    return f"the sound of a {word} in the {place}, number {index}"


def example(index: int, samples: int, **changed: Any) -> dict[str, Any]:
    """A clip whose every sample is its own position, so that a crop shows where it began."""
    made = dict.fromkeys(TEXT_FEATURES, "")
    made |= {"text": caption(index), "id": f"clip-{index}", "source": "here", "kind": "effect"}
    return {"audio": np.arange(samples, dtype=np.int16), **made, **changed}


def write_dataset(
    root: Path,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    config: str = "tiny",
    version: str = "1.0.0",
    sample_rate: int | None = SAMPLE_RATE,
    file_format: str = "array_record",
    **features: Any,
) -> Path:
    """Writes `splits` with TFDS itself and returns root/small_sounds/<config>."""
    kept = {name: tfds.features.Text() for name in TEXT_FEATURES}
    kept["audio"] = tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes")
    kept = {name: feature for name, feature in (kept | features).items() if feature is not None}

    class SmallSounds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        # TFDS looks for files beside the module, and older ones fail on a namespace package.
        __module__ = "__main__"
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=config)]

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(kept),
                metadata=None
                if sample_rate is None
                else tfds.core.MetadataDict(sample_rate=sample_rate),
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {name: self._generate_examples(examples) for name, examples in splits.items()}

        def _generate_examples(self, examples: Sequence[Mapping[str, Any]]) -> Any:
            for index, content in enumerate(examples):
                yield index, {name: content[name] for name in kept}

    SmallSounds(data_dir=root, config=config, file_format=file_format).download_and_prepare()
    return root / "small_sounds" / config


@pytest.fixture(scope="session")
def lengths() -> list[int]:
    """Samples of the 37 training clips: 40 to 2,200, so half of them exceed one second."""
    return [40 + 60 * (index * 7 % 37) for index in range(37)]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> Path:
    examples = [example(index, samples) for index, samples in enumerate(lengths)]
    held_out = [example(100 + index, 130 * (index + 1)) for index in range(11)]
    return write_dataset(tmp_path_factory.mktemp("dataset"), {"train": examples, "test": held_out})


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([caption(index) for index in range(200)], 400)


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return write_dataset


@pytest.fixture(scope="session")
def make_example() -> Callable[..., dict[str, Any]]:
    return example


@pytest.fixture(scope="session")
def sounds(tiny_dataset: Path) -> list[np.ndarray]:
    """Twelve different recordings, int16 [S] at 16 kHz, 0.3 to 2 s."""
    found: dict[bytes, np.ndarray] = {}
    for clip in open_source(tiny_dataset, "train"):
        if ".sf2#" not in clip["id"] and 4800 <= len(clip["audio"]) <= 32000:
            found.setdefault(clip["audio"].tobytes(), clip["audio"])
        if len(found) == 12:
            return list(found.values())
    raise AssertionError("the tiny tier has changed")
