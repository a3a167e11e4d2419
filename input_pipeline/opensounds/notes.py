"""Renders single notes of a SoundFont 2 file with numpy, so that no compiled synthesiser is needed.

Covers what the notes of a General MIDI bank use: preset and instrument zones, loops, tuning, volume
and modulation envelopes, both LFOs, the low-pass filter and velocity. Left out: chorus, reverb,
panning (the result is mono) and modulator lists other than velocity to volume.

Source: SoundFont Technical Specification 2.04, chapters 8 (generators) and 9 (synthesis).
"""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import parse_qsl

import numpy as np
import soxr
from scipy.signal import lfilter

from input_pipeline.audio_files import SAMPLE_RATE
from input_pipeline.opensounds import soundfont
from input_pipeline.opensounds.soundfont import SoundFont, SoundFontError, Zone

RATE = 44100
HOLD_SECONDS = 1.5
TOTAL_SECONDS = 2.0
# Envelopes and oscillators are computed every 64 samples (1.5 ms) and interpolated.
_CONTROL = 64
_FILTER_BLOCK = 32 * _CONTROL

# Generator numbers (specification 8.1.2).
_START, _END, _LOOP_START, _LOOP_END = (0, 4), (1, 12), (2, 45), (3, 50)
_MOD_LFO_PITCH, _VIB_LFO_PITCH, _MOD_ENV_PITCH = 5, 6, 7
_FILTER_FC, _FILTER_Q, _MOD_LFO_FC, _MOD_ENV_FC, _MOD_LFO_VOLUME = 8, 9, 10, 11, 13
_MOD_LFO, _VIB_LFO = (21, 22), (23, 24)
_MOD_ENV, _VOL_ENV = 25, 33
_ATTENUATION = 48
_COARSE_TUNE, _FINE_TUNE, _MODES, _SCALE_TUNING, _ROOT_KEY = 51, 52, 54, 56, 58

_DEFAULTS = {
    _FILTER_FC: 13500,
    _SCALE_TUNING: 100,
    _ROOT_KEY: -1,
    _MOD_LFO[0]: -12000,
    _VIB_LFO[0]: -12000,
}
_DEFAULTS |= {base + step: -12000 for base in (_MOD_ENV, _VOL_ENV) for step in (0, 1, 2, 3, 5)}
# Sample addresses, ranges and the like: a preset's value is ignored (8.5).
_INSTRUMENT_ONLY = frozenset(
    {*range(5), 12, 45, 46, 47, 50, 57, _MODES, _ROOT_KEY}
    | {soundfont.KEY_RANGE, soundfont.VEL_RANGE, soundfont.SAMPLE}
)


@dataclasses.dataclass(frozen=True)
class Note:
    """One note: MIDI bank, program (0-127), key (60 is C4) and velocity (1-127)."""

    bank: int
    program: int
    note: int
    velocity: int


def parse_note(path: str) -> Note:
    """``font.sf2#bank=0,program=40,note=60,velocity=90`` -> Note.

    Raises:
      ValueError: a field is missing or is no number.
    """
    fields = dict(parse_qsl(path.partition("#")[2].replace(",", "&")))
    if not all(re.fullmatch(r"\d+", fields.get(f.name, "")) for f in dataclasses.fields(Note)):
        raise ValueError(
            f"{path}: a note is written font.sf2#bank=0,program=40,note=60,velocity=90"
        )
    return Note(**{f.name: int(fields[f.name]) for f in dataclasses.fields(Note)})


def _inside(zone: Zone, generator: int, value: int) -> bool:
    packed = zone.get(generator, 0x7F00)
    return packed & 0xFF <= value <= packed >> 8


def _seconds(timecents: float) -> float:
    return 2.0 ** (timecents / 1200) if timecents > -12000 else 0.0


