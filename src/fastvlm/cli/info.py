"""`fastvlm info`: architecture and cost of a checkpoint, without loading it."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fastvlm.cli.failures import FAILED
from fastvlm.cli.mini_notice import ABOUT, is_shipped
from fastvlm.cli.options import DEFAULT_MODEL, DebugOption, JsonOption, QuietOption, RevisionOption
from fastvlm.cli.terminal import Notes, in_bytes, print_json, printable, quiet_libraries
from fastvlm.config_limits import dtype_name

if TYPE_CHECKING:
    from fastvlm.cli.checkpoint_facts import CheckpointFacts
    from fastvlm.formats.quantized_file import QuantizedWeights

_LABEL_WIDTH = 12


def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The shipped 'mini', a folder, or a Hub name, which is fetched.")
    ] = DEFAULT_MODEL,
    revision: RevisionOption = None,
    is_verified: Annotated[
        bool,
        typer.Option("--verify", help="Compare every file with the checkpoint's SHA256SUMS instead; reads them whole."),
    ] = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    is_debug: DebugOption = False,
) -> None:
    """Show the architecture of a checkpoint and what it costs to run.

    Layout, sizes, parameters by part, visual tokens per image, memory by number format, and what the license allows.
    Only the configuration and the headers of the weight files are read.

    With --verify: one line per file that is good, changed, missing or not listed. The exit code is 1 if one is changed
    or missing.

    \b
    Examples:
      fastvlm info
      fastvlm info ./llava-fastvithd_0.5b_stage3
      fastvlm info apple/FastVLM-0.5B --json | jq .parameters.total
      fastvlm info ./fastvlm-0.5b --verify
    """
    notes = Notes(is_quiet=is_quiet)
    if is_verified:
        _verify(model, revision, notes, is_json=is_json)
        return
    with notes.waiting("Reading"):
        quiet_libraries(is_quiet=is_quiet, is_debug=is_debug)
        from fastvlm.cli.checkpoint_facts import read_facts
        from fastvlm.formats.places import checkpoint_path
    facts = read_facts(checkpoint_path(model, revision=revision))
    about = ABOUT if is_shipped(facts.folder.path) else None
    if is_json:
        print_json({"model": model, **facts.as_dict(), "about": about})
    else:
        typer.echo(page(model, facts, about))


def _verify(model: str, revision: str | None, notes: Notes, *, is_json: bool) -> None:
    """Print the state of each file by its checksum; raises typer.Exit(1) if one is changed or missing."""
    from fastvlm.formats.checksums import verify_checksums
    from fastvlm.formats.places import checkpoint_path

    folder = checkpoint_path(model, revision=revision)
    with notes.counting(f"Verifying {model}") as progress:
        checks = verify_checksums(folder, progress)
    is_good = not any(check.state in ("changed", "missing") for check in checks)
    if is_json:
        files = [asdict(check) for check in checks]
        print_json({"model": model, "path": str(folder.absolute()), "is_good": is_good, "files": files})
    else:
        for check in checks:
            typer.echo(_row(check.state.replace("_", " "), printable(check.name)))
    if not is_good:
        raise typer.Exit(FAILED)


def page(model: str, facts: CheckpointFacts, about: str | None = None) -> str:
    """The report: lines of a label and a value; `about` says what the model is good for."""
    folder, text, vision = facts.folder, facts.config.text_config, facts.config.vision_config
    images, counts, quantized = facts.images, facts.parameters, folder.weights.quantized
    size = f", the size of FastVLM-{facts.size.upper()}" if facts.size and facts.size != "mini" else ""
    files = f"{in_bytes(facts.file_bytes)} in {_several(len(folder.weights.files), 'file')}"
    stages = " ".join(f"{stage.depth}x{stage.channels}" for stage in vision.stages)
    layers = f"{_several(text.num_hidden_layers, 'layer')} of {text.hidden_size}"
    heads = f"{text.num_attention_heads} heads of {facts.head_dim} ({text.num_key_value_heads} for keys and values)"
    kv = " or ".join(f"{in_bytes(n)} in {dtype}" for dtype, n in facts.kv_bytes_per_token.items())
    weights = " · ".join(f"{in_bytes(n)} {dtype}" for dtype, n in counts.weight_bytes().items())
    rows = [
        ("model", f"{model}{size}"),
        ("path", str(folder.path.absolute())),
        ("layout", f"{folder.layout}, {dtype_name(folder.dtype)}, {files}"),
        ("encoder", f"FastViTHD, {facts.encoder_form}, stages {stages}, one token per {vision.stride_px} px"),
        ("decoder", f"{text.model_type}, {layers}, {heads}"),
        ("vocabulary", f"{facts.vocabulary_rows:,} rows, {'tied to' if facts.is_head_tied else 'apart from'} the head"),
        ("images", f"{images.height_px} x {images.width_px} px ({images.fit}): {images.visual_tokens} tokens each"),
        ("context", f"{text.max_position_embeddings:,} tokens; each takes {kv} of cache"),
        ("parameters", f"{counts.total:,}"),
        *((f"  {part}", f"{getattr(counts, part):>13,}") for part in ("encoder", "projector", "embeddings", "decoder")),
        ("  head", f"{counts.head:>13,}" if not facts.is_head_tied else f"{'tied':>13}"),
        ("weights", f"{weights} (int8: the decoder's)"),
        *([] if quantized is None else [("quantized", _rounding(quantized))]),
        ("license", facts.license),
        *([] if about is None else [("about", about)]),
    ]
    return "\n".join(_row(label, value) for label, value in rows)


def _rounding(quantized: QuantizedWeights) -> str:
    options = quantized.options
    groups = f" in groups of {options.group_size}" if 4 in (options.bits, options.head_bits) else ""
    encoder = ", encoder in 8" if options.encoder_bits == 8 else ""
    error = "" if quantized.error is None else f"; {quantized.error.mean:.1%} off on average"
    return (
        f"decoder in {options.bits} bits, head in {options.head_bits}{groups}{encoder}: "
        f"{in_bytes(quantized.num_bytes)}{error}"
    )


def _row(label: str, value: str) -> str:
    """A label and its value; long values are wrapped, except paths."""
    indent = " " * (_LABEL_WIDTH + 1)
    lines = textwrap.wrap(value, 100, break_long_words=False, break_on_hyphens=False, drop_whitespace=False) or [""]
    text = f"\n{indent}".join(line.rstrip() for line in (lines if label != "path" else [value]))
    return f"{label:<{_LABEL_WIDTH}} {text}".rstrip()


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
