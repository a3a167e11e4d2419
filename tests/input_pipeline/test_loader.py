"""Loader: the batches a run sees must not depend on hosts, workers, threads or restarts."""

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds

from alm_jax.errors import UserError
from input_pipeline.loader import eval_batches, train_loader
from input_pipeline.loader_config import LoaderConfig, host_rows
from input_pipeline.sources import Source, open_source
from input_pipeline.text import Tokenizer
from tests.killed_parent import assert_worker_ends

Batch = dict[str, np.ndarray]
TRAIN, TEST, SECOND, LENGTH = 37, 11, 1000, 48


@pytest.fixture
def data(dataset: Path) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "dir": str(dataset),
            "train_split": "train",
            "eval_split": "test",  # a field that is not the loader's
            "batch_size": 8,
            "sample_rate": SECOND,
            "max_seconds": 1.0,
            "max_text_length": LENGTH,
            "num_workers": 0,
            "read_threads": 2,
        }
    )


@pytest.fixture
def source(dataset: Path) -> Source:
    return open_source(dataset, "train")


def take(count: int, data: Any, tokenizer: Tokenizer, **options: Any) -> list[Batch]:
    with train_loader(data, tokenizer, **{"seed": 0, **options}) as loader:
        return list(islice(loader, count))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def joined(hosts: list[list[Batch]]) -> list[Batch]:
    """Global batches from every host's share, in the order in which jax joins them."""
    return [
        {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}
        for shares in zip(*hosts, strict=True)
    ]


def ids_of(batches: list[Batch]) -> list[int]:
    return np.concatenate([batch["example_id"] for batch in batches]).tolist()


def test_contents_of_a_batch(data: Any, tokenizer: Tokenizer, source: Source) -> None:
    """The train step is compiled for these shapes and dtypes, and trusts lengths and masks."""
    dtypes = {"audio": "int16", "audio_length": "int32", "text": "int32", "text_mask": "bool"}
    for batch in take(6, data, tokenizer):
        assert {key: str(value.dtype) for key, value in batch.items()} == {
            **dtypes,
            "example_id": "int32",
        }
        assert batch["audio"].shape == (8, SECOND) and batch["text"].shape == (8, LENGTH)
        for row, index in enumerate(batch["example_id"]):
            example = source[index]
            length = batch["audio_length"][row]
            assert length == min(SECOND, len(example["audio"]))
            # Every sample of the test clips is its own position.
            first = batch["audio"][row, 0]
            expected = np.zeros(SECOND, np.int16)
            expected[:length] = example["audio"][first : first + length]
            np.testing.assert_array_equal(batch["audio"][row], expected)
            ids, mask = tokenizer.encode(example["text"], LENGTH)
            np.testing.assert_array_equal(batch["text"][row], ids)
            np.testing.assert_array_equal(batch["text_mask"][row], mask)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_global_batches_do_not_depend_on_hosts(data: Any, tokenizer: Tokenizer, hosts: int) -> None:
    """A run moved from 1 to 4 hosts must go on with the same batches (12 steps: 2.6 epochs)."""
    shares = [
        take(12, data, tokenizer, process_index=host, process_count=hosts) for host in range(hosts)
    ]
    assert_equal(joined(shares), take(12, data, tokenizer))


def test_resume_is_exact(data: Any, tokenizer: Tokenizer) -> None:
    """A preempted run must see the batches it would have seen, also on another number of hosts."""
    uninterrupted = take(12, data, tokenizer)
    with train_loader(data, tokenizer, seed=0) as loader:
        assert loader.get_state() == {"next_step": 0}
        list(islice(loader, 5))
        state = json.loads(json.dumps(loader.get_state()))
        assert state == {"next_step": 5}
        list(islice(loader, 3))
        loader.set_state(state)  # back on the same loader
        assert loader.get_state() == state
        assert_equal(list(islice(loader, 7)), uninterrupted[5:])
    shares = []
    for host in range(2):
        with train_loader(data, tokenizer, seed=0, process_index=host, process_count=2) as loader:
            loader.set_state(state)
            shares.append(list(islice(loader, 7)))
            assert loader.get_state() == {"next_step": 12}
    assert_equal(joined(shares), uninterrupted[5:])


