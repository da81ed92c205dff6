"""The mini's tokenizer: Qwen2's format and rules, with merges chosen so that unknown words are read letter by letter.

Every merge grows a word **from its leading space** (" w", " wh", " wha", ...), so a word of the templates costs one
token inside a sentence, while the first word of a reply or of a line stays a row of single letters: what the
decoder has to copy from the image when it reads. Only the words of Apple's prompt that open a line (system, user,
assistant, You) have merges of their own.

    python -m fastvlm_recipes.mini.tokenizer --corpus TEXT --out FOLDER
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from fastvlm_recipes.demo_data import words
from fastvlm_recipes.demo_data.canvas import degraded
from fastvlm_recipes.demo_data.emoji import draw_emoji, names_in
from fastvlm_recipes.demo_data.kinds import draw_letters
from fastvlm_recipes.demo_data.scene import Scene
from fastvlm_recipes.demo_data.scene_questions import turns_of
from fastvlm_recipes.demo_data.shapes import draw_shapes
from fastvlm_recipes.demo_data.text import draw_word
from fastvlm_recipes.demo_data.vocabulary import COLOR_NAMES, EMOJI_NAMES, EMOJI_STYLES, SHAPE_NAMES
from fastvlm_recipes.demo_data.word_lists import HELD_OUT_WORDS, TRAIN_WORDS

BASE_SIZE = 4092
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
MAX_LENGTH = 2048
SPACE = "Ġ"
# Qwen2's pre-tokenizer: contractions, letters with one leading sign, single digits, signs, line ends, spaces.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Words that open a line of the prompt, a question or a reply. In small letters they begin at a pair that is rare
# elsewhere, because such a pair merges inside any word; with a capital they disturb only words written "Like this".
PROMPT_MERGES: tuple[tuple[str, str], ...] = (
    ("s", "y"), ("sy", "s"), ("sys", "t"), ("syst", "e"), ("syste", "m"),
    ("u", "s"), ("us", "e"), ("use", "r"),
    ("s", "s"), ("ss", "i"), ("ssi", "s"), ("ssis", "t"), ("ssist", "a"), ("ssista", "n"), ("ssistan", "t"),
    ("a", "ssistant"), (SPACE, "assistant"),
)  # fmt: skip
OPENING_WORDS = (
    "You",
    "What",
    "Which",
    "Where",
    "How",
    "Is",
    "Describe",
    "Read",
    "There",
    "Yes",
    "No",
    "Can",
    "Does",
    "Name",
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROMPT_WORDS = ("are", "a", "helpful", "assistant")
COMMON_SHARE = 3  # a word gets tokens if it occurs this often in the corpus


def _draw_word(rng: Random) -> Scene:
    text = words.token(rng, rng.choices((2, 3, 4, 5, 6, 7, 8), (20, 52, 14, 7, 4, 2, 1))[0])
    if rng.random() < 0.15:
        text = words.price(rng) if rng.random() < 0.5 else words.number(rng)
    return draw_word(rng, "train", text)


def _draw_emoji(rng: Random) -> Scene:
    styles = tuple(style for style in EMOJI_STYLES if names_in(style))
    return draw_emoji(rng, styles) if styles else draw_shapes(rng)


# The first edition's kinds of images, with their shares in percent: the vocabulary depends on them.
DRAWERS: dict[str, tuple[int, Callable[[Random], Scene]]] = {
    "shapes": (34, draw_shapes),
    "letter": (10, lambda rng: draw_word(rng, "train", words.single(rng), "letter")),
    "word": (40, _draw_word),
    "grid": (6, lambda rng: draw_letters(rng, "train")),
    "emoji": (10, _draw_emoji),
}


def byte_symbols() -> list[str]:
    """GPT-2's 256 printable symbols, ordered by the byte of each, as in Qwen2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def question_words(num_images: int = 1500) -> Counter[str]:
    """Words that follow a space in the drawn questions and answers, by frequency; text to be read is left out."""
    seen: Counter[str] = Counter()
    shares = [share for share, _ in DRAWERS.values()]
    for index in range(num_images):
        rng = Random(f"tokenizer:train:{index}")
        scene = DRAWERS[rng.choices(tuple(DRAWERS), shares)[0]][1](rng)
        degraded(rng, scene.image)  # the questions depend on the numbers that this draws
        for question, answer in turns_of(rng, scene):
            spoken = answer if scene.topic in ("shapes", "emoji") else ""
            seen.update(re.findall(r" ([A-Za-z]+)", f" {question} {spoken}"))
    return seen


def ordered_words(corpus: str) -> Iterable[str]:
    """All words that get tokens, the most important first."""
    yield from PROMPT_WORDS
    names = " ".join((*COLOR_NAMES, *SHAPE_NAMES, *EMOJI_NAMES, "colour color grey center left right top bottom"))
    yield from names.split()
    yield from (word for word, count in question_words().most_common() if count >= 2)
    yield from TRAIN_WORDS
    common = Counter(re.findall(r" ([A-Za-z]?[a-z]+)\b", corpus))
    yield from (word for word, count in common.most_common() if count >= COMMON_SHARE)


def build_merges(words: Iterable[str], count: int) -> list[tuple[str, str]]:
    """`count` merges, each making a new token: the prompt's, a space with each letter, then the prefixes of words."""
    made: dict[str, tuple[str, str]] = {}

    def add(left: str, right: str) -> None:
        made.setdefault(left + right, (left, right))

    for left, right in PROMPT_MERGES:
        add(left, right)
    for word in OPENING_WORDS:
        for length in range(1, len(word)):
            add(word[:length], word[length])
    for letter in LETTERS:
        add(SPACE, letter)
    for word in words:
        for length in range(len(word) if word.lower() not in HELD_OUT_WORDS else 0):
            add(SPACE + word[:length], word[length])
            if len(made) == count:
                return list(made.values())
    raise ValueError(f"the words gave {len(made)} merges, {count} are wanted: give a larger corpus")


def build_tokenizer(merges: list[tuple[str, str]]) -> PreTrainedTokenizerBase:
    """A Qwen2 tokenizer with these merges and the four special tokens after the base vocabulary."""
    vocabulary = {symbol: index for index, symbol in enumerate(byte_symbols())}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return Qwen2Tokenizer(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
    )


def main() -> None:
    """Build the tokenizer and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus", type=Path, required=True, help="English text whose frequent words fill the vocabulary"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    merges = build_merges(ordered_words(args.corpus.read_text()), BASE_SIZE - 256)
    tokenizer = build_tokenizer(merges)
    tokenizer.save_pretrained(args.out)
    print(f"{len(tokenizer)} tokens -> {args.out}")


if __name__ == "__main__":
    main()
