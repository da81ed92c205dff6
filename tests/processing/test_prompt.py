"""Messages become the bytes that the model was trained on, or a clear error; nothing is dropped or moved silently."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvlm.errors import ImageTokenMismatchError, PromptError
from fastvlm.processing.prompt import (
    CHAT_TEMPLATES,
    SPECIAL_TOKENS,
    Conversation,
    expand_image_tokens,
    is_batch,
    read_conversation,
    render,
)

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


def user(*items):
    return {"role": "user", "content": list(items)}


def prompt(messages, **options):
    return render(read_conversation(messages), **options)


# ------------------------------------------------------------------------------------------------------ exact bytes


def test_an_image_and_a_question():
    """Apple's `qwen_2` conversation with predict.py's question."""
    expected = SYSTEM + "<|im_start|>user\n<image>\nDescribe the image.<|im_end|>\n<|im_start|>assistant\n"
    assert prompt([user(IMAGE, text("Describe the image."))], add_generation_prompt=True) == expected


def test_text_only_assistant_and_system_turns_have_no_extra_newline():
    messages = [
        {"role": "system", "content": [text("Be brief.")]},
        user(text("Hello")),
        {"role": "assistant", "content": [text("Hi.")]},
        user(text("And?")),
    ]
    assert prompt(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("items", "content"),
    [
        ([IMAGE], "<image>"),
        ([IMAGE, text("a")], "<image>\na"),
        ([IMAGE, IMAGE, text("a")], "<image><image>\na"),
        ([text("a"), text("b")], "a\nb"),
        ([IMAGE, text("a"), text("b")], "<image>\na\nb"),
        ([text("a"), IMAGE], "<image>\na"),
        ([text("a"), text("b"), IMAGE, IMAGE], "<image><image>\na\nb"),
        ([IMAGE, text("a"), IMAGE], "<image>\na\n<image>"),
        ([text("a"), IMAGE, IMAGE, text("b"), IMAGE], "a\n<image><image>\nb\n<image>"),
        ([text("")], ""),
        ([text(" spaces \n kept\t")], " spaces \n kept\t"),
        ([text("{{ 7 * 7 }}{% raw %}")], "{{ 7 * 7 }}{% raw %}"),
        ([text("né 你好 🙂")], "né 你好 🙂"),
    ],
)
def test_items_keep_their_order_but_for_images_at_the_end(items, content):
    assert prompt([user(*items)]) == f"{SYSTEM}<|im_start|>user\n{content}<|im_end|>\n"


def test_a_string_as_content_is_rendered_and_not_dropped():
    for name in CHAT_TEMPLATES:
        as_string = prompt([{"role": "user", "content": "Hello"}], chat_template=name)
        as_item = prompt([user(text("Hello"))], chat_template=name)
        assert as_string == as_item
        assert "Hello" in as_string


def test_an_explicit_system_turn_replaces_the_default():
    assert prompt([{"role": "system", "content": "S"}, user(text("a"))]).startswith("<|im_start|>system\nS<|im_end|>\n")


def test_the_documented_conversation_in_transformers_template():
    """The example of transformers' FastVLM page, with the output printed there."""
    conversation = [
        user(IMAGE, text("What\u2019s shown in this image?")),
        {"role": "assistant", "content": [text("This image shows a red stop sign.")]},
        user(text("Describe the image in more details.")),
    ]
    assert prompt(conversation, add_generation_prompt=True, chat_template="transformers") == (
        SYSTEM + "<|im_start|>user\n<image>\nWhat\u2019s shown in this "
        "image?<|im_end|>\n<|im_start|>assistant\n\nThis image shows a red stop sign.<|im_end|>\n<|im_start|>user\n\n"
        "Describe the image in more details.<|im_end|>\n<|im_start|>assistant\n"
    )


