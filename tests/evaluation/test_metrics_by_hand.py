"""Every metric against values computed by hand, and against what must hold for any reply."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.errors import MissingExtraError
from fastvlm.evaluation.metrics.cider import caption_words, judge_captions
from fastvlm.evaluation.metrics.metric import wilson_interval
from fastvlm.evaluation.metrics.option_letter import choice_accuracy, read_letter
from fastvlm.evaluation.metrics.relaxed_accuracy import as_number, relaxed_accuracy
from fastvlm.evaluation.metrics.table import METRICS
from fastvlm.evaluation.metrics.text_match import anls, exact_match, judge_characters, similarity
from fastvlm.evaluation.metrics.vqa_accuracy import agreement, one_spelling, vqa_accuracy
from fastvlm.evaluation.metrics.yes_no import judge_yes_no, read_yes_no, yes_no_problem
from fastvlm.evaluation.questions import Question

WORDS = st.text(st.characters(codec="ascii", categories=("Ll", "Lu", "Nd", "Po", "Zs")), max_size=24)
ANSWERED = [name for name in METRICS if name not in ("cider", "yes-no")]


def asked(*answers: str, choices: tuple[str, ...] = ()) -> Question:
    return Question("1", "t", "?", (), answers, choices)


# ------------------------------------------------------------------------------------------ VQA accuracy


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_agreement_with_ten_people(matches, accuracy):
    assert agreement("red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(accuracy)


def test_agreement_with_fewer_people():
    assert agreement("red", ["red"]) == 1 and agreement("red", ["blue"]) == 0
    assert agreement("red", ["red", "red", "red"]) == 1


@given(st.lists(st.sampled_from(["a1", "b2", "c3"]), min_size=1, max_size=12), st.sampled_from(["a1", "b2", "d4"]))
def test_agreement_is_the_mean_over_those_left_out(answers, reply):
    if len(answers) == 1:
        return
    enough = min(3, len(answers) - 1)
    left_out = [
        min(1.0, sum(a == reply for j, a in enumerate(answers) if j != i) / enough) for i in range(len(answers))
    ]
    assert agreement(reply, answers) == pytest.approx(sum(left_out) / len(left_out))


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("The Red Car.", "red car"),
        ("two", "2"),
        ("none", "0"),
        ("1,000 dollars", "1000 dollars"),
        ("yes, it is", "yes it is"),
        ("black/white", "black white"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("dog's", "dog's"),
        ("10:30", "10:30"),
        (" a\n man\tand a dog ", "man and dog"),
    ],
)
def test_one_spelling(text, spelt):
    assert one_spelling(text) == spelt


@given(WORDS)
def test_one_spelling_changes_nothing_more(text):
    once = one_spelling(text)
    assert once == once.strip() and "," not in once and "?" not in once


def test_vqa_accuracy_of_a_sentence():
    answers = ["two"] * 2 + ["2"] * 2 + ["three"] * 6
    assert vqa_accuracy("2.", asked(*answers)) == pytest.approx(1.0)
    assert vqa_accuracy("There are 2", asked(*answers)) == 0


# ------------------------------------------------------------------------------------------ strings


def test_anls_by_hand():
    assert anls("Hello  World", asked("hello world")) == 1
    assert anls("helo", asked("hello")) == pytest.approx(0.8)
    assert anls("abcd", asked("abxy")) == 0  # half of it: a distance of 0.5 does not count
    assert anls("abcd", asked("abcy", "zzzz")) == pytest.approx(0.75)
    assert anls("", asked("x")) == 0


@given(WORDS, WORDS)
def test_similarity_is_symmetric_and_bounded(first, second):
    assert similarity(first, second) == similarity(second, first)
    assert 0 <= similarity(first, second) <= 1
    assert anls(first, asked(second)) in (0, similarity(first, second))


def test_character_error_rate_by_hand():
    judged = judge_characters(["cat", "dug", ""], [asked("CAT"), asked("dog"), asked("four")])
    assert judged.score == pytest.approx(5 / 10)
    assert judged.each == pytest.approx((1, 2 / 3, 0))
    assert judged.figures["exact"] == pytest.approx(1 / 3)
    assert judge_characters(["abcdef"], [asked("a")]).score == 5  # more edits than characters


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("reply", "answer", "score"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("12%", "0.12", 1),
        ("12%", "12.1%", 1),
        ("12", "12%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("-95", "-100", 1),
        ("Yes", "yes", 1),
        ("about 100", "100", 0),
        ("nan", "100", 0),
        ("inf", "inf", 1),
        ("2010", "2010", 1),
    ],
)
def test_relaxed_accuracy(reply, answer, score):
    assert relaxed_accuracy(reply, asked(answer)) == score


@given(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-3), st.floats(-0.2, 0.2))
def test_relaxed_accuracy_is_five_percent(true, off):
    said = true * (1 + off)
    if abs(abs(off) - 0.05) > 1e-6:
        assert relaxed_accuracy(repr(said), asked(repr(true))) == float(abs(off) < 0.05)


@given(WORDS)
def test_a_number_is_finite_or_none(text):
    number = as_number(text)
    assert number is None or math.isfinite(number)


# ------------------------------------------------------------------------------------------ options

ANIMALS = ("a dog", "a cat", "a black cat", "a bird")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("C.", "C"),
        ("**D**", "D"),
        ("B. a cat", "B"),
        ("B a cat", "B"),
        ("A: a dog", "A"),
        ("The answer is D", "D"),
        ("Answer: (A)", "A"),
        ("I think it is option B, because of its ears", "B"),
        ("It could be (A) or (B), but it is (B)", "B"),
        ("a black cat", "C"),
        ("It is a black cat.", "C"),
        ("I see a bird", "D"),
        ("A bird", "D"),
        ("a dog or a cat", None),
        ("so D it is", "D"),
        ("Answer: b", "B"),
        ("answer: (b)", "B"),
        ("ANSWER: B", "B"),
        ("Answer: **b**", "B"),
        ("Answer: __b__", "B"),
        ("The answer is b.", "B"),
        ("The answer is b because of its ears", "B"),
        ("option c, I think", "C"),
        ("the answer is a", "A"),
        ("the answer is a.", "A"),
        ("The answer is a dog", "A"),
        ("The answer is a black cat", "C"),
        ("The answer is A black cat", "C"),
        ("The answer is A because a bird is not there", "A"),
        ("Answer: A cat", "B"),
        ("The answer is e-mail", None),
        ("b) a horse", "B"),
        ("b. it is a horse", "B"),
        ("(b) a horse", "B"),
        ("**b** it is", "B"),
        ("It could be (a) or (b)", "B"),
        ("two dog(d)", None),
        ("b.c. is long ago", None),
        ("E", None),
        ("a horse", None),
        ("", None),
    ],
)
def test_the_letter_of_a_reply(reply, letter):
    assert read_letter(reply, ANIMALS) == letter


@given(
    st.lists(st.text("xyz ", min_size=1, max_size=9), min_size=2, max_size=8),
    st.data(),
    st.sampled_from(
        ["{}", "({})", "{}.", "{})", "The answer is {}.", "Answer: {}", "{}: xyz", " {} ", "**{}**", "[{}]"]
    ),
    st.booleans(),
)
def test_a_letter_is_read_from_any_usual_form(choices, data, form, is_small):
    letter = data.draw(st.sampled_from("ABCDEFGH"[: len(choices)]))
    assert read_letter(form.format(letter.lower() if is_small else letter), choices) == letter


@given(WORDS, st.lists(WORDS, max_size=6))
def test_a_letter_is_one_of_the_options(reply, choices):
    letter = read_letter(reply, choices)
    assert letter is None or letter in "ABCDEF"[: len(choices)]


def test_choice_accuracy_with_and_without_options():
    assert choice_accuracy("(B)", asked("B", choices=ANIMALS)) == 1
    assert choice_accuracy("nothing", asked("B", choices=ANIMALS)) == 0
    assert choice_accuracy("It is 1,234.5 km", asked("1234.50")) == 1
    assert choice_accuracy("12", asked("1")) == 0
    assert choice_accuracy("the Cold War began", asked("cold war")) == 1
    assert choice_accuracy("coldwar", asked("cold war", "7")) == 0


# ------------------------------------------------------------------------------------------ yes and no


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Yes", "yes"),
        ("No.", "no"),
        ("no", "no"),
        ("Yes. There is no doubt", "yes"),
        ("There is not", "no"),
        ("Nobody", "yes"),
        ("", "yes"),
        ("No, there is not", "no"),
        ("No!", "no"),
        ("**No**", "no"),
        ("**No.**", "no"),
        ("(no)", "no"),
        ("'No'", "no"),
        ("`no`", "no"),
        ("_no_", "no"),
        ("\u201cNo\u201d", "no"),
        ("No\u2014nothing", "no"),
        ("No\u2026", "no"),
        ("No: nothing", "no"),
        ("No;", "no"),
        ("no,there is none", "no"),
        ("NO", "no"),
        ("*not*", "no"),
        ("**Yes**", "yes"),
        ("Yes!", "yes"),
        ("There isn't one", "yes"),  # as the authors' code reads it
        ("No-one", "yes"),
        ("Now", "yes"),
        ("I know. No.", "yes"),
    ],
)
def test_yes_or_no(reply, read):
    assert read_yes_no(reply) == read


def authors_reading(reply):
    """POPE's evaluate.py (github.com/AoiDragon/POPE), by its description."""
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


