"""Numbers in the words of the report."""

import pytest

from alm_jax.report import numbers


def _row(value: float, chance: float | None = 0.1, unit: str = "fraction") -> dict:
    return {"value": value, "chance": chance, "unit": unit, "n_clips": 863, "n_captions": 830}


def _retrieval(model: float, ridge: float, chance: float = 0.012) -> dict:
    name = "retrieval/audio_to_text/R@10"
    return {f"eval/{name}": _row(model, chance), f"baseline/ridge/{name}": _row(ridge, chance)}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.5304, "fraction", "53.0%"),
        (12.5, "rank", "12.5"),
        (0.1234, "score", "0.123"),
        (1.2e-6, "relative", "1.2e-06"),
        (7213456, "count", "7,213,456"),
        (None, "fraction", "–"),
    ],
)
def test_shown(value: float | None, unit: str, text: str) -> None:
    """A number would stand on the page in another unit than its own."""
    assert numbers.shown(value, unit) == text


def test_verdict_is_honest() -> None:
    """A model that lost to ridge regression, or to chance, would be praised."""
    assert "15.0 points more" in numbers.verdict(_retrieval(0.53, 0.38))
    assert "too little" in numbers.verdict(_retrieval(0.30, 0.38))
    assert "no better than chance" in numbers.verdict(_retrieval(0.2, 0.1, chance=0.3))
    assert numbers.verdict({}) == ""


def test_comparisons_show_model_baseline_and_chance() -> None:
    """A headline number would stand without what it is to be compared with."""
    (item,) = numbers.comparisons(_retrieval(0.53, 0.38))
    assert [(bar.name, bar.text) for bar in item.bars] == [
        ("this model", "53.0%"),
        ("ridge regression", "38.0%"),
        ("chance", "1.2%"),
    ]
    assert item.bars[0].share == pytest.approx(53.0)
    assert item.note == "863 clips, 830 captions"


def test_export_compared_name_by_name() -> None:
    """The report would state that PyTorch's numbers are equal when one of them is not."""
    results = {
        "eval/retrieval/audio_to_text/R@1": _row(0.25),
        "eval/retrieval/audio_to_text/R@10": _row(0.5),
        "export/retrieval/audio_to_text/R@1": _row(0.25),
        "export/retrieval/audio_to_text/R@10": _row(0.501),
        "export/parity/audio_embedding": _row(1e-6),
    }
    assert numbers.exported_equal(results) == (2, ["retrieval/audio_to_text/R@10"])
