"""How to use an exported folder, for its README.md: one text a layout."""

from __future__ import annotations

from ml_collections import ConfigDict

from alm_jax.audio.patches import PatchConfig


def usage(config: ConfigDict, layout: str) -> str:
    """The section "Use" of README.md.

    Args:
      config: `exported.export_config`'s.
      layout: name of the `layouts.Layout`.
    """
    needs, lines, note = _USAGES[layout](config)
    code = "\n".join(lines)
    return (
        f"Needs {needs}; nothing of alm_jax.\n\n```python\n{code}\n```\n\n"
        f"{note.format(seconds=config.data.max_seconds)}"
    )


def _torch_usage(config: ConfigDict) -> tuple[str, list[str], str]:
    rate = config.frontend.sample_rate
    lines = [
        "from modeling_alm import AudioTextModel  # with this folder on sys.path",
        'model = AudioTextModel.from_pretrained(".")',
        f"audio = model.embed_audio([waveform], sample_rate={rate})  # mono, int16 or [-1, 1]",
    ]
    needs = "torch and numpy"
    if config.model.text is not None:
        needs += f" ({_tokenizer_package(config)} for text)"
        lines += [
            'text = model.embed_text(["a dog barks", "rain"])',
            "print(audio @ text.T)  # cosines",
        ]
    if config.model.text is not None and config.model.caption_decoder is not None:
        lines.append(f"print(model.caption([waveform], sample_rate={rate}))")
    if config.model.get("classifier") is not None:
        lines.append(f"logits = model.classify([waveform], sample_rate={rate})")
    if config.model.get("mae_decoder") is not None:
        lines += [
            f"visible, dropped = [0, 3], [1, 2]  # {_slots(config)}",
            f"batch = model.batch(model.clips([waveform], sample_rate={rate}))",
            "prediction, patches = model.reconstruct(*batch, visible, dropped)",
        ]
    note = (
        "A waveform longer than {seconds:g} s is embedded window by window; resampling is the "
        "caller's business."
    )
    return needs, lines, note


def _hf_usage(config: ConfigDict) -> tuple[str, list[str], str]:
    rate = config.frontend.sample_rate
    has_text = config.model.text is not None
    text = ', text=["a dog barks", "rain"]' if has_text else ""
    lines = [
        "from transformers import AutoModel, AutoProcessor",
        'model = AutoModel.from_pretrained(".", trust_remote_code=True)',
        'processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)',
        f"inputs = processor(audio=[waveform]{text}, sampling_rate={rate})",
        "outputs = model(**inputs)",
        "print(outputs.audio_embeds"
        + (" @ outputs.text_embeds.T)  # cosines" if has_text else ")"),
    ]
    needs = "transformers" + (f" and {_tokenizer_package(config)}" if has_text else "")
    note = (
        "Another sampling_rate is resampled if soxr is installed. A waveform longer than "
        "{seconds:g} s is embedded window by window. modeling_alm.py also works without "
        "transformers: `modeling_alm.AudioTextModel`."
    )
    return needs, lines, note


def _clap_usage(config: ConfigDict) -> tuple[str, list[str], str]:
    lines = [
        "from transformers import ClapModel, ClapProcessor",
        'model = ClapModel.from_pretrained(".")',
        'processor = ClapProcessor.from_pretrained(".")',
        f'inputs = processor(audio=[waveform], text=["a dog barks", "rain"], return_tensors="pt", '
        f"padding=True, sampling_rate={config.frontend.sample_rate})",
        "outputs = model(**inputs)",
        "print(outputs.audio_embeds @ outputs.text_embeds.T)  # cosines",
    ]
    note = "Of a longer waveform than ten seconds, the processor takes a random part."
    if config.model.audio.fusion != "none":
        note = (
            "Of a longer waveform than ten seconds, the processor takes random parts; of a batch "
            "of shorter ones it treats one, at random, as if it were longer: give the model "
            "`is_longer=[[False], ...]` for embeddings that do not depend on chance."
        )
    return "transformers", lines, note