@given(st.lists(st.sampled_from(["Yes", "No", "no", "not", "there", "is", "nobody", "isn't", "dog", "."]), max_size=7))
def test_plain_words_are_read_as_the_authors_do(words):
    assert read_yes_no(" ".join(words)) == authors_reading(" ".join(words))


MARKS = st.text("!?*_()[]`'\";:\u2026\u201c\u201d ", max_size=3)


@given(MARKS, st.sampled_from(["yes", "no"]), MARKS, st.sampled_from([str, str.upper, str.capitalize]))
def test_marks_around_yes_and_no_change_nothing(before, word, after, spelled):
    marked = f"{before}{spelled(word)}{after}"
    assert read_yes_no(marked) == word
    assert exact_match(marked.replace("\u2026", ""), asked(word)) == 1


def test_only_yes_and_no_can_be_judged():
    assert [yes_no_problem(asked(one)) for one in ("yes", "No", " Yes. ")] == [None] * 3
    assert yes_no_problem(asked("maybe")) == "the question '1' has the answer 'maybe'; this metric needs yes or no"
    assert judge_yes_no(["Yes", "no"], [asked("Yes."), asked("No")]).figures["accuracy"] == 1


def test_an_answer_of_marks_alone_is_not_met_by_silence():
    assert exact_match("", asked("?")) == 0 and exact_match("?", asked("?")) == 1


