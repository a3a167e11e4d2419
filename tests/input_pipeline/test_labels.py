"""Labels in batches, class-balanced draws, and the second clips of mixup."""

from itertools import islice

import numpy as np
import pytest
import tensorflow_datasets as tfds

from alm_jax.errors import UserError
from input_pipeline.labels import Labels, classes_of, read_classes, read_labels
from input_pipeline.loader import eval_batches, train_loader
from input_pipeline.sources import open_source

SECOND = 1000
# One clip in ten is a frog; every fifth has two labels, the last two have none.
LABELS = [["frog"] if i % 10 == 0 else ["dog"] if i % 5 else ["dog", "rain"] for i in range(38)]
LABELS += [[], []]
CLASSES = ("dog", "frog", "rain")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, write, make_example):
    """40 clips whose samples are all their own number + 1, with lists of labels."""
    examples = [
        make_example(i, 50, audio=np.full(100 + i, i + 1, np.int16), labels=names, label="dog")
        for i, names in enumerate(LABELS)
    ]
    return write(
        tmp_path_factory.mktemp("labelled"),
        {"train": examples, "test": examples[:7]},
        labels=tfds.features.Sequence(tfds.features.Text()),
    )


@pytest.fixture(scope="module")
def numbers(dataset):
    """Clip of each example: TFDS writes them in an order of its own."""
    return np.array([clip["audio"][0] - 1 for clip in open_source(dataset, "train")])


def fields(dataset, **changed):
    base = dict(dir=str(dataset), batch_size=8, sample_rate=SECOND, max_seconds=0.2)
    return base | dict(max_text_length=48, read_threads=0, labels="labels") | changed


@pytest.fixture(scope="module")
def labels(dataset):
    return read_labels([open_source(dataset, "train")], "labels", CLASSES, "drop")


def take(count, data, tokenizer, labels, **options):
    with train_loader(data, tokenizer, seed=3, labels=labels, **options) as loader:
        return list(islice(loader, count))


def own(batch):
    """Clip of each row, as its sound says, and of what is mixed into it (-1: nothing)."""
    mixed = batch["mix_audio"][:, 0].astype(int) - 1
    return batch["audio"][:, 0] - 1, np.where(batch["mix_length"] > 0, mixed, -1)


def multi_hot(clips):
    return [[clip >= 0 and name in LABELS[clip] for name in CLASSES] for clip in clips]


def test_table(dataset, labels, numbers):
    """Training would see the labels of other clips."""
    source = open_source(dataset, "train")
    assert classes_of([source], "labels") == CLASSES
    assert classes_of([source, source], "label") == ("dog",)
    np.testing.assert_array_equal(labels.rows(range(40)), multi_hot(numbers))
    np.testing.assert_array_equal(labels.kept, np.flatnonzero(numbers < 38))
    again = Labels.from_bytes(labels.to_bytes())
    assert again.classes == labels.classes
    np.testing.assert_array_equal(again.rows(labels.kept), labels.rows(labels.kept))
    # The official script's formula, in a loop.
    counts = [sum(name in names for names in LABELS) for name in CLASSES]
    want = [sum(1 / (counts[CLASSES.index(n)] + 0.01) for n in LABELS[c]) for c in numbers]
    np.testing.assert_allclose(labels.weights(), want, rtol=1e-12, atol=0)
    both = read_labels([source, source], "labels", CLASSES, "keep")
    np.testing.assert_array_equal(both.rows([41]), multi_hot(numbers[[1]]))
    assert len(both.kept) == 80


def test_batches_hold_the_labels_of_their_clips(dataset, labels, tokenizer, numbers):
    """A model would learn that a frog is a dog."""
    for batch in take(10, fields(dataset, mixup_probability=0.5), tokenizer, labels):
        clips, mixed = own(batch)
        np.testing.assert_array_equal(numbers[batch["example_id"]], clips)
        assert batch["labels"].dtype == bool
        np.testing.assert_array_equal(batch["labels"], multi_hot(clips))
        np.testing.assert_array_equal(batch["mix_labels"], multi_hot(mixed))
        np.testing.assert_array_equal(batch["mix_length"], np.where(mixed < 0, 0, 100 + mixed))
        assert max(clips) < 38 and max(mixed) < 38


