"""One modelling file for one model, assembled from the definitions in `torch_modelling`.

The file holds `AudioTextModel`, `compare`, `main` and what they refer to, transitively, and nothing
else. A reference that only some models need runs through a table (a dict that names its choices) or
through a base class of `Parts`; `choices` says which entries a config uses, the others are left out
before references are followed.

Source: the standard library's `ast` tells definitions and references; text is copied as written.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_PACKAGE = "alm_jax.interop.torch_modelling"
# In the order of the assembled file.
_MODULES = (
    "files",
    "front_end",
    "patches",
    "layers",
    "positions",
    "vit",
    "windows",
    "pictures",
    "htsat",
    "mae_decoders",
    "swin_decoder",
    "heads",
    "text",
    "tokenizers",
    "audio_side",
    "text_side",
    "caption_side",
    "mae_side",
    "label_side",
    "model",
)
_ROOTS = ("AudioTextModel", "compare", "main")
_WIDTH = 100
_RUN = """
if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
"""


@dataclasses.dataclass
class _Definition:
    """A top-level statement: its text with the comments above, the names it binds and reads."""

    module: str
    text: str
    reads: set[str]
    simple: bool  # an assignment, not a class or function


def choices(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a config uses of each table, and the base classes of `Parts`.

    Args:
      config: `exported.export_config`'s, whose defaults are spelt out.
    """
    model = config["model"]
    stacks = [model[name] for name in ("audio", "mae_decoder") if model.get(name)]
    pools = [model[name]["kind"] for name in ("audio_pool", "text_pool") if model.get(name)]
    transformers = [model.get(name) for name in ("text", "caption_decoder")]
    activations = [part.get("activation", "gelu") for part in (*stacks, *transformers) if part]
    bases = [
        name
        for name, part in (
            ("CaptionSide", model.get("text") and model.get("caption_decoder")),
            ("TextSide", model.get("text") and not model.get("caption_decoder")),
            ("MaeSide", model.get("mae_decoder")),
            ("LabelSide", model.get("classifier")),
        )
        if part
    ]
    classifier = [model["classifier"].get("pool", "mean")] if model.get("classifier") else []
    return {
        "Parts": bases or ["AudioSide"],
        "TOWERS": [model["audio"]["tower"]],
        "POSITIONS": [part["positions"] for part in stacks if "positions" in part],
        "DECODERS": [model["mae_decoder"]["decoder"]] if model.get("mae_decoder") else [],
        "POOLERS": pools + classifier,
        "PROJECTIONS": [model["projection"]] if model.get("text") else [],
        "ACTIVATIONS": activations,
        "TOKENIZERS": [config["export"]["tokenizer"]] if config["export"]["tokenizer"] else [],
    }


def standalone_source(config: Mapping[str, Any]) -> str:
    """The text of the modelling file of a model.

    Args:
      config: `exported.export_config`'s.
    """
    chosen = choices(config)
    definitions: dict[str, _Definition] = {}
    imports = {"sys": ("", "sys")}  # for what is run as a program
    for module in _MODULES:
        _read(module, chosen, definitions, imports)
    needed = _reachable(definitions, _ROOTS)
    used = set().union(*(definitions[name].reads for name in needed)) | {"sys", "Path"}
    parts = [_header(config), _imports({n: i for n, i in imports.items() if n in used})]
    section, before_simple = "", False
    for name, definition in definitions.items():
        if name not in needed:
            continue
        if definition.module != section:
            parts.append("\n\n" if section else "\n")
            section = definition.module
            parts.append(f"# {'-' * 76} {section.replace('_', ' ')}\n")
            parts.append("\n" if definition.simple else "\n\n")
        else:
            parts.append("" if definition.simple and before_simple else "\n\n")
        parts.append(definition.text)
        before_simple = definition.simple
    return "".join(parts) + "\n" + _RUN