def test_far_away_state(data: Any, tokenizer: Tokenizer) -> None:
    """Resuming at step 1,000,000 must not replay a million steps, nor overflow."""
    start = time.monotonic()
    with train_loader(data, tokenizer, seed=0) as loader:
        loader.set_state({"next_step": np.int64(10**9)})
        assert next(loader)["audio"].shape == (8, SECOND)
        assert loader.get_state() == {"next_step": 10**9 + 1}
    assert time.monotonic() - start < 5


def test_threads_do_not_matter(data: Any, tokenizer: Tokenizer) -> None:
    """read_threads is for speed: batches must come in order whoever builds them."""
    results = []
    for threads in (0, 1, 5):
        data.read_threads = threads
        results.append(take(12, data, tokenizer))
    assert_equal(results[0], results[1])
    assert_equal(results[0], results[2])


def test_every_epoch_shows_every_clip_once(data: Any, tokenizer: Tokenizer) -> None:
    """Missing or doubled clips would bias training; equal orders would repeat its negatives."""
    orders = {}
    for seed in (0, 1, 2**40, -3):
        seen = ids_of(take(3 * TRAIN // 8 + 1, data, tokenizer, seed=seed))
        epochs = [tuple(seen[start : start + TRAIN]) for start in (0, TRAIN, 2 * TRAIN)]
        assert all(sorted(epoch) == list(range(TRAIN)) for epoch in epochs)
        orders |= dict.fromkeys(epochs, seed)
    # Also: no epoch of one seed is an epoch of its neighbour.
    assert len(orders) == 12


def test_crops_change_with_the_epoch_only(
    data: Any, tokenizer: Tokenizer, lengths: list[int], source: Source
) -> None:
    """The same crop every epoch is no augmentation; another one on rerun is no reproduction."""
    sizes = source.lengths
    assert sorted(sizes) == sorted(lengths)
    epochs = 20
    batches = take(epochs * TRAIN // 8, data, tokenizer)
    assert_equal(batches[:10], take(10, data, tokenizer))
    crops: dict[int, list[int]] = {}
    for batch in batches:
        for index, audio in zip(batch["example_id"], batch["audio"], strict=True):
            crops.setdefault(int(index), []).append(int(audio[0]))
    fractions = []
    for index, starts in crops.items():
        excess = max(0, int(sizes[index]) - SECOND)
        assert min(starts) >= 0 and max(starts) <= excess
        if excess:
            assert len(set(starts)) > epochs / 2
            fractions += [start / excess for start in starts]
    assert sum(size > SECOND for size in sizes) * (epochs - 1) <= len(fractions)
    # Evenly spread: ten bins of about 40 draws each.
    histogram = np.histogram(fractions, 10, (0, 1))[0]
    assert histogram.min() > 0.5 * histogram.mean() and histogram.max() < 1.6 * histogram.mean()


def test_one_sample_longer_than_the_row(
    write: Callable[..., Path], make_example: Any, data: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The last possible crop must be possible: off by one, the end of clips is never heard."""
    clip = {"train": [make_example(0, SECOND + 1)]}
    data.dir = str(write(tmp_path, clip))
    data.batch_size = 1
    starts = Counter(int(batch["audio"][0, 0]) for batch in take(60, data, tokenizer))
    assert set(starts) == {0, 1} and min(starts.values()) > 10


def test_fewer_clips_than_the_batch(
    write: Callable[..., Path],
    make_example: Any,
    data: Any,
    tokenizer: Tokenizer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A first try with a handful of sounds must run, and say that a batch repeats them."""
    data.dir = str(write(tmp_path, {"train": [make_example(i, 50) for i in range(3)]}))
    with caplog.at_level("WARNING"):
        batches = take(4, data, tokenizer)
    assert len(caplog.records) == 1
    assert "3 examples are fewer than batch_size=8" in caplog.text
    assert set(Counter(ids_of(batches)).values()) <= {10, 11}


def test_empty_audio_counts_as_one_sample(
    write: Callable[..., Path], make_example: Any, data: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A length of 0 would make a mean over no frame, NaN, and end the run."""
    data.dir = str(write(tmp_path, {"train": [make_example(0, 0)]}))
    data.batch_size = 1
    batch = take(1, data, tokenizer)[0]
    assert batch["audio_length"].tolist() == [1] and not batch["audio"].any()


def test_captions_are_drawn(
    write: Callable[..., Path], make_example: Any, data: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """With five captions a clip, training must use all, and evaluation the same one each time."""
    captions = [f"the sound of a dog number {number}" for number in range(5)]
    clips = [make_example(i, 50, text=captions) for i in range(4)]
    feature = tfds.features.Sequence(tfds.features.Text())
    data.dir = str(write(tmp_path, {"train": clips}, text=feature))
    data.batch_size = 4
    batches = take(30, data, tokenizer)
    drawn = Counter(tokenizer.decode(ids) for batch in batches for ids in batch["text"])
    assert set(drawn) == set(captions) and min(drawn.values()) > 10
    assert_equal(batches, take(30, data, tokenizer))
    evaluated = next(eval_batches(data, tokenizer, "train", 4))
    assert {tokenizer.decode(ids) for ids in evaluated["text"]} == {captions[0]}


def test_subword_sampling(data: Any, tokenizer: Tokenizer, source: Source) -> None:
    """The draw must follow the epoch, keep the words, and repeat on rerun."""
    data.text_sample_alpha = 0.2
    batches = take(30, data, tokenizer)
    assert_equal(batches, take(30, data, tokenizer))
    texts: dict[int, set[bytes]] = {}
    for batch in batches:
        for index, ids in zip(batch["example_id"], batch["text"], strict=True):
            assert tokenizer.decode(ids) == source[index]["text"]
            texts.setdefault(int(index), set()).add(ids.tobytes())
    assert sum(len(variants) > 1 for variants in texts.values()) > TRAIN / 2


def test_mixture(
    write: Callable[..., Path], make_example: Any, data: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Sources must come in proportion to their weights, each in epochs of its own, on any hosts."""
    other = write(tmp_path, {"train": [make_example(i, 70) for i in range(5)]})
    data.mixture = ((data.dir, 3.0), (str(other), 1.0))
    data.dir = ""
    batches = take(20, data, tokenizer)
    assert_equal(
        joined([take(20, data, tokenizer, process_index=h, process_count=2) for h in range(2)]),
        batches,
    )
    seen = ids_of(batches)
    first = [index for index in seen if index < TRAIN]
    second = [index - TRAIN for index in seen if index >= TRAIN]
    assert len(first) == 3 * len(second) == 120
    assert sorted(first[:TRAIN]) == list(range(TRAIN))
    assert sorted(second[:5]) == sorted(second[5:10]) == list(range(5))
    with train_loader(data, tokenizer, seed=0) as loader:
        assert loader.num_examples == 42 and loader.steps_per_epoch == 42 / 8
        loader.set_state({"next_step": 13})
        assert_equal(list(islice(loader, 7)), batches[13:])
    data.dir, data.mixture = data.mixture[1][0], ()
    alone = open_source(data.dir, "train")
    for batch in batches:
        for row in np.flatnonzero(batch["example_id"] >= TRAIN):
            example = alone[batch["example_id"][row] - TRAIN]
            assert tokenizer.decode(batch["text"][row]) == example["text"]


def test_workers(data: Any, tokenizer: Tokenizer) -> None:
    """Worker processes are for speed: same batches, exact resume, and none left after close."""
    expected = take(7, data, tokenizer)
    data.num_workers = 2
    with train_loader(data, tokenizer, seed=0) as loader:
        loader.set_state({"next_step": 2})
        assert_equal(list(islice(loader, 5)), expected[2:])
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    with pytest.raises(ValueError, match="this loader was closed"):
        next(loader)


def test_workers_end_with_a_killed_parent(data: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A killed run (out of memory, say) must not leave workers that hold the memory it needs."""
    tokenizer.save(tmp_path / "tokenizer.model")
    script = tmp_path / "train.py"
    assert_worker_ends(
        script,
        "import multiprocessing, time\n"
        "from input_pipeline.loader import train_loader\n"
        "from input_pipeline.text import Tokenizer\n"
        "if __name__ == '__main__':\n"
        f"    tokenizer = Tokenizer.load({str(tmp_path / 'tokenizer.model')!r})\n"
        f"    loader = train_loader({dict(data, num_workers=1)!r}, tokenizer, seed=0)\n"
        "    next(loader)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    time.sleep(100)\n",
    )


def test_eval_shows_every_clip_once_in_order(
    data: Any, tokenizer: Tokenizer, dataset: Path
) -> None:
    """A clip missing from or doubled in an evaluation changes the number that is reported."""
    source = open_source(dataset, "test")
    loader = eval_batches(data, tokenizer, "test", 4)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert ids_of(batches) == [*range(TEST), -1]
    assert np.concatenate([batch["_mask"] for batch in batches]).tolist() == [True] * TEST + [False]
    for batch in batches:
        assert batch["audio"].shape == (4, SECOND)
        for row in np.flatnonzero(batch["_mask"]):
            example = source[batch["example_id"][row]]
            front = example["audio"][:SECOND]
            assert batch["audio_length"][row] == len(front)
            np.testing.assert_array_equal(batch["audio"][row, : len(front)], front)
            assert not batch["audio"][row, len(front) :].any()
            assert tokenizer.decode(batch["text"][row]) == example["text"]
    with pytest.raises(StopIteration):
        next(loader)


def test_eval_padding_rows_can_be_run(data: Any, tokenizer: Tokenizer) -> None:
    """A padding row without one valid sample and token gives NaN, which spreads in a mean."""
    padding = {
        key: value[-1] for key, value in list(eval_batches(data, tokenizer, "test", 4))[-1].items()
    }
    assert padding["audio_length"] == 1 and not padding["audio"].any()
    assert padding["text"][:3].tolist() == [1, 2, 0] and padding["text_mask"].sum() == 2
    assert padding["example_id"] == -1 and not padding["_mask"]


@pytest.mark.parametrize("buckets", [(), (0.3, 0.6)])
@pytest.mark.parametrize("split", ["test", "test[:1]"])
def test_eval_does_not_depend_on_hosts(
    data: Any, tokenizer: Tokenizer, buckets: tuple[float, ...], split: str
) -> None:
    """A host with one batch fewer would leave the others waiting in a collective for ever."""
    alone = list(eval_batches(data, tokenizer, split, 4, bucket_seconds=buckets))
    for hosts in (2, 4):
        shares = [
            list(
                eval_batches(
                    data,
                    tokenizer,
                    split,
                    4,
                    process_index=host,
                    process_count=hosts,
                    bucket_seconds=buckets,
                )
            )
            for host in range(hosts)
        ]
        assert_equal(joined(shares), alone)


def test_eval_buckets(data: Any, tokenizer: Tokenizer, dataset: Path) -> None:
    """Buckets save padding; they must neither lose a clip nor cut one that fits its bucket."""
    lengths = open_source(dataset, "test").lengths
    plain = {
        int(index): {key: value[row] for key, value in batch.items()}
        for batch in eval_batches(data, tokenizer, "test", 4)
        for row, index in enumerate(batch["example_id"])
        if index >= 0
    }
    # 2.0 is beyond max_seconds and falls together with it; order and repeats do not matter.
    loader = eval_batches(data, tokenizer, "test", 4, bucket_seconds=(0.6, 0.3, 2.0, 0.3))
    widths, seen = [], []
    for batch in loader:
        width = batch["audio"].shape[1]
        widths.append(width)
        for row, index in enumerate(batch["example_id"].tolist()):
            if not batch["_mask"][row]:
                continue
            seen.append(index)
            assert width == next(w for w in (300, 600, 1000) if min(lengths[index], 1000) <= w)
            expected = plain[index]
            np.testing.assert_array_equal(batch["audio"][row], expected["audio"][:width])
            assert not expected["audio"][width:].any()
            assert batch["audio_length"][row] == expected["audio_length"]
            np.testing.assert_array_equal(batch["text"][row], expected["text"])
    assert sorted(seen) == list(range(TEST)) and len(widths) == len(loader)
    assert widths == sorted(widths) and set(widths) == {300, 600, 1000}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"config\.data\.batch_size=0: must be a whole number >= 1"),
        ({"batch_size": 8.5}, r"config\.data\.batch_size=8\.5: must be a whole number"),
        ({"read_threads": -1}, r"config\.data\.read_threads=-1"),
        ({"max_text_length": 1}, r"config\.data\.max_text_length=1: .* >= 2"),
        ({"max_seconds": 0.0001}, r"config\.data\.max_seconds=0\.0001: .* one sample at 1000 Hz"),
        ({"max_seconds": "ten"}, r"config\.data\.max_seconds='ten'"),
        ({"dir": ""}, r"config\.data needs dir .* or mixture"),
        ({"mixture_unit": "clips"}, r"config\.data\.mixture_unit='clips': must be one of"),
        ({"mixture_temperature": 0.0}, r"config\.data\.mixture_temperature=0\.0: must be above 0"),
        ({"concat_probability": 2.0}, r"config\.data\.concat_probability=2\.0: must lie in 0\.\.1"),
        (
            {"dir": "", "mixture": (("a", 0.0),)},
            r"config\.data\.mixture=.* weights must be above 0",
        ),
        ({"dir": "", "mixture": ("a", "b")}, r"config\.data\.mixture=.* pairs of a folder"),
        ({"text_sample_alpha": -1.0}, r"config\.data\.text_sample_alpha=-1\.0: must be >= 0"),
        ({"sample_rate": 16000}, r"holds audio at 1000 Hz, but config\.data\.sample_rate=16000"),
        ({"train_split": "trian"}, r"no split 'trian'.*did you mean 'train'"),
        ({"dir": "/nowhere"}, r"no dataset folder /nowhere; build it with `alm prepare`"),
    ],
)
def test_bad_fields_are_named(
    data: Any, tokenizer: Tokenizer, changes: dict[str, Any], message: str
) -> None:
    """A typo in a config must be answered in its own words before anything starts."""
    with pytest.raises(UserError, match=message):
        train_loader({**data, **changes}, tokenizer, seed=0)


def test_absent_and_foreign_fields() -> None:
    """A config file that leaves the defaults out, or holds fields of others, must work."""
    config = LoaderConfig.create(ml_collections.ConfigDict({"dir": "x", "tier": "tiny"}))
    assert config == LoaderConfig(dir="x") and LoaderConfig.create(config) is config
    assert config.num_samples == 160_000


def test_hosts_that_cannot_share(data: Any, tokenizer: Tokenizer) -> None:
    """The message must give batch sizes that would do."""
    with pytest.raises(
        UserError, match=r"batch_size=8 cannot be shared evenly by 3 hosts; take 6 or 9"
    ):
        train_loader(data, tokenizer, seed=0, process_index=0, process_count=3)
    with pytest.raises(UserError, match=r"batch_size=4 .* by 16 hosts; take 16"):
        eval_batches(data, tokenizer, "test", 4, process_index=0, process_count=16)
    with pytest.raises(ValueError, match="process_index=2 with process_count=2"):
        host_rows(8, 2, 2)


def test_bad_state_and_bad_bucket(data: Any, tokenizer: Tokenizer) -> None:
    """A state of another loader must not restart training from step 0 in silence."""
    with train_loader(data, tokenizer, seed=0) as loader:
        for state in ({}, {"next_index": 5}, {"next_step": -1}, {"next_step": 2.5}):
            with pytest.raises(ValueError, match="needs 'next_step', an integer >= 0"):
                loader.set_state(state)
    with pytest.raises(UserError, match=r"bucket_seconds=\(1\.0, 0\.0\): each must be above 0"):
        eval_batches(data, tokenizer, "test", 4, bucket_seconds=(1.0, 0.0))


def test_an_error_in_a_thread_reaches_the_caller(data: Any, tokenizer: Tokenizer) -> None:
    """A damaged record found while reading ahead must stop the run with its own message."""

    class Failing:
        def encode(self, caption: str, max_length: int, **options: Any) -> Any:
            if "number 5" in caption:
                raise UserError("this very caption")
            return tokenizer.encode(caption, max_length, **options)

    with train_loader(data, Failing(), seed=0) as loader, pytest.raises(UserError, match="very"):
        list(islice(loader, 5))
