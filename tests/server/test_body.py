"""How a body is received, and what a bad one costs: bounded work, one mistake told."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvlm.server.http.body import MAX_VALUES, announced_bytes, parse, read_body, upload_deadline_s
from fastvlm.server.http.errors import ApiError
from fastvlm.server.openai.chat import ChatRequest
from fastvlm.server.settings import ServeSettings

CHAT = {"model": "mini", "messages": [{"role": "user", "content": "?"}]}


def scope(**headers):
    names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "headers": [(b"content-type", b"application/json"), *names]}


def test_time_for_a_body_grows_with_what_has_come():
    settings = ServeSettings(min_body_rate=100, header_timeout_s=10, request_timeout_s=50)
    assert [upload_deadline_s(count, settings) for count in (0, 1000, 4000, 10**9)] == [10, 20, 50, 50]


def test_a_body_that_stops_is_given_up():
    async def receive():
        if not hasattr(receive, "begun"):
            receive.begun = True
            return {"type": "http.request", "body": b"{", "more_body": True}
        return await asyncio.Event().wait()

    with pytest.raises(ApiError) as raised:
        asyncio.run(read_body(scope(), receive, ServeSettings(min_body_rate=100, header_timeout_s=0.01)))
    assert raised.value.status == 408


@pytest.mark.parametrize(
    ("text", "count"), [("5", 5), ("", float("inf")), ("-1", float("inf")), ("9" * 5000, float("inf"))]
)
def test_what_a_header_announces(text, count):
    assert announced_bytes(scope(content_length=text)) == count


@pytest.mark.parametrize(
    "body",
    [
        {**CHAT, **{f"k{index}": 1 for index in range(MAX_VALUES)}},
        {"model": "mini", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * MAX_VALUES}]},
        {"model": "mini", "messages": [[]] * MAX_VALUES},
        {**CHAT, "metadata": {f"k{index}": "a" for index in range(MAX_VALUES)}},
    ],
)
def test_what_would_take_long_to_validate_is_not_validated(body):
    with pytest.raises(ApiError, match="the limit is") as raised:
        parse(json.dumps(body).encode(), ChatRequest, ServeSettings())
    assert raised.value.code == "body_too_complex"


def test_thousands_of_parts_are_refused_with_their_number():
    body = {"model": "mini", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 5000}]}
    with pytest.raises(ApiError, match="at most 1000 items") as raised:
        parse(json.dumps(body).encode(), ChatRequest, ServeSettings())
    assert raised.value.param == "messages[0].content"


JSON = st.recursive(
    st.none()
    | st.sampled_from(["text", "content", "image_url"])
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "type", "image_url", "url", "role", "content", "str", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def mistake(body):
    try:
        parse(json.dumps(body).encode(), ChatRequest, ServeSettings())
    except ApiError as error:
        return error
    return None


@given(
    st.sampled_from(["messages", "stop", "response_format", "stream_options", "metadata", "tools", "seed", "x"]), JSON
)
def test_any_mistake_is_told_with_a_place_of_the_body(name, value):
    error = mistake({**CHAT, name: value})
    if error is not None and error.code != "invalid_json":
        assert error.status == 400 and error.param.partition("[")[0].partition(".")[0] == name


@pytest.mark.parametrize("key", ["content", "role", "name"])
def test_an_unknown_type_of_a_message_hides_no_mistake(key):
    error = mistake({"model": "mini", "messages": [{"role": "user", "type": key, "content": [5], "name": 5}]})
    assert error.status == 400 and error.param.startswith("messages[0]")


PLACES = [
    (),
    ("messages", 0),
    ("messages", 0, "content", 0),
    ("messages", 0, "content", 1, "image_url"),
    ("stream_options",),
]


@given(st.sets(st.tuples(st.sampled_from(PLACES), st.sampled_from(["a", "x-b", "content_", "0"])), min_size=1))
def test_lenient_parsing_leaves_out_what_is_unknown_and_nothing_else(unknown):
    known = {
        "model": "mini",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image_url", "image_url": {"url": "data:,"}},
                ],
            }
        ],
    }
    body = json.loads(json.dumps(known))
    for place, name in unknown:
        owner = body
        for step in place:
            owner = owner[step]
        owner[name] = {"any": ["thing"]}
    lenient = parse(json.dumps(body).encode(), ChatRequest, ServeSettings(lenient=True))
    assert lenient == parse(json.dumps(known).encode(), ChatRequest, ServeSettings())
    with pytest.raises(ApiError, match="is not a known parameter"):
        parse(json.dumps(body).encode(), ChatRequest, ServeSettings())
