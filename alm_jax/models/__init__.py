"""Towers, decoders and poolers; `audio_text.AudioTextModel` puts them together from a config."""
