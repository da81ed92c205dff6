"""Records of every layout become messages with images in their places; what cannot be trained on says why."""

import base64
from pathlib import Path

import pytest
from training_files import gray, llava, openai, png

from fastvlm.errors import DataError
from fastvlm.training.data.messages import read_record

FOLDER = Path("/images")
IMAGE = {"type": "image"}
SYSTEM_TURNS = [{"role": "system", "content": "B"}, {"role": "assistant", "content": "A"}]


def text(value):
    return {"type": "text", "text": value}


def contents(record):
    messages, _ = read_record(record, FOLDER)
    return [message["content"] for message in messages]


def test_llava_turns_become_messages():
    messages, images = read_record(llava("<image>\nWhat?", "A cat.", "Sure?", "Yes.", image="a/b.jpg"), FOLDER)
    assert messages == [
        {"role": "user", "content": [IMAGE, text("What?")]},
        {"role": "assistant", "content": [text("A cat.")]},
        {"role": "user", "content": [text("Sure?")]},
        {"role": "assistant", "content": [text("Yes.")]},
    ]
    assert images == (FOLDER / "a/b.jpg",)


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("<image>\nWhat?", [IMAGE, text("What?")]),
        ("What?\n<image>", [text("What?"), IMAGE]),
        ("<image>What?", [IMAGE, text("What?")]),
        ("Is  <image>  red?\n", [text("Is"), IMAGE, text("red?\n")]),
        ("<image>", [IMAGE]),
    ],
)
def test_an_image_stays_where_it_stands(value, items):
    assert contents(llava(value, "A.", image="x.png"))[0] == items


def test_two_images_stand_in_their_order():
    record = llava("<image>\n<image> Which?", "Both.", image=["x.png", "y.png"])
    assert contents(record)[0] == [IMAGE, IMAGE, text("Which?")]
    assert read_record(record, FOLDER)[1] == (FOLDER / "x.png", FOLDER / "y.png")


def test_a_system_turn_is_kept():
    record = {"conversations": [{"from": "system", "value": "Be brief."}, *llava("Hi", "Ho")["conversations"]]}
    messages, _ = read_record(record, FOLDER)
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize("record", [llava("Hi", "Ho"), openai("Hi", "Ho")])
def test_a_system_column_is_the_first_turn(record):
    messages, _ = read_record({**record, "system": "Be brief."}, FOLDER)
    assert messages[0] == {"role": "system", "content": [text("Be brief.")]}
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert len(read_record({**record, "system": ""}, FOLDER)[0]) == 2


@pytest.mark.parametrize("column", ["image", "images", "image_path"])
def test_every_name_of_the_images_is_read(column):
    for value in ("x.png", ["x.png"]):
        assert read_record({**llava("<image>\nWhat?", "A."), column: value}, FOLDER)[1] == (FOLDER / "x.png",)


def test_metadata_and_what_is_ignored_is_left_out():
    record = {**llava("Hi", "Ho"), "source": "web", "width": 3, "img": "", "tools": None, "score": 0.5}
    record["conversations"][0]["likes"] = 4
    assert len(read_record(record, FOLDER, ignored=["score", "likes"])[0]) == 2
    with pytest.raises(DataError, match="it has 'score', which would not be read"):
        read_record(record, FOLDER, ignored=["likes"])
    with pytest.raises(DataError, match="turn 0 has 'likes', which"):
        read_record(record, FOLDER, ignored=["score"])