def test_pope_by_hand():
    truth = ["yes", "yes", "yes", "no", "no", "no"]
    said = ["yes", "yes", "no", "yes", "no", "no"]
    judged = judge_yes_no(said, [asked(one) for one in truth])
    assert judged.figures == pytest.approx({"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "yes_ratio": 0.5})
    assert judged.score == pytest.approx(2 / 3) and not judged.is_mean
    assert judge_yes_no(["no"], [asked("no")]).score == 0  # nothing to find: as scikit-learn has it


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no"])), min_size=1))
def test_f1_is_the_harmonic_mean(pairs):
    judged = judge_yes_no([said for said, _ in pairs], [asked(true) for _, true in pairs])
    precision, recall = judged.figures["precision"], judged.figures["recall"]
    expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert judged.score == pytest.approx(expected)
    assert sum(judged.each) / len(pairs) == pytest.approx(judged.figures["accuracy"])


# ------------------------------------------------------------------------------------------ captions


def test_caption_words():
    assert caption_words("A dog's \"bowl\", isn't 1,000 well-known.") == "a dog 's bowl is n't 1,000 well-known"


def test_cider_of_references_themselves_and_of_nothing():
    questions = [
        asked("a cat on a mat by the door"),
        asked("two dogs run over wet grass"),
        asked("a red bus in a street"),
    ]
    same = judge_captions(
        ["A cat on a mat by the door.", "Two dogs run over wet grass", "a red bus in a street"], questions
    )
    assert same.score == pytest.approx(10) and same.each == pytest.approx((10, 10, 10))
    other = judge_captions(["", "a cat", "a red bus"], questions)
    assert other.each[0] == 0 and 0 < other.each[2] < 10
    assert other.score == pytest.approx(sum(other.each) / 3)


def test_cider_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastvlm\[eval\]'"):
        judge_captions(["a"], [asked("a")])


# ------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", ANSWERED)
@given(replies=st.lists(WORDS, min_size=1, max_size=4), answer=WORDS.filter(str.strip))
def test_scores_are_bounded_and_their_mean_is_the_score(name, replies, answer):
    judged = METRICS[name].judge(replies, [asked(answer)] * len(replies))
    assert len(judged.each) == len(replies)
    assert all(0 <= one <= 1 for one in judged.each)
    if judged.is_mean:
        assert judged.score == pytest.approx(sum(judged.each) / len(replies))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_names_its_source(name):
    assert METRICS[name].name == name and METRICS[name].label and METRICS[name].source


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_wilson_holds_the_share(share, n):
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1
