"""Two clips one after the other, and a caption that says in which order.

Wu, Nieto, Bello and Salamon, "Audio-Text Models Do Not Yet Leverage Natural Language" (2303.10667):
models that match sounds with nouns and verbs do not learn what `then` and `before` mean, unless
they see pairs whose order matters. The paper's wording of the joined captions is not published; the
forms here are ours. No pause lies between the clips.
"""

from __future__ import annotations

import numpy as np

# The first {a} is heard, then {b}.
FORMS = (
    "{a} followed by {b}",
    "{a}, then {b}",
    "first {a}, then {b}",
    "{a} before {b}",
    "{b} after {a}",
)


def join_captions(first: str, second: str, draw: float) -> str:
    """Says that `first` is followed by `second`.

    Args:
      first: caption of the clip that comes first; "" leaves the other one alone.
      second: caption of the next one.
      draw: 0..1, which form is taken.

    Returns:
      One caption, without the full stops of the two.
    """
    first, second = (_inner(caption) for caption in (first, second))
    if not first or not second:
        return first or second
    # Not str.format: a caption may hold braces.
    form = FORMS[int(draw * len(FORMS))]
    before, middle, after = form.replace("{b}", "{a}").split("{a}")
    one, other = (first, second) if form.index("{a}") < form.index("{b}") else (second, first)
    return f"{before}{one}{middle}{other}{after}"


def _inner(caption: str) -> str:
    return caption.strip().rstrip(".").rstrip()


def join_audio(
    first: np.ndarray, second: np.ndarray, samples: int, places: tuple[float, float]
) -> list[np.ndarray]:
    """Crops two clips so that both fit in `samples`; each has half of it unless it needs less.

    Args:
      first: int16 [S] clip.
      second: the next one.
      samples: that there is room for.
      places: 0..1, where in a clip its crop begins.
    """
    half = samples // 2
    room = max(half, samples - len(second)), max(samples - half, samples - len(first))
    clips = zip((first, second), room, places, strict=True)
    return [crop(audio, size, place) for audio, size, place in clips]


def crop(audio: np.ndarray, samples: int, place: float) -> np.ndarray:
    """At most `samples` of a clip, beginning at `place`, 0..1, of where they can begin."""
    start = int(place * (max(0, len(audio) - samples) + 1))
    return audio[start : start + samples]
