"""The Qwen2 tokenizer of a checkpoint, based on the `tokenizers` library.

transformers builds its Qwen2 tokenizer from the file's vocabulary and merges and ignores the file's other settings.
Where those agree with transformers, the file alone gives the same tokens. Otherwise :func:`open_tokenizer` raises
:class:`UnusualCheckpointError`, because only transformers then gives the right tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from fastvlm.errors import UnusualCheckpointError

_FILE, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_OLDER_FILES = ("added_tokens.json", "special_tokens_map.json")  # read only where the settings name no added tokens
_OLDER_VOCABULARY = ("vocab.json", "merges.txt")
_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
# Source: transformers 5.23, ``models/qwen2/tokenization_qwen2.py``.
_NORMALISER = {"type": "NFC"}
_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENISERS = [
    {"type": "Split", "pattern": {"Regex": _CUTS}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
]
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")  # in their order
_DEFAULTS = {"unk_token": "<|endoftext|>"}
_UNNAMED = ("extra_special_tokens", "additional_special_tokens")  # today's name and the one before
_IDLE_SETTINGS = frozenset(
    {
        "add_bos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "backend",
        "chat_template",
        "clean_up_tokenization_spaces",
        "errors",
        "extra_special_tokens",
        "image_token",
        "is_local",
        "local_files_only",
        "model_max_length",
        "model_specific_special_tokens",
        "padding_side",
        "processor_class",
        "split_special_tokens",
        "tokenizer_class",
        *_NAMED,
    }
)


class TokenizerLike(Protocol):
    """The interface that a processor needs; :class:`Tokenizer` and transformers' tokenizers have it."""

    padding_side: str
    eos_token_id: int | None
    all_special_tokens: list[str]
    backend_tokenizer: tokenizers.Tokenizer

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """Id -> added token."""

    def __call__(self, text: str | Sequence[str], **settings: Any) -> Mapping[str, Any]:
        """`input_ids` and `attention_mask` of texts."""

    def __len__(self) -> int:
        """Tokens, added ones included."""

    def decode(self, token_ids: Any, **settings: Any) -> str:
        """The text of one row of ids."""

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""

    def get_added_vocab(self) -> dict[str, int]:
        """Added token -> id."""

    def add_tokens(self, tokens: Sequence[AddedToken], *, special_tokens: bool) -> int:
        """Give `tokens` the ids after the last; how many were new."""

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of one token; None if there is none."""


class Tokenizer:
    """A Qwen2 tokenizer with the methods of transformers' that a question and its reply need.

    Args:
        backend: the tokenizer of the file.
        named: name -> special token, in transformers' order.
        extra: special tokens without a name.

    Attributes:
        padding_side: kept for who asks; nothing is padded here.
    """

    def __init__(self, backend: tokenizers.Tokenizer, named: Mapping[str, str], extra: Sequence[str]) -> None:
        self.backend_tokenizer = backend
        self.all_special_tokens = list(dict.fromkeys([*named.values(), *extra]))
        self.eos_token_id = backend.token_to_id(named["eos_token"])
        self.padding_side = "right"

    def __call__(
        self, text: str | Sequence[str], *, return_tensors: str | None = None, **_settings: Any
    ) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of a text (T,), or of texts; as tensors (1, T) of one text with ``"pt"``."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [encoding.ids for encoding in self.backend_tokenizer.encode_batch(texts)]
        masks = [[1] * len(row) for row in rows]
        if return_tensors == "pt":
            import torch  # noqa: PLC0415  # a second, in which the file is read in another thread

            return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
        if isinstance(text, str):
            return {"input_ids": rows[0], "attention_mask": masks[0]}
        return {"input_ids": rows, "attention_mask": masks}

    def __len__(self) -> int:
        """Tokens, added ones included."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False, **_settings: Any) -> str:
        """The text of one row of ids."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def get_added_vocab(self) -> dict[str, int]:
        """Added token -> id."""
        return {token.content: index for index, token in self.backend_tokenizer.get_added_tokens_decoder().items()}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id -> added token."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    def add_tokens(self, tokens: Sequence[AddedToken], *, special_tokens: bool) -> int:
        """Give `tokens`, special ones, the ids after the last; how many were new."""
        if not special_tokens:
            raise ValueError("only special tokens are added here")
        return int(self.backend_tokenizer.add_special_tokens(list(tokens)))

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of one token; None if there is none."""
        found: int | None = self.backend_tokenizer.token_to_id(token)
        return found


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder.

    Nothing here holds the interpreter while the file is read, so that another thread can import meanwhile.

    Raises:
        UnusualCheckpointError: it is not a plain Qwen2 tokenizer, or cannot be read.
    """
    is_older = not (folder / _FILE).is_file()
    try:
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not _are_plain(settings, folder):
            raise UnusualCheckpointError(f"{folder / _SETTINGS} has settings that change a Qwen2 tokenizer.")
        if is_older:
            backend = _from_vocabulary(folder, settings)
        else:
            backend = tokenizers.Tokenizer.from_file(str(folder / _FILE))
    except UnusualCheckpointError:
        raise
    except Exception as error:  # tokenizers raises plain Exception; transformers will say what is wrong
        raise UnusualCheckpointError(f"The tokenizer of {folder} cannot be read: {error}") from error
    named = {name: _content(settings.get(name, _DEFAULTS.get(name))) for name in (*_NAMED, "image_token")}
    special = {name: token for name, token in named.items() if token is not None}
    extra = [_content(token) for key in _UNNAMED for token in settings.get(key) or []]
    if not _is_qwen2(backend) or not _are_known(backend, settings, [*special.values(), *extra]):
        raise UnusualCheckpointError(f"{folder / _FILE} is not a plain Qwen2 tokenizer.")
    return Tokenizer(backend, special, [token for token in extra if token is not None])


def _from_vocabulary(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a folder in the older way: vocabulary and merges in files of their own, the marks in settings.

    Raises:
        Exception: tokenizers' own; KeyError or TypeError if the settings do not tell the marks.
    """
    backend = tokenizers.Tokenizer(models.BPE.from_file(*(str(folder / name) for name in _OLDER_VOCABULARY)))
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_CUTS), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    backend.decoder = decoders.ByteLevel()
    for _, token in sorted(settings["added_tokens_decoder"].items(), key=lambda entry: int(entry[0])):
        backend.add_tokens([AddedToken(**token)])
    return backend