# Kind of tokenizer -> lines that open it, the ids of a string, the string of ids.
_PIECES = {
    "": ([], "[5, 6, 7]", "tokens"),
    "json": (
        ["import tokenizers", 'pieces = tokenizers.Tokenizer.from_file("tokenizer.json")'],
        "pieces.encode(string, add_special_tokens=False).ids",
        "pieces.decode(tokens[0].tolist())",
    ),
    "sentencepiece": (
        [
            "import sentencepiece",
            'pieces = sentencepiece.SentencePieceProcessor("tokenizer.model")',
        ],
        "pieces.encode(string)",
        "pieces.decode(tokens[0].tolist())",
    ),
}


def _onnx_usage(config: ConfigDict) -> tuple[str, list[str], str]:
    outputs = "(embedding,)"
    if config.model.get("classifier") is not None:
        outputs = "embedding, class_logits"
    elif config.model.text is not None and config.model.caption_decoder is not None:
        outputs = "embedding, states, states_mask"
    lines = [
        "import numpy as np, onnxruntime",
        'audio = onnxruntime.InferenceSession("audio.onnx")',
        "waveform = np.zeros((1, 8000), np.float32)  # [B, S] in [-1, 1], zeros behind short clips",
        "lengths = np.array([8000])  # [B] samples of each clip",
        f'{outputs} = audio.run(None, {{"waveform": waveform, "lengths": lengths}})',
    ]
    if config.model.get("mae_decoder") is not None:
        lines += [
            'mae = onnxruntime.InferenceSession("mae.onnx")',
            "visible, dropped = np.array([[0, 3]]), np.array([[1, 2]])  # [B, K], [B, M]",
            f"# {_slots(config)}",
            "given = dict(waveform=waveform, lengths=lengths, visible=visible, dropped=dropped)",
            "prediction, patches, patches_mask = mae.run(None, given)",
        ]
    needs = "onnxruntime and numpy"
    if config.model.text is not None:
        most = config.data.max_text_length
        bos, eos = (config.export.tokens[name] for name in ("bos", "eos"))
        # An imported model may lack its tokenizer.
        opened, ids, decode = _PIECES[config.export.tokenizer]
        if opened:
            needs += f" ({_tokenizer_package(config)} for strings)"
            opened = [*opened, 'string = "a dog barks"']
        lines += opened
        lines += [
            'text = onnxruntime.InferenceSession("text.onnx")',
            f"tokens = np.array([[{bos}, *{ids}[:{most - 2}], {eos}]])",
            "mask = np.ones(tokens.shape, bool)  # False where a shorter row of a batch has ended",
            '(embedding,) = text.run(None, {"tokens": tokens, "mask": mask})',
        ]
        if config.model.caption_decoder is not None:
            lines += [
                'caption = onnxruntime.InferenceSession("caption.onnx")',
                f"tokens = np.array([[{bos}]])",
                f"while tokens[0, -1] != {eos} and tokens.shape[1] <= {most}:",
                "    given = dict(tokens=tokens, mask=np.ones(tokens.shape, bool))",
                "    given |= dict(states=states, states_mask=states_mask)",
                "    (logits,) = caption.run(None, given)",
                "    tokens = np.append(tokens, logits[:, -1:].argmax(-1), 1)",
                f"print({decode})",
            ]
    note = (
        f"Waveforms have {config.frontend.sample_rate} Hz and at most {{seconds:g}} s. Rows of the "
        "embeddings have norm 1. The weights of a large model are in `weights.data`, which belongs "
        "beside the graphs."
    )
    return needs, lines, note


_USAGES = {"torch": _torch_usage, "hf": _hf_usage, "clap": _clap_usage, "onnx": _onnx_usage}


def _tokenizer_package(config: ConfigDict) -> str:
    return "tokenizers" if config.export.tokenizer == "json" else "sentencepiece"


def _slots(config: ConfigDict) -> str:
    rows = PatchConfig(**config.patches).rows(int(config.frontend.num_mels))
    return f"slot of a patch: column in time * {rows} + row in frequency"