@settings(deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.integers(1, 3), st.lists(st.text(max_size=20), min_size=1, max_size=3)), min_size=1, max_size=3
    ),
    add_generation_prompt=st.booleans(),
)
def test_both_templates_agree_on_image_first_turns(turns, add_generation_prompt):
    messages = [user(*[IMAGE] * images, *map(text, texts)) for images, texts in turns]
    if any(token in item for _, texts in turns for item in texts for token in SPECIAL_TOKENS):
        return
    trained = prompt(messages, add_generation_prompt=add_generation_prompt)
    assert trained == prompt(messages, add_generation_prompt=add_generation_prompt, chat_template="transformers")
    assert trained.count("<image>") == sum(images for images, _ in turns)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant"]), st.lists(st.one_of(st.none(), st.text()), min_size=1)),
        min_size=1,
        max_size=4,
    )
)
def test_nothing_is_lost_and_only_images_at_the_end_move(turns):
    """Every text and image stands in the prompt, in order, whatever the conversation."""
    messages = []
    for role, parts in turns:
        kept = [part for part in parts if part is not None or role == "user"] or ["."]
        messages.append({"role": role, "content": [IMAGE if part is None else text(part) for part in kept]})
    if any(token in (item.get("text") or "") for m in messages for item in m["content"] for token in SPECIAL_TOKENS):
        return
    rendered, position = prompt(messages), 0
    for message in messages:
        kinds = [item["type"] for item in message["content"]]
        ends_with_images = "text" in kinds and kinds == sorted(kinds, reverse=True)
        for item in sorted(message["content"], key=lambda i: i["type"]) if ends_with_images else message["content"]:
            wanted = "<image>" if item["type"] == "image" else item["text"]
            position = rendered.index(wanted, position) + len(wanted)
    assert rendered.count("<|im_end|>") == len(messages) + 1


# ------------------------------------------------------------------------------------------------------ flags


def test_continue_final_message_leaves_the_turn_open():
    messages = [user(IMAGE, text("What?")), {"role": "assistant", "content": "A red"}]
    rendered = prompt(messages, continue_final_message=True)
    assert rendered.endswith("<|im_start|>assistant\nA red")
    assert prompt(messages) == rendered + "<|im_end|>\n"


def test_flags_that_do_not_go_together():
    messages = [user(text("a")), {"role": "assistant", "content": "b"}]
    with pytest.raises(PromptError, match="only one"):
        prompt(messages, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(PromptError, match="last message is the assistant's"):
        prompt(messages, add_generation_prompt=True)
    with pytest.raises(PromptError, match="nothing can be continued"):
        prompt(messages, continue_final_message=True, chat_template="{{ messages[0]['role'] }}")


def test_a_template_of_ones_own_gets_messages_and_variables():
    template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'][0]['text'] }} {% endfor %}{{ tools }}"
    assert prompt([user(text("a"))], chat_template=template, tools=[{"name": "t"}]) == "user:a [{'name': 't'}]"


def test_transformers_template_refuses_to_move_an_image():
    with pytest.raises(PromptError, match="an image between texts"):
        prompt([user(text("a"), IMAGE, text("b"))], chat_template="transformers")


def test_images_at_the_end_are_where_transformers_template_has_them():
    messages = [user(text("a"), IMAGE)]
    assert prompt(messages) == prompt(messages, chat_template="transformers") == prompt([user(IMAGE, text("a"))])
    assert messages == [user(text("a"), IMAGE)]


def test_a_template_of_ones_own_gets_the_order_given():
    template = "{% for item in messages[0].content %}{{ item.type }} {% endfor %}"
    assert prompt([user(text("a"), IMAGE)], chat_template=template) == "text image "


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("What is this?", "Pass a list of messages"),
        ({"role": "user", "content": "a"}, "Pass a list of messages"),
        ([], "Pass a list of messages"),
        (None, "NoneType"),
        (7, "int"),
        (["What is this?"], "Message 0 is str"),
        ([{"content": "a"}], "Message 0 is dict"),
        ([{"role": "user"}], "content NoneType"),
        ([{"role": "user", "content": None}], "content NoneType"),
        ([{"role": "user", "content": []}], "content list"),
        ([{"role": "user", "content": {"type": "text", "text": "a"}}], "expected a string or a list"),
        ([{"role": "tool", "content": "a"}], "role 'tool'; known are system, user, assistant"),
        ([{"role": None, "content": "a"}], "role None"),
        ([user(text("a")), {"role": "system", "content": "b"}], "only the first message"),
        ([user({"type": "video", "path": "x"})], "type 'video'.*known are text, input_text, image"),
        ([user("just text")], "item of type None"),
        ([user({"text": "a"})], "item of type None"),
        ([user({"type": "text"})], "text NoneType"),
        ([user({"type": "text", "text": 5})], "text int 5"),
        ([{"role": "assistant", "content": [IMAGE]}], "only user messages can"),
        ([{"role": "system", "content": [IMAGE]}], "only user messages can"),
        ([user({"type": "image", "url": "a", "path": "b"})], "url and path; give one"),
        ([user({"type": "image_url"})], "no 'image_url'"),
        ([user({"type": "image_url", "image_url": {"detail": "low"}})], "url NoneType"),
    ],
)
def test_what_cannot_be_rendered_is_refused(messages, says):
    with pytest.raises(PromptError, match=says) as caught:
        read_conversation(messages)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_marks_typed_into_a_text_are_refused(token, role):
    """A user must not be able to end a turn, speak as the assistant, or claim an image's place."""
    for content in (f"a{token}b", [text(f"a{token}b")]):
        with pytest.raises(PromptError, match="which the model reads as a mark"):
            read_conversation([{"role": role, "content": content}])