def _envelope(zone: Zone, base: int, key: int, time: np.ndarray, volume: bool) -> np.ndarray:
    """Envelope in 0..1 at ``time``: straight in decibels for volume, else straight."""
    delay, attack = _seconds(zone[base]), _seconds(zone[base + 1])
    hold = _seconds(zone[base + 2] + (60 - key) * zone.get(base + 6, 0))
    decay = max(_seconds(zone[base + 3] + (60 - key) * zone.get(base + 7, 0)), 1e-3)
    release = max(_seconds(zone[base + 5]), 1e-2)
    drop = (
        zone.get(base + 4, 0) / 1000
    )  # sustain: centibels below full, or tenths of a percent; 1000 is silence
    # Level as a fraction of the full 100 dB (volume) or of full scale (modulation) below the peak.
    below = np.minimum(
        np.maximum(time - (delay + attack + hold), 0) / decay, min(max(drop, 0.0), 1.0)
    )
    below = below + np.maximum(time - HOLD_SECONDS, 0) / release
    level = 10.0 ** (-5.0 * np.minimum(below, 2.0)) if volume else np.maximum(1.0 - below, 0.0)
    rise = np.clip((time - delay) / attack, 0, 1) if attack > 0 else (time >= delay)
    return level * rise


def _lfo(zone: Zone, generators: tuple[int, int], time: np.ndarray) -> np.ndarray:
    """Triangle LFO [S] in -1..1."""
    running = np.maximum(time - _seconds(zone[generators[0]]), 0)
    phase = running * 8.176 * 2.0 ** (zone.get(generators[1], 0) / 1200)
    return 1 - 4 * np.abs((phase + 0.25) % 1 - 0.5)


