"""Questions about text: reading, letters by position or color, lines, colors."""

from __future__ import annotations

from random import Random

from fastvlm_recipes.demo_data.scene import Line, Scene
from fastvlm_recipes.demo_data.wording import ORDINALS, Turn, any_of, place_name

READ = (
    "What does it say?", "Read the text.", "What is written here?", "What does the text say?", "Read this.",
    "What is written in the image?", "What text is in the picture?", "What does the image say?",
    "Transcribe the text.", "What does this say?",
)  # fmt: skip
READ_WORD = (*READ, "What word is this?", "What is the word?", "Which word is written here?", "Read the word.")
READ_NUMBER = (*READ, "What number is this?", "What is the number?", "Read the number.", "Which number do you see?")
READ_PRICE = (*READ, "What is the price?", "How much does it cost?", "What price is shown?")
WHICH_LETTER = (
    "What letter is this?", "Which letter is this?", "What letter do you see?", "What letter is shown?",
    "Name the letter.", "What character is this?", "Which letter is in the image?", "What is this letter?",
)  # fmt: skip
WHICH_DIGIT = (
    "What digit is this?", "Which digit is this?", "What number is this?", "What digit do you see?",
    "What number is shown?", "What character is this?", "Name the digit.", "Which number is in the image?",
)  # fmt: skip
SEE = ("What do you see?", "Describe the image.", "What is in the image?", "What is this?", "What is in the picture?")
TEXT_COLOR = (
    "What color is the {}?", "What is the color of the {}?", "Which color is the {}?",
    "What color does the {} have?",
)  # fmt: skip


def text_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Questions for the kind of image; reading comes first, so that it is never left out."""
    lines = scene.lines
    if scene.topic == "grid":
        turns = _grid(rng, lines)
    elif scene.topic == "lines":
        turns = _lines(rng, lines)
    elif len(lines[0].text) == 1:
        turns = _letter(rng, lines[0])
    else:
        turns = _word(rng, lines[0])
    return turns


def _letter(rng: Random, line: Line) -> list[Turn]:
    char, is_digit = line.text, line.text.isdigit()
    noun = "digit" if is_digit else "letter"
    turns = [(any_of(rng, WHICH_DIGIT if is_digit else WHICH_LETTER), char), (any_of(rng, READ), char)]
    turns.append((any_of(rng, SEE), f"The {noun} {char}."))
    extra: list[Turn] = [(any_of(rng, TEXT_COLOR).format(noun), line.color)]
    extra.append((any_of(rng, ("Is this a letter or a digit?", "Is it a letter or a number?")), noun))
    place = place_name(line.x, line.y)
    if place is not None:
        extra.append((any_of(rng, (f"Where is the {noun}?",)), place))
    return [*turns, *rng.sample(extra, 1)]


def _word(rng: Random, line: Line) -> list[Turn]:
    text = line.text
    kind = "word"
    wordings: tuple[str, ...] = READ_WORD
    if text.isdigit():
        kind, wordings = "number", READ_NUMBER
    elif not text.isalnum():
        kind, wordings = "price", READ_PRICE
    turns = [(any_of(rng, wordings), text) for _ in range(2)]
    turns.append((any_of(rng, TEXT_COLOR).format(rng.choice(("text", kind))), line.color))
    if kind == "price":
        return turns
    noun = "digit" if kind == "number" else "letter"
    extra: list[Turn] = [(any_of(rng, SEE), f"The {kind} {text}.")]
    places: list[Turn] = [(any_of(rng, (f"What is the last {noun}?",)), text[-1])]
    places += [
        (any_of(rng, (f"What is the {ORDINALS[position]} {noun}?",)), text[position]) for position in range(len(text))
    ]
    extra.append(
        (any_of(rng, (f"How many {noun}s are there?", f"How many {noun}s does the {kind} have?")), str(len(text)))
    )
    return [*turns, *rng.sample(places, 2), rng.choice(extra)]


def _lines(rng: Random, lines: list[Line]) -> list[Turn]:
    turns = [(any_of(rng, READ), "\n".join(line.text for line in lines))]
    extra: list[Turn] = []
    for index, line in enumerate(lines):
        what = "last" if index == len(lines) - 1 and rng.random() < 0.5 else ORDINALS[index]
        asked = (f"What is the {what} word?", f"Read the {what} line.", f"What does the {what} line say?")
        extra.append((any_of(rng, asked), line.text))
    extra.append((any_of(rng, ("How many words are there?", "How many lines of text are there?")), str(len(lines))))
    if len({line.color for line in lines}) == len(lines):
        line = rng.choice(lines)
        extra.append((any_of(rng, ("What does the {} text say?", "Which word is {}?")).format(line.color), line.text))
    return [*turns, *rng.sample(extra, min(3, len(extra)))]


def _grid(rng: Random, lines: list[Line]) -> list[Turn]:
    """Lines come row by row; equal y (within a row's jitter) means the same row."""
    rows: list[list[Line]] = []
    for line in lines:
        if rows and abs(rows[-1][-1].y - line.y) < 0.5 * abs(rows[-1][-1].x - line.x) + 4 and line.x > rows[-1][-1].x:
            rows[-1].append(line)
        else:
            rows.append([line])
    is_letters = all(len(line.text) == 1 for line in lines)
    nouns = "characters" if is_letters else "words"
    whole = "\n".join(" ".join(line.text for line in row) for row in rows)
    turns = [(any_of(rng, (*READ, f"Read the {nouns}.")), whole)]
    extra: list[Turn] = [(any_of(rng, (f"How many {nouns} are there?",)), str(len(lines)))]
    texts = [line.text.casefold() for line in lines]
    for line in rng.sample(lines, min(3, len(lines))):
        noun = ("digit" if line.text.isdigit() else "letter") if is_letters else "word"
        if texts.count(line.text.casefold()) == 1:
            extra.append((any_of(rng, TEXT_COLOR).format(f"{noun} {line.text}"), line.color))
        if [other.color for other in lines].count(line.color) == 1:
            extra.append((any_of(rng, (f"What {noun} is {line.color}?", f"Which {noun} is {line.color}?")), line.text))
        place = place_name(line.x, line.y)
        if place is not None and [place_name(other.x, other.y) for other in lines].count(place) == 1:
            where = "in the center" if place == "center" else f"at the {place}"
            extra.append((any_of(rng, (f"What {noun} is {where}?", f"Which {noun} is {where}?")), line.text))
    return [*turns, *rng.sample(extra, min(4, len(extra)))]