def test_marks_of_the_tokenizer_can_be_added():
    with pytest.raises(PromptError, match="vision_pad"):
        read_conversation([user(text("a<|vision_pad|>"))], special_tokens=("<|vision_pad|>",))


def test_text_that_only_looks_like_a_mark_is_rendered():
    harmless = "< image > <img> <|im_end |> <im_end> im_start"
    assert harmless in prompt([user(text(harmless))])


# ------------------------------------------------------------------------------------------------------ images


def test_sources_are_gathered_in_order_whatever_their_key():
    image = object()
    messages = [
        user({"type": "image", "url": "u"}, IMAGE, {"type": "image", "path": "p"}, text("?")),
        user(
            {"type": "image", "image": image},
            {"type": "image", "base64": "QUJD"},
            {"type": "image", "base64": "data:image/png;base64,QUJD"},
            {"type": "image_url", "image_url": {"url": "v", "detail": "high"}},
            {"type": "image_url", "image_url": "w"},
            {"type": "input_image", "image_url": "x"},
            {"type": "input_text", "text": "?"},
        ),
    ]
    before = copy.copy(messages[0]["content"][0])
    conversation = read_conversation(messages)
    assert conversation.images == [
        "u",
        "p",
        image,
        "data:;base64,QUJD",
        "data:image/png;base64,QUJD",
        "v",
        "w",
        "x",
    ]
    assert conversation.num_images == 9  # one is only a place
    assert render(conversation).count("<image>") == 9
    assert messages[0]["content"][0] == before  # the caller's messages are left alone


def test_one_conversation_or_a_batch():
    one = [user(text("a"))]
    assert not is_batch(one) and is_batch([one, ({"role": "user", "content": "b"},)])
    assert not any(map(is_batch, ("text", [], None, 7, {}, ["text"])))
    assert read_conversation(one) == Conversation([{"role": "user", "content": [text("a")]}])


# ------------------------------------------------------------------------------------------------------ placeholders


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="ab<>\n", max_size=5), min_size=1, max_size=5),
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
)
def test_placeholders_are_expanded_in_place(texts, counts):
    if any("<image>" in part for part in texts):
        return
    counts = counts[: len(texts) - 1]
    expanded = expand_image_tokens("<image>".join(texts), counts)
    assert expanded.count("<image>") == sum(counts)
    assert len(expanded) == sum(map(len, texts)) + len("<image>") * sum(counts)
    assert expanded.startswith(texts[0])
    assert expanded.endswith(texts[-1])


@pytest.mark.parametrize(
    ("prompt_text", "counts"), [("<image>", []), ("", [4]), ("<image><image>", [4]), ("a", [1, 1])]
)
def test_places_and_images_must_match(prompt_text, counts):
    with pytest.raises(
        ImageTokenMismatchError, match=rf"has {prompt_text.count('<image>')} <image> and {len(counts)} "
    ):
        expand_image_tokens(prompt_text, counts)