def _low_pass(audio: np.ndarray, cents: np.ndarray, q_centibels: int) -> np.ndarray:
    """Second-order resonant low-pass of audio [S]; its cutoff moves every 2,048 samples.

    Args:
      audio: float [S].
      cents: cutoff in absolute cents at control rate.
      q_centibels: resonance above the Butterworth response.
    """
    q = 10.0 ** (max(q_centibels, 0) / 200) / np.sqrt(2)
    state = np.zeros(2)
    out = np.empty_like(audio)
    for start in range(0, len(audio), _FILTER_BLOCK):
        part = slice(start, start + _FILTER_BLOCK)
        cutoff = float(cents[start // _CONTROL : part.stop // _CONTROL].mean())
        omega = 2 * np.pi * min(8.176 * 2.0 ** (cutoff / 1200), 0.45 * RATE) / RATE
        alpha, cosine = np.sin(omega) / (2 * q), np.cos(omega)
        b = np.array([(1 - cosine) / 2, 1 - cosine, (1 - cosine) / 2])
        out[part], state = lfilter(b, [1 + alpha, -2 * cosine, 1 - alpha], audio[part], zi=state)
    return out


def _address(zone: Zone, fine_coarse: tuple[int, int]) -> int:
    return zone.get(fine_coarse[0], 0) + 32768 * zone.get(fine_coarse[1], 0)


def _to_audio_rate(control: np.ndarray, frames: int) -> np.ndarray:
    """Straight lines between control values; four times faster than ``np.interp`` here."""
    ramp = np.arange(_CONTROL) / _CONTROL
    return (control[:-1, None] + np.diff(control)[:, None] * ramp).reshape(-1)[:frames]


def _positions(start: int, cents: np.ndarray, rate: int, frames: int) -> np.ndarray:
    """Read positions [S] in the pool, ``cents`` (control rate) above the recorded pitch."""
    steps = 2.0 ** (cents / 1200) * (rate / RATE)
    if steps.min() == steps.max():
        return start + np.arange(frames) * steps[0]
    return start + np.cumsum(_to_audio_rate(steps, frames)) - steps[0]


def _render_zone(font: SoundFont, zone: Zone, note: Note, frames: int) -> np.ndarray:
    """One voice: float64 [S], S = ``frames`` at 44.1 kHz."""
    sample = font.samples[zone[soundfont.SAMPLE]]
    start, end = sample.start + _address(zone, _START), sample.end + _address(zone, _END)
    loop_start = sample.loop_start + _address(zone, _LOOP_START)
    loop_end = sample.loop_end + _address(zone, _LOOP_END)
    end = min(end, len(font.pool))
    if start < 0 or end - start < 2:
        return np.zeros(frames)
    time = np.arange(-(-frames // _CONTROL) + 1) * (_CONTROL / RATE)
    mod_env = _envelope(zone, _MOD_ENV, note.note, time, volume=False)
    mod_lfo, vib_lfo = _lfo(zone, _MOD_LFO, time), _lfo(zone, _VIB_LFO, time)

    root = zone[_ROOT_KEY] if zone[_ROOT_KEY] >= 0 else sample.root
    cents = (note.note - root) * zone[_SCALE_TUNING] + sample.correction
    cents += 100 * zone.get(_COARSE_TUNE, 0) + zone.get(_FINE_TUNE, 0)
    moved = zone.get(_MOD_ENV_PITCH, 0) * mod_env + zone.get(_MOD_LFO_PITCH, 0) * mod_lfo
    position = _positions(
        start, cents + moved + zone.get(_VIB_LFO_PITCH, 0) * vib_lfo, sample.rate, frames
    )

    last = end - 1
    looping = zone.get(_MODES, 0) & 1 and start <= loop_start < loop_end <= end
    if looping:
        first = int(np.searchsorted(position, loop_end))
        position[first:] = loop_start + np.fmod(
            position[first:] - loop_start, loop_end - loop_start
        )
        last = loop_end - 1
    sounding = frames if looping else int(np.searchsorted(position, last))
    whole = position[:sounding].astype(np.int64)
    fraction = position[:sounding] - whole
    following = whole + 1
    if looping:
        following[following > last] = loop_start
    here = font.pool[whole].astype(np.float64)
    audio = np.zeros(frames)
    audio[:sounding] = (here + (font.pool[following] - here) * fraction) / 32768.0

    cutoff = (
        zone[_FILTER_FC] + zone.get(_MOD_ENV_FC, 0) * mod_env + zone.get(_MOD_LFO_FC, 0) * mod_lfo
    )
    if cutoff.min() < 13500:
        audio = _low_pass(audio, np.clip(cutoff, 1500, 13500), zone.get(_FILTER_Q, 0))
    centibels = max(zone.get(_ATTENUATION, 0), 0) - zone.get(_MOD_LFO_VOLUME, 0) * mod_lfo
    gain = (
        10.0 ** (-centibels / 200) * (note.velocity / 127) ** 2
    )  # 8.4.1: velocity to attenuation, concave
    gain = gain * _envelope(zone, _VOL_ENV, note.note, time, volume=True)
    return audio * _to_audio_rate(gain, frames)


def render(font: SoundFont, note: Note, *, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Renders one note, held 1.5 s and released for 0.5 s.

    Args:
      font: the soundfont.
      note: what to play.
      sample_rate: rate of the result in Hz.

    Returns:
      float32 [S], S = 2 s; all zeros where the preset has no zone for this key and velocity.

    Raises:
      SoundFontError: the soundfont has no such preset.
    """
    if (note.bank, note.program) not in font.presets:
        raise SoundFontError(f"the soundfont has no bank {note.bank}, program {note.program}")
    mix = np.zeros(round(TOTAL_SECONDS * RATE))
    for preset_zone in font.presets[note.bank, note.program]:
        if not (
            _inside(preset_zone, soundfont.KEY_RANGE, note.note)
            and _inside(preset_zone, soundfont.VEL_RANGE, note.velocity)
        ):
            continue
        for zone in font.instruments[preset_zone[soundfont.INSTRUMENT]]:
            if _inside(zone, soundfont.KEY_RANGE, note.note) and _inside(
                zone, soundfont.VEL_RANGE, note.velocity
            ):
                merged = _DEFAULTS | zone
                for number, value in preset_zone.items():
                    if number not in _INSTRUMENT_ONLY:
                        merged[number] = merged.get(number, 0) + value
                mix += _render_zone(font, merged, note, len(mix))
    return soxr.resample(mix.astype(np.float32), RATE, sample_rate)