def _header(config: Mapping[str, Any]) -> str:
    model, rate = config["model"], config["frontend"]["sample_rate"]
    lines = [
        f"    audio = model.embed_audio([waveform], sample_rate={rate})    # [1, J], unit norm"
    ]
    needs = "only torch and numpy"
    if model.get("text"):
        package = {"json": "tokenizers", "sentencepiece": "sentencepiece"}
        if kind := config["export"]["tokenizer"]:
            needs += f" ({package[kind]} for text)"
        lines.append('    text = model.embed_text(["a dog barks"])                    # [1, J]')
        lines.append("    print(audio @ text.T)                                       # cosines")
    if model.get("caption_decoder") and model.get("text"):
        lines.append(f"    print(model.caption([waveform], sample_rate={rate}))")
    if model.get("classifier"):
        lines.append(f"    logits = model.classify([waveform], sample_rate={rate})     # [1, Y]")
    return f'''"""An audio model in PyTorch, as one file that needs {needs}.

Every parameter bears the name it has in model.safetensors, and the numbers equal those of the JAX
model that was exported: `python modeling_alm.py FOLDER` compares them with golden.npz.

    from modeling_alm import AudioTextModel
    model = AudioTextModel.from_pretrained("FOLDER")
{chr(10).join(lines)}

Shapes: B batch, S samples, T frames, F mel bins, N patches, N' states, P patch pixels, L text
length, D width, H heads, J joint width, V vocabulary. Padding a batch never changes a result.
"""
# ruff: noqa: D102  (what a layer does stands at its class)

from __future__ import annotations

'''


def _read(
    module: str,
    chosen: Mapping[str, list[str]],
    definitions: dict[str, _Definition],
    imports: dict[str, tuple[str, str]],
) -> None:
    """Adds a module's definitions, and its imports as name -> (line without names, name)."""
    path = Path(__file__).parent / _PACKAGE.rpartition(".")[2] / f"{module}.py"
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    end = 0
    for node in ast.parse(source).body:
        first, end = end, node.end_lineno or 0
        if isinstance(node, ast.Expr) or getattr(node, "module", "") == "__future__":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if isinstance(node, ast.Import):
                    imports[alias.asname or alias.name] = ("", _spelt(alias))
                elif not str(node.module).startswith(_PACKAGE):
                    imports[alias.asname or alias.name] = (str(node.module), _spelt(alias))
            continue
        text = "".join(lines[first:end]).strip("\n") + "\n"
        name = _bound(node)
        if name in chosen:
            node, text = _pruned(node, text, chosen[name])
        reads = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        definitions[name] = _Definition(module, text, reads, isinstance(node, _ASSIGNMENTS))


_ASSIGNMENTS = (ast.Assign, ast.AnnAssign)


def _spelt(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _bound(node: ast.stmt) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    if isinstance(target, ast.Tuple):
        raise ValueError("torch_modelling: one name an assignment, so that each can be left out")
    assert isinstance(target, ast.Name), ast.dump(node)
    return target.id


def _pruned(node: ast.stmt, text: str, kept: Iterable[str]) -> tuple[ast.stmt, str]:
    """A table with the entries `kept` alone, or a class with those bases."""
    if isinstance(node, ast.ClassDef):
        node.bases = [ast.Name(name) for name in kept]
        _, _, rest = text.partition("):\n")
        return node, f"class {node.name}({', '.join(kept)}):\n{rest}"
    assert isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    table = node.value
    entries = {
        key.value: value
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant) and key.value in set(kept)
    }
    table.keys, table.values = [ast.Constant(key) for key in entries], list(entries.values())
    start = f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)} = {{"
    items = [f'"{key}": {ast.unparse(v).replace(chr(39), chr(34))}' for key, v in entries.items()]
    line = f"{start}{', '.join(items)}}}\n"
    if len(line) > _WIDTH:
        line = start + "\n" + "".join(f"    {item},\n" for item in items) + "}\n"
    return node, line


def _reachable(definitions: Mapping[str, _Definition], roots: Iterable[str]) -> set[str]:
    """The names that `roots` read, and what those read."""
    found: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in found or name not in definitions:
            continue
        found.add(name)
        todo += definitions[name].reads
    return found


def _imports(names: Mapping[str, tuple[str, str]]) -> str:
    """The import statements, standard library first, sorted as ruff does."""
    blocks = []
    for standard in (True, False):
        plain: list[str] = []
        of_module: dict[str, set[str]] = {}
        for module, spelt in names.values():
            top = (module or spelt).partition(".")[0].partition(" ")[0]
            if (top in sys.stdlib_module_names) != standard:
                continue
            if module:
                of_module.setdefault(module, set()).add(spelt)
            else:
                plain.append(spelt)
        lines = [f"import {name}" for name in sorted(plain)]
        for module in sorted(of_module):
            # Constants, classes, then the rest, as ruff sorts them.
            some = sorted(of_module[module], key=lambda n: (not n.isupper(), n.islower(), n))
            lines.append(f"from {module} import {', '.join(some)}")
        if lines:
            blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)
