"""Validates the metadata of a file of quantized weights key by key, because it may come from an untrusted source.

It is one JSON object in the file's safetensors metadata; ``quantized_file.py`` writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastvlm.formats.json_files import parse_json

QUANTIZED_FILE = "fastvlm_quantised.safetensors"  # the spelling of version 0.1, whose folders go on opening
REST_FILE = "fastvlm_rest.safetensors"
METADATA_KEY = "fastvlm_quantised"
_DTYPES = ("bfloat16", "float16", "float32")


def parse_metadata(text: str | None, known_formats: Sequence[str]) -> dict[str, Any]:
    """The object in `text`, each value of the right type.

    Returns:
        ``format``, ``digest`` (str), ``dtype`` (name of a torch dtype), ``has_tied_head`` (bool), ``options``
        (integers), ``error`` (floats), ``products`` (list of ``names`` and ``rows``, as many of either).

    Raises:
        ValueError: no JSON, another format, or a key that is missing, unknown or of another type; it says which.
    """
    about = _object(text)
    found = about.get("format")
    if found not in known_formats:
        known = " and ".join(map(repr, known_formats))
        raise ValueError(f"it has the quantized format {_short(found)}; this version reads {known}")
    _check_object("metadata", about, _KINDS)
    _check_object("options", about["options"], _OPTIONS)
    _check_object("error", about["error"], _ERROR)
    for index, product in enumerate(about["products"]):
        _check_object(f"products[{index}]", product, _PRODUCT)
        if len(product["names"]) != len(product["rows"]):
            raise ValueError(f"products[{index}] has {len(product['names'])} names and {len(product['rows'])} rows")
    return about


def _object(text: str | None) -> dict[str, Any]:
    try:
        about = parse_json((text or "{}").encode())
    except ValueError as error:
        raise ValueError(f"its metadata is not valid JSON ({error})") from error
    if not isinstance(about, dict):
        raise ValueError(f"its metadata is {_short(about)}; expected an object")
    return about


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_error(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _is_list_of(is_item: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(is_item, value))


# What each value has to be: a test of it, and the test in words.
_Kinds = Mapping[str, tuple[Callable[[object], bool], str]]
_TEXT = (lambda value: isinstance(value, str), "a string")
_DICT = (lambda value: isinstance(value, dict), "an object")
_KINDS: _Kinds = {
    "format": _TEXT,
    "options": _DICT,
    "error": _DICT,
    "dtype": (lambda value: value in _DTYPES, f"one of {', '.join(_DTYPES)}"),
    "has_tied_head": (lambda value: isinstance(value, bool), "true or false"),
    "products": (_is_list_of(lambda value: isinstance(value, dict)), "a list of objects"),
    "digest": _TEXT,
}
_OPTIONS: _Kinds = dict.fromkeys(("bits", "group_size", "head_bits"), (_is_count, "a positive integer"))
_ERROR: _Kinds = dict.fromkeys(("mean", "largest"), (_is_error, "a finite number, 0 or more"))
_PRODUCT: _Kinds = {
    "names": (_is_list_of(lambda value: isinstance(value, str)), "a list of strings"),
    "rows": (_is_list_of(_is_count), "a list of positive integers"),
}


def _check_object(where: str, found: Mapping[str, Any], kinds: _Kinds) -> None:
    if found.keys() != kinds.keys():
        odd = sorted(found.keys() ^ kinds.keys())[0]
        raise ValueError(f"{where} {'has an unknown' if odd in found else 'lacks the'} key {_short(odd)}")
    for key, (is_kind, expected) in kinds.items():
        if not is_kind(found[key]):
            raise ValueError(f"{where}.{key} is {_short(found[key])}; expected {expected}")


def _short(value: object) -> str:
    """`value` in a message: its beginning."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