def _content(token: Any) -> str | None:
    """A token that stands in the settings as text or as an entry with its text."""
    return token.get("content") if isinstance(token, dict) else token


def _are_plain(settings: Mapping[str, Any], folder: Path) -> bool:
    """Whether ``tokenizer_config.json`` says nothing that changes what the file gives."""
    named_twice = settings.get("model_specific_special_tokens") or {}
    return (
        settings.get("tokenizer_class") in _CLASSES
        and {key for key in settings if not key.startswith("_")} <= _IDLE_SETTINGS
        and not any(settings.get(key) for key in ("add_prefix_space", "add_bos_token", "split_special_tokens"))
        and all(settings.get(name) for name in ("eos_token", "pad_token"))
        and all(name == "image_token" and settings.get(name) == token for name, token in named_twice.items())
        and all(isinstance(settings.get(key) or [], list) for key in _UNNAMED)
        and not all(settings.get(key) for key in _UNNAMED)
        and ("added_tokens_decoder" in settings or not any((folder / name).is_file() for name in _OLDER_FILES))
    )


def _is_qwen2(backend: tokenizers.Tokenizer) -> bool:
    """Whether the file says of everything but vocabulary and merges what transformers' Qwen2 tokenizer is made with."""
    model, normalizer, cuts = backend.model, _state(backend.normalizer), _state(backend.pre_tokenizer)
    pre_tokenizers = [
        {key: value for key, value in part.items() if key != "trim_offsets"} for part in cuts.get("pretokenizers", [])
    ]
    return (
        type(model).__name__ == "BPE"
        and (model.dropout, model.unk_token, model.fuse_unk, model.byte_fallback) == (None, None, False, False)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix or model.ignore_merges)
        and normalizer == _NORMALISER
        and pre_tokenizers == _PRE_TOKENISERS
        and type(backend.decoder).__name__ == "ByteLevel"
        and backend.padding is None
        and backend.truncation is None
        and (backend.post_processor is None or backend.post_processor.num_special_tokens_to_add(False) == 0)
    )


def _state(part: Any) -> dict[str, Any]:
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _are_known(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], special: Sequence[str | None]) -> bool:
    """Whether all tokens that the settings name are in the file already, as the settings have them."""
    added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
    marks = {token.content for token in added.values() if token.special}
    stated = settings.get("added_tokens_decoder") or {}
    return set(special) <= marks and all(
        int(index) in added and isinstance(token, dict) and repr(AddedToken(**token)) == repr(added[int(index)])
        for index, token in stated.items()
    )