def test_mixup_draws_uniformly_and_changes_nothing_else(dataset, labels, tokenizer):
    """Half of the clips are mixed, with any other; the order of clips stays that without mixup."""
    plain = take(60, fields(dataset), tokenizer, labels)
    mixed = take(60, fields(dataset, mixup_probability=0.5), tokenizer, labels)
    for one, other in zip(plain, mixed, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    partners = np.concatenate([own(batch)[1] for batch in mixed])
    assert abs((partners >= 0).mean() - 0.5) < 3 * 0.5 / np.sqrt(480)
    found = np.bincount(partners[partners >= 0], minlength=38)
    assert found.min() > 0 and found.max() < 3 * found.mean()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_balanced_batches_do_not_depend_on_hosts_or_restarts(dataset, labels, tokenizer, hosts):
    """A preempted fine-tuning run would go on with other clips."""
    data = fields(dataset, sampling="balanced", mixup_probability=0.5)
    whole = take(6, data, tokenizer, labels)
    shares = []
    for host in range(hosts):
        place = dict(process_index=host, process_count=hosts)
        with train_loader(data, tokenizer, seed=3, labels=labels, **place) as loader:
            loader.set_state({"next_step": 2})
            shares.append(list(islice(loader, 4)))
    for step, parts in enumerate(zip(*shares, strict=True)):
        for name, value in whole[step + 2].items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), value)


def test_balanced_draws_are_in_proportion_to_the_weights(dataset, labels, tokenizer, numbers):
    """Rare classes would stay rare, or one clip would be all that is seen."""
    batches = take(500, fields(dataset, sampling="balanced"), tokenizer, labels)
    ids = np.concatenate([batch["example_id"] for batch in batches])
    want = labels.weights() / labels.weights().sum() * len(ids)
    found = np.bincount(ids, minlength=40)
    assert (found[numbers >= 38] == 0).all()
    found, want = found[numbers < 38], want[numbers < 38]
    # Pearson's statistic of 38 clips has mean 37 and deviation 8.6.
    assert ((found - want) ** 2 / want).sum() < 37 + 4 * 8.6
    shares = labels.rows(ids).mean(axis=0)
    # 34 : 4 : 4 among the clips; a third of the draws for each, and every clip with rain has a dog.
    np.testing.assert_allclose(shares, [2 / 3, 1 / 3, 1 / 3], atol=0.03)


def test_evaluation_batches(dataset, tokenizer):
    """Clips without labels would count as wrong; padding rows as clips of no class."""
    data = fields(dataset)
    table = read_labels([open_source(dataset, "test")], "labels", ("frog", "rain"), "drop")
    clips = [clip["audio"][0] - 1 for clip in open_source(dataset, "test")]
    frog, rain = clips.index(0), clips.index(5)
    np.testing.assert_array_equal(table.kept, sorted([frog, rain]))
    batches = eval_batches(data, tokenizer, "test", 3, bucket_seconds=(0.102,), labels=table)
    assert batches.num_examples == 2 and len(batches) == 2
    rows = list(batches)
    assert [list(b["example_id"]) for b in rows] == [[frog, -1, -1], [rain, -1, -1]]
    np.testing.assert_array_equal(rows[1]["labels"], [[False, True], [False] * 2, [False] * 2])


def test_what_is_wrong_is_named(dataset, tmp_path):
    """A typing error in a class list would show as a bad score after hours."""
    source = [open_source(dataset, "train")]
    with pytest.raises(UserError, match=r"1 labels in 'labels' are none.*'frog' \(4\).*'frogs'"):
        read_labels(source, "labels", ("dog", "frogs", "rain"), "error")
    with pytest.raises(UserError, match=r"2 of 40 clips have no label.*number \d+.*unlabelled"):
        read_labels(source, "labels", CLASSES, "error")
    with pytest.raises(UserError, match=r"no clip has a label"):
        read_labels(source, "labels", ("cat",), "drop")
    with pytest.raises(UserError, match=r"no feature 'labelz'.*did you mean 'label'"):
        classes_of(source, "labelz")
    with pytest.raises(UserError, match=r"unlabelled='skip': must be one of"):
        read_labels(source, "labels", CLASSES, "skip")
    with pytest.raises(UserError, match=r"there is no such file"):
        read_classes(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("dog\n\nfrog\ndog\n")
    with pytest.raises(UserError, match=r"names 1 classes twice, such as 'dog'"):
        read_classes(tmp_path / "classes.txt")


def test_class_files(tmp_path):
    """AudioSet's own list would be read as 528 classes with commas in them."""
    (tmp_path / "classes.txt").write_text("dog\nBow-wow\n\n", encoding="utf-8")
    assert read_classes(tmp_path / "classes.txt") == ("dog", "Bow-wow")
    table = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
    (tmp_path / "class_labels_indices.csv").write_text(table, encoding="utf-8")
    found = read_classes(tmp_path / "class_labels_indices.csv")
    assert found == ("Speech", "Male speech, man speaking")


def test_balanced_sampling_needs_labels(dataset, tokenizer):
    """The run would fail inside the loader's threads."""
    with pytest.raises(UserError, match=r"sampling='balanced' needs labels"):
        train_loader(fields(dataset, labels="", sampling="balanced"), tokenizer, seed=0)