def test_openai_parts_carry_their_images():
    uri = "data:image/png;base64," + base64.b64encode(png(3)).decode()
    record = openai(
        [text("One"), {"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "image_url", "image_url": uri}],
        "Yes.",
    )
    messages, images = read_record(record, FOLDER)
    assert messages[0]["content"] == [text("One"), IMAGE, IMAGE]
    assert images == (FOLDER / "a.png", uri)


def test_columns_that_arrow_fills_with_null_are_not_there():
    items = [{"type": "image", "text": None, "index": 0}, {"type": "text", "text": "What?", "index": None}]
    record = openai(items, [{"type": "text", "text": "A.", "index": None}], images=[b"1"], conversations=None)
    messages, images = read_record(record, FOLDER)
    assert messages[0]["content"] == [IMAGE, text("What?")]
    assert images == (b"1",)


def test_placeholders_inside_messages_texts_are_places():
    assert contents(openai("See <image> here", "A.", images=["x.png"]))[0] == [text("See"), IMAGE, text("here")]


def test_images_without_a_place_stand_first_in_messages_as_in_trl():
    assert contents(openai("What?", "A.", images=["x.png", "y.png"]))[0] == [IMAGE, IMAGE, text("What?")]


def test_turns_may_be_a_json_text():
    assert contents({"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]'}) == [
        [text("Hi")],
        [text("Ho")],
    ]


def test_conversations_may_have_roles():
    assert contents({"conversations": openai("Hi", "Ho")["messages"]}) == [[text("Hi")], [text("Ho")]]


def test_a_reply_loses_blank_lines_at_its_start_and_no_indentation():
    assert contents(llava("Hi", " \n\r\n  def f(): ...\n"))[1] == [text("  def f(): ...\n")]
    assert contents(openai("Hi", "\n\nHo"))[1] == [text("Ho")]
    assert contents(llava("\nHi", "Ho"))[0] == [text("\nHi")]


def test_images_of_every_kind():
    image = gray(1)
    sources = [
        "/elsewhere/a.png",
        "file:///else%20where/a.png",
        Path("b.png"),
        {"bytes": b"12", "path": "c.png"},
        {"bytes": None, "path": "c.png"},
        {"bytes": "MTI=", "path": None},
        image,
    ]
    _, images = read_record(llava("<image>" * len(sources), "A.", image=sources), FOLDER)
    assert images == (
        Path("/elsewhere/a.png"),
        Path("/else where/a.png"),
        FOLDER / "b.png",
        b"12",
        FOLDER / "c.png",
        "data:;base64,MTI=",
        image,
    )


@pytest.mark.parametrize("nothing", [None, "", [], ()])
def test_nothing_is_no_image(nothing):
    assert read_record({**llava("Hi", "Ho"), "image": nothing}, FOLDER)[1] == ()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (llava("<image>\nWhat?", "A."), "1 place(s) for images (<image>, or items) and 0 image(s)"),
        (llava("What?", "A.", image="x.png"), "0 place(s)"),
        (llava("<image>\nWhat?", "A.", image=["x.png", "y.png"]), "1 place(s)"),
        (llava("What?", "<image>\nA.", image="x.png"), "contains '<image>'"),
        (llava("What <|im_end|>", "A."), "'<|im_end|>', which the model reads as a mark"),
        (llava("What?\n<|im_start|>assistant\nMine.", "A."), "'<|im_start|>'"),
        (llava("What?", "A.<|endoftext|>"), "'<|endoftext|>'"),
        (llava("What?", ""), "turn 1, the assistant's, is empty"),
        (llava("What?", " \n "), "turn 1, the assistant's, is empty"),
        (llava("What?", "\n\n"), "turn 1, the assistant's, is empty"),
        (llava("What?"), "no assistant's turn"),
        (llava("What?", "A \ud800 b"), "turn 1 holds half a surrogate pair (character 2)"),
        ({"conversations": [{"from": "robot", "value": "Hi"}]}, "from 'robot'; known are human"),
        ({"conversations": [{"from": "human", "value": None}]}, "the value None"),
        ({"conversations": []}, "expected a list of turns"),
        ({"conversations": "no"}, "is a text, but not valid JSON"),
        ({"conversations": ["Hi"]}, "turn 0 is str 'Hi'"),
        ({"id": "Hi"}, "it has id; expected one of 'conversations' (LLaVA) and 'messages' (OpenAI)"),
        ({"messages": [1], "conversations": [2]}, "expected one of"),
        ({}, "it has nothing"),
        (openai("Hi", {"a": 1}), "turn 1 has the content dict"),
        (openai("Hi", None), "turn 1 has the content NoneType None"),
        (openai("Hi", [{"type": "audio"}]), "type 'audio'"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "the role 'tool'"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "turn 0 calls a tool"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "the weight 0"),
        (
            openai([{"type": "image", "image": "x.png"}], "A.", image="y.png"),
            "inside its messages and 1 in its image column",
        ),
        (openai([{"type": "image", "image": "x.png"}, IMAGE], "A."), "2 place(s)"),
        ({**llava("<image>", "A.", image="x.png"), "images": ["x.png"]}, "both 'image' and 'images'"),
        (llava("<image>", "A.", image="https://a.b/c.png"), "is a URL; training reads no network"),
        (llava("<image>", "A.", image=3), "an image is int 3"),
        (llava("<image>", "A.", image={"bytes": None, "path": None}), "expected 'bytes' or 'path'"),
        ({**llava("<video>\nWhat?", "A."), "video": "a.mp4"}, "it has 'video'"),
        (
            {**llava("Hi", "Ho"), "tools": [{"type": "function"}]},
            "it has 'tools'; FastVLM's chat template has no tools",
        ),
        ({**llava("Hi", "Ho"), "img": "x.png"}, "it has 'img' (did you mean 'image'?), which would not be read"),
        ({**llava("Hi", "Ho"), "pictures": ["x.png"]}, "'pictures' (did you mean 'images'?)"),
        ({**llava("Hi", "Ho"), "Image": "x.png", "zzz": 0}, "'Image' (did you mean 'image'?), 'zzz', which"),
        ({**llava("Hi", "Ho"), "zzz": 0}, "known here: conversations, messages, image, images, image_path, system"),
        ({**llava("Hi", "Ho"), "zzz": 0}, "--ignore zzz"),
        ({**llava("Hi", "Ho"), "system": ["Hi"]}, "its 'system' is list ['Hi']; expected a text"),
        ({"system": "A", **openai("Hi", "Ho", messages=SYSTEM_TURNS)}, "both the column 'system' and a system turn"),
        ({**llava("Hi", "Ho"), "system": "<|im_end|>"}, "'<|im_end|>', which the model reads as a mark"),
        ({**llava("<image>", "A.", image="x.png"), "image_path": "x.png"}, "both 'image' and 'image_path'"),
        ({"conversations": [{"from": "gpt", "value": "A", "weight": 0}]}, "turn 0 has the weight 0"),
        ({"conversations": [{"from": "gpt", "value": "A", "tool_calls": [1]}]}, "turn 0 calls a tool"),
        ({"conversations": [{"from": "gpt", "value": "A", "role": "user"}]}, "turn 0 has 'role'"),
        ({"messages": [{"role": "user", "content": "A", "images": ["x.png"]}]}, "turn 0 has 'images'"),
        (openai([{"type": "text", "text": "Hi", "image": "x.png"}], "A."), "an item of turn 0 has 'image'"),
        (openai([{"type": "image", "bytes": "MTI="}], "A.", images=["x.png"]), "an item of turn 0 has 'bytes'"),
    ],
)
def test_what_cannot_be_trained_on_says_why(record, words):
    with pytest.raises(DataError) as caught:
        read_record(record, FOLDER)
    assert words in str(caught.value)
