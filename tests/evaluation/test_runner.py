"""Questions go through the engine side by side, in a fixed order, and what fails is told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastvlm.engine.types import Completion, Timings, TokenEvent, Usage
from fastvlm.errors import ImageError, NonFiniteError, PromptError
from fastvlm.evaluation.questions import GRAY, Question, messages_of
from fastvlm.evaluation.run.runner import GenerationOptions, ask_all


class Echo:
    """An engine that says the question's last word, after as many steps as the word has letters."""

    def __init__(self, num_slots=3, max_waiting=4):
        self.num_slots, self.max_waiting = num_slots, max_waiting
        self.running, self.asked, self.together, self.cancelled, self.params = {}, [], 0, [], {}

    def prepare(self, messages):
        text = messages[0]["content"][-1]["text"]
        if "unaskable" in text:
            raise PromptError("no place for it")
        return text

    def submit(self, text, params):
        request_id = len(self.asked) + 1
        self.asked.append(text)
        self.params[text] = params
        word = text.split()[-1]
        self.running[request_id] = [word, len(word)]
        self.together = max(self.together, len(self.running))
        assert len(self.running) <= self.num_slots + self.max_waiting
        return request_id

    def step(self):
        events = []
        for request_id in list(self.running)[: self.num_slots]:
            word, left = self.running[request_id]
            self.running[request_id][1] = left - 1
            if left == 1:
                del self.running[request_id]
                events.append(self.ended(request_id, word))
            else:
                events.append(TokenEvent(request_id, 1))
        return events

    def ended(self, request_id, word):
        if word == "explode":
            return TokenEvent(request_id, None, finish_reason="error", error=MemoryError("all gone"))
        completion = Completion(request_id, f" {word}\n", (1,), "stop", Usage(1, 0, 1), Timings(0, 0, 0, 0, 0, 0), None)
        return TokenEvent(request_id, 1, finish_reason="stop", completion=completion)

    def cancel(self, request_id):
        self.cancelled.append(request_id)


def asked(*texts):
    return [Question(str(number), "t", text, (), ("x",)) for number, text in enumerate(texts)]


def replies_of(engine, questions, asking=None):
    replies = {}
    ask_all(
        engine, questions, asking or GenerationOptions(), lambda question, said: replies.update({question.id: said})
    )
    return replies


@given(
    st.lists(st.text("abc", min_size=1, max_size=9), max_size=20),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_every_question_gets_its_own_reply(words, num_slots, max_waiting):
    engine = Echo(num_slots, max_waiting)
    replies = replies_of(engine, asked(*words))
    assert {identity: said.reply for identity, said in replies.items()} == {str(i): w for i, w in enumerate(words)}
    assert engine.asked == words, "in their order"


def test_slots_are_kept_busy():
    engine = Echo(num_slots=3)
    replies_of(engine, asked(*["word"] * 12))
    assert engine.together == 4  # three in slots, one that waits for the next free one


def test_what_cannot_be_asked_is_told_and_the_others_go_on():
    replies = replies_of(Echo(), asked("one", "an unaskable thing", "two"))
    assert (
        replies["1"].error == "no place for it" and replies["1"].finish_reason == "error" and replies["1"].reply == ""
    )
    assert [replies[i].reply for i in "02"] == ["one", "two"]


def test_a_failure_of_the_machine_ends_the_run_and_frees_the_slots():
    engine = Echo(num_slots=2)
    with pytest.raises(MemoryError):
        replies_of(engine, asked("explode", "something-much-longer", "x"))
    assert engine.cancelled, "the others are not left running"


def test_a_disk_that_is_full_ends_the_run():
    def keep(question, said):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        ask_all(Echo(), asked("one", "two"), GenerationOptions(), keep)


def test_hint_length_and_seeds():
    engine, questions = Echo(), asked("one", "two")
    replies_of(engine, questions, GenerationOptions(hint="Be short.", max_new_tokens=7, temperature=0.5, seed=3))
    assert engine.asked == ["one\nBe short.", "two\nBe short."]
    first, second = engine.params.values()
    assert first.max_new_tokens == 7 and first.temperature == 0.5
    assert first.seed != second.seed
    assert (
        first.seed
        == GenerationOptions(seed=3).params(questions[0]).seed
        != GenerationOptions(seed=4).params(questions[0]).seed
    )


def items(question, hint=""):
    (turn,) = messages_of(question, hint)
    return [item.get("text", item.get("image")) for item in turn["content"]]


def test_images_stand_where_the_text_wants_them(tmp_path):
    files = []
    for color in ("red", "lime", "blue"):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{color}.png")
        files.append(tmp_path / f"{color}.png")
    question = Question("1", "t", "Compare <image 2> with <image 1>. <image 9>", tuple(files), ("x",))
    shown = [item if isinstance(item, str) else item.getpixel((0, 0)) for item in items(question, "Short.")]
    assert shown == [(0, 0, 255), "Compare", (0, 255, 0), "with", (255, 0, 0), ".", "Short."]
    plain = Question("1", "t", "Which?", tuple(files[:1]), ("x",))
    assert [item if isinstance(item, str) else "image" for item in items(plain)] == ["image", "Which?"]


def test_a_blind_question_shows_gray_and_opens_nothing():
    question = Question("1", "t", "Which?", ("nowhere.png",), ("x",), is_blind=True)
    gray, text = items(question)
    assert gray.getextrema() == tuple((value, value) for value in GRAY) and text == "Which?"
    with pytest.raises(ImageError):
        messages_of(Question("1", "t", "Which?", ("nowhere.png",), ("x",)))


def test_logits_that_are_no_numbers_end_the_run_and_are_no_wrong_reply():
    engine = Echo(num_slots=1)
    engine.ended = lambda request_id, word: TokenEvent(
        request_id, None, finish_reason="error", error=NonFiniteError("The logits contain NaN.")
    )
    said = []
    with pytest.raises(NonFiniteError, match="contain NaN"):
        ask_all(engine, asked("one", "two"), GenerationOptions(), lambda question, prediction: said.append(prediction))
    assert said == []
