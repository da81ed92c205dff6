"""The API over HTTP: what is answered equals the offline engine; what is refused, and how."""

import base64
import json
import re

import pytest
from server_process import ROOT, example, question

from fastvlm.engine.types import SamplingParams

LETTER = "What letter is this?"


def offline_messages(text, *names):
    items = [{"type": "image", "path": str(ROOT / "examples" / f"{name}.png")} for name in names]
    return [{"role": "user", "content": [*items, {"type": "text", "text": text}]}]


def error_of(response, status):
    """The error of a reply, checked to be in OpenAI's shape and to tell nothing of the inside."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "ImageLimits" not in error["message"], "a client cannot follow this advice"
    assert not re.search(r"Traceback|\.py\b|site-packages|/work|/home|/root|object at 0x", error["message"])
    return error


# ------------------------------------------------------------------------------------------ what is answered


@pytest.mark.parametrize("names", [(), ("letter",), ("red_star", "shapes"), ("cat_photo",)])
def test_replies_equal_those_of_the_offline_engine(server, offline, names):
    text = LETTER if names else "Hello?"
    reply = server.chat(question(text, *map(example, names)), max_tokens=24)
    assert reply.status_code == 200, reply.text
    expected = offline.generate(offline_messages(text, *names), SamplingParams(max_new_tokens=24))
    content = reply.json()
    [choice] = content["choices"]
    assert choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == expected.finish_reason
    assert content["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert content["usage"]["completion_tokens"] == expected.usage.completion_tokens
    assert content["usage"]["prompt_tokens_details"]["image_tokens"] == expected.usage.image_tokens


def test_several_turns_equal_those_of_the_offline_engine(server, offline):
    turns = [
        question(LETTER, example("letter")),
        {"role": "assistant", "content": "It is a letter."},
        {"role": "user", "content": "What colour is it?"},
    ]
    expected = offline.generate(
        [*offline_messages(LETTER, "letter"), turns[1], turns[2]], SamplingParams(max_new_tokens=16)
    )
    system = {"role": "developer", "content": "You are a helpful assistant."}
    for messages in (turns, [system, *turns]):
        reply = server.chat(*messages, max_completion_tokens=16).json()
        assert reply["choices"][0]["message"]["content"] == expected.text


def test_draws_equal_those_of_the_offline_engine(server, offline):
    settings = {"temperature": 1.2, "top_p": 0.95, "seed": 5}
    reply = server.chat(question(LETTER, example("shapes")), max_tokens=12, n=3, **settings).json()
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    for index, text in enumerate(texts):
        params = SamplingParams(max_new_tokens=12, **{**settings, "seed": 5 + index})
        assert text == offline.generate(offline_messages(LETTER, "shapes"), params).text


def test_stop_strings_end_a_reply_and_are_no_part_of_it(server):
    whole = server.chat(question(LETTER, example("letter")), max_tokens=24).json()["choices"][0]["message"]["content"]
    stop = whole[-1]
    cut = server.chat(question(LETTER, example("letter")), max_tokens=24, stop=[stop]).json()["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"


def test_log_probabilities_are_those_of_the_tokens_that_came(server, offline):
    reply = server.chat(question(LETTER, example("letter")), max_tokens=8, logprobs=True, top_logprobs=3).json()
    expected = offline.generate(offline_messages(LETTER, "letter"), SamplingParams(max_new_tokens=8, logprobs=3))
    entries = reply["choices"][0]["logprobs"]["content"]
    text = b"".join(bytes(entry["bytes"]) for entry in entries).decode()
    assert text == reply["choices"][0]["message"]["content"] == expected.text
    for entry, one in zip(entries, expected.logprobs, strict=False):
        assert entry["logprob"] == pytest.approx(one.token, abs=1e-4)
        assert len(entry["top_logprobs"]) == 3 and entry["top_logprobs"][0]["token"] == entry["token"]


def test_a_plain_completion_goes_on_where_a_text_ends(server, offline):
    prompt = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    asked = {"model": "mini", "prompt": [prompt, prompt], "max_tokens": 8, "logprobs": 2, "n": 2}
    reply = server.client.post("/v1/completions", json=asked).json()
    ids = offline.processor.tokenizer(prompt)["input_ids"]
    expected = offline.generate({"input_ids": [ids]}, SamplingParams(max_new_tokens=8, keep_whitespace=True)).text
    assert [choice["text"] for choice in reply["choices"]] == [expected] * 4
    logprobs = reply["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == expected
    assert {len(values) for values in logprobs.values()} == {len(logprobs["tokens"])}
    assert reply["usage"]["prompt_tokens"] == 2 * len(ids)


def test_the_text_of_a_completion_keeps_its_white_space(server):
    """Whole, streamed and in steps: the same text, which goes on where the prompt ends."""

    def text(prompt, tokens):
        asked = {"model": "mini", "prompt": prompt, "max_tokens": tokens, "logprobs": 0}
        [choice] = server.client.post("/v1/completions", json=asked).json()["choices"]
        lines = server.client.post("/v1/completions", json={**asked, "stream": True}).text.splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == choice["text"]
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
        return choice["text"]

    prompt = "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nThere are two"
    whole, steps = text(prompt, 6), ""
    for _ in range(6):
        steps += text(prompt + steps, 1)
    assert steps == whole and whole != whole.strip()


def test_an_image_that_was_sent_before_is_not_encoded_again(server):
    before = server.metric("fastvlm_images_total")
    for text in ("What is this?", "Which colour?", "How many?"):
        server.chat(question(text, example("objects")), max_tokens=2)
    page = server.client.get("/metrics").text
    assert server.metric("fastvlm_images_total") >= before
    assert 'fastvlm_tokens_total{kind="cached"}' in page and 'cache="hit"' in page


# ------------------------------------------------------------------------------------------ JSON

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["circle", "square"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "count", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "seed": 3}, {"temperature": 2.0, "seed": 4, "n": 3}])
def test_a_schema_is_obeyed_even_by_a_model_that_never_saw_json(server, settings):
    asked = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    reply = server.chat(question(LETTER, example("letter")), response_format=asked, max_tokens=100, **settings).json()
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "stop"
        content = json.loads(choice["message"]["content"])
        assert list(content) == ["name", "count", "kind", "tags"]
        assert len(content["name"]) <= 12 and 0 <= content["count"] <= 99
        assert content["kind"] in ("circle", "square")
        assert all(isinstance(tag, bool) for tag in content["tags"]) and 1 <= len(content["tags"]) <= 2
    forced = re.search(r'fastvlm_draft_tokens_total\{kind="forced".*\} (\S+)', server.client.get("/metrics").text)
    assert float(forced[1]) >= 20, "braces and names take no steps of their own"


def test_any_object_is_json(server):
    reply = server.chat(question("Say something."), response_format={"type": "json_object"}, max_tokens=120).json()
    [choice] = reply["choices"]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    "schema",
    [
        *({"type": "nonsense"}, {"type": "string", "pattern": "(?=a)b"}, {"$ref": "http://127.0.0.1/x"}, {"enum": []}),
        *({"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(server, schema):
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = error_of(server.chat(question("?"), response_format=asked, max_tokens=4), 400)
    assert error["code"] == "invalid_json_schema" and error["param"] == "response_format.json_schema.schema"


@pytest.mark.parametrize("text", ["<|im_end|>", "<image>", "a <|endoftext|> b", "<|im_start|>user"])
def test_a_schema_may_name_what_the_model_reads_as_a_mark(server, text):
    schema = {"type": "object", "properties": {text: {"const": text}}, "required": [text]}
    schema["additionalProperties"] = False
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = server.chat(question("?"), response_format=asked, max_tokens=100).json()
    assert json.loads(reply["choices"][0]["message"]["content"]) == {text: text}


def test_a_schema_that_leads_back_to_itself_with_a_way_out_is_enforced(server):
    schema = {"anyOf": [{"type": "array", "items": {"$ref": "#"}, "maxItems": 1}, {"const": 1}]}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = server.chat(question("?"), response_format=asked, max_tokens=100).json()
    assert reply["choices"][0]["message"]["content"][0] in "[1"


# ------------------------------------------------------------------------------------------ what has a plain meaning


def content_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_completion_tokens": 10**9}, {"max_tokens": 129}, {"seed": -1}, {"top_k": -1}, {"best_of": None}),
        *({"top_p": 0}, {"top_p": 0, "temperature": 2}, {"temperature": 0, "top_k": -1, "seed": -1}),
    ],
)
def test_settings_with_a_plain_meaning_are_taken(server, settings):
    settings = {key: value for key, value in settings.items() if value is not None}
    asked = question(LETTER, example("letter"))
    assert content_of(server.chat(asked, **settings)) == content_of(server.chat(asked, max_tokens=128))


def test_a_reply_gets_what_the_context_leaves(server):
    asked = {"model": "mini", "prompt": "a" + " a" * 2000, "max_tokens": 100}
    reply = server.client.post("/v1/completions", json=asked).json()
    assert reply["usage"]["total_tokens"] <= 2048 and reply["choices"][0]["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize(
    ("settings", "status"), [({"best_of": 1}, 200), ({"best_of": 2, "n": 2}, 200), ({"best_of": 2}, 400)]
)
def test_best_of_may_say_what_n_says(server, settings, status):
    asked = {"model": "mini", "prompt": "A", "max_tokens": 2, **settings}
    response = server.client.post("/v1/completions", json=asked)
    assert response.status_code == status
    assert status == 200 or error_of(response, 400)["param"] == "best_of"


def test_an_address_may_stand_without_an_object(server):
    text = {"type": "text", "text": LETTER}
    plain = {"role": "user", "content": [{"type": "image_url", "image_url": example("letter")}, text]}
    assert content_of(server.chat(plain)) == content_of(server.chat(question(LETTER, example("letter"))))


def test_several_system_messages_are_joined_in_front(server, offline):
    rules = [{"role": role, "content": text} for role, text in (("system", "Be short."), ("developer", "Be kind."))]
    joined = [{"role": "system", "content": "Be short.\nBe kind."}, question("Hello?")]
    expected = offline.generate(joined, SamplingParams(max_new_tokens=24)).text
    for messages in ([*rules, question("Hello?")], [rules[0], question("Hello?"), rules[1]]):
        assert content_of(server.chat(*messages, max_tokens=24)) == expected


def test_the_assistants_content_may_be_null(server):
    turns = [question("Hello?"), {"role": "assistant", "content": None}, question("Hello?")]
    empty = [turns[0], {"role": "assistant", "content": ""}, turns[2]]
    assert content_of(server.chat(*turns)) == content_of(server.chat(*empty))
    error = error_of(server.chat({"role": "user", "content": None}), 400)
    assert error["param"] == "messages[0].content"


# ------------------------------------------------------------------------------------------ what is refused


def image(url):
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "examples/letter.png", "../x.png", "", "x"),
        *("ftp://example.org/a.png", "javascript:alert(1)", "blob:1", "data:image/png", "data:image/png;base64,@@"),
        *("data:image/png;base64,", "data:,"),
    ],
)
def test_no_path_and_no_other_scheme_is_an_image(server, url):
    error = error_of(server.chat(image(url)), 400)
    assert error["code"] == "invalid_image_url" and error["param"] == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image", "path": "/etc/passwd"},
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image_url", "image_url": "/etc/passwd"},
        {"type": "image_url", "image_url": {"url": "data:,", "path": "/etc/passwd"}},
        {"type": "image_url", "path": "/etc/passwd", "image_url": {"url": "data:,"}},
        {"type": "input_image", "image_url": "/etc/passwd"},
    ],
)
def test_an_item_with_a_path_is_refused(server, item):
    error = error_of(server.chat({"role": "user", "content": [item]}), 400)
    assert error["param"].startswith("messages[0].content[0]"), error


def test_images_of_addresses_are_off(server):
    for url in ("https://example.org/a.png", "http://127.0.0.1/a.png"):
        assert error_of(server.chat(image(url)), 400)["code"] == "remote_images_disabled"


def test_bad_images_are_told(server):
    whole = (ROOT / "examples" / "letter.png").read_bytes()
    large = b"P5 2000 2000 255\n" + bytes(4)  # more pixels than this server takes, and only said to be there
    for data, code in ((b"no image", "invalid_image"), (whole[:500], "invalid_image"), (large, "image_too_large")):
        error = error_of(server.chat(image(f"data:image/png;base64,{base64.b64encode(data).decode()}")), 400)
        assert error["code"] == code, error


def test_every_form_of_a_data_uri_is_read(server):
    data = (ROOT / "examples" / "letter.png").read_bytes()
    wrapped = base64.encodebytes(data).decode()  # 76 columns
    forms = [
        f"data:image/png;base64,{wrapped}",
        f"DATA:image/png;charset=utf-8;BASE64,{base64.urlsafe_b64encode(data).decode().rstrip('=')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
    ]
    answers = [server.chat(question("What letter is this?", url), max_tokens=4) for url in [example("letter"), *forms]]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1


def test_only_users_send_images_and_not_too_many(server):
    url = example("letter")
    asked = {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    assert "only user messages" in error_of(server.chat(asked, question("?")), 400)["message"]
    assert "the limit is 8" in error_of(server.chat(question("?", *["data:,"] * 9)), 400)["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"null", "invalid_value"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"model": "mini", "messages": ' + b"[" * 100_000, "body_too_complex"),
        (b'{"model": "mini", "messages": ' + b"[" * 1000, "invalid_json"),
        (b'{"model": "mini"}', "missing_required_parameter"),
        (b'{"model": "mini", "messages": []}', "invalid_value"),
    ],
)
def test_malformed_bodies_are_told(server, body, code):
    headers = {"Content-Type": "application/json"}
    response = server.client.post("/v1/chat/completions", content=body, headers=headers)
    assert error_of(response, 400)["code"] == code


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": -2}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x" * 257]}, "stop[0]"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"colour": 1}, "colour"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused_by_name(server, settings, param):
    assert error_of(server.chat(question("?"), **settings), 400)["param"] == param


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "text", "text": "a", "colour": 1}, "messages[0].content[0].colour"),
        ({"type": "text", "text": 5}, "messages[0].content[0].text"),
        ({"type": "text"}, "messages[0].content[0].text"),
        ({"type": "image_url", "image_url": {"url": "a", "path": 1}}, "messages[0].content[0].image_url.path"),
        ({"type": "image_url", "image_url": {"url": "a"}, "path": 1}, "messages[0].content[0].path"),
        ({"type": "image_url", "image_url": {}}, "messages[0].content[0].image_url.url"),
        ({"type": "image_url", "image_url": 5}, "messages[0].content[0].image_url"),
        ({"type": "image_url"}, "messages[0].content[0].image_url"),
        ({"type": "nothing"}, "messages[0].content[0]"),
        ("a", "messages[0].content[0]"),
    ],
)
def test_the_field_that_is_wrong_is_named(server, part, param):
    error = error_of(server.chat({"role": "user", "content": [part]}), 400)
    assert error["param"] == param and error["message"].startswith(param)


def test_a_key_of_any_length_is_told_in_a_short_message(server):
    assert len(error_of(server.chat(question("?"), **{"k" * 10**6: 1}), 400)["message"]) < 1000


def test_there_must_be_something_to_answer(server):
    error = error_of(server.chat(question("?"), {"role": "assistant", "content": "A"}), 400)
    assert "End with a user message" in error["message"] and error["param"] == "messages[1]"


def test_marks_of_the_model_are_no_text(server):
    error = error_of(server.chat(question("a"), {"role": "assistant", "content": ""}, question("<|im_end|>")), 400)
    assert error["code"] == "invalid_prompt" and error["param"] == "messages[2].content[0].text"
    asked = {"model": "mini", "prompt": "<image>", "max_tokens": 1}
    assert error_of(server.client.post("/v1/completions", json=asked), 400)["param"] == "prompt"


def test_a_prompt_that_does_not_fit_is_told_with_both_counts(server):
    error = error_of(server.chat(question("word " * 3000), max_tokens=8), 400)
    assert error["code"] == "context_length_exceeded" and "3023 tokens; the limit is 2047" in error["message"]


def test_an_unknown_model_is_not_found(server):
    asked = {"model": "gpt-5", "messages": [question("?")]}
    assert error_of(server.client.post("/v1/chat/completions", json=asked), 404)["code"] == "model_not_found"
    assert error_of(server.client.get("/v1/models/gpt-5"), 404)["code"] == "model_not_found"


def test_oversized_bodies_are_refused_announced_or_not(server):
    headers = {"Content-Type": "application/json"}
    body = b'{"a": "' + b"x" * 3 * 2**20 + b'"}'
    for content in (body, iter([body[:100], body[100:]])):
        response = server.client.post("/v1/chat/completions", content=content, headers=headers)
        assert error_of(response, 413)["code"] == "body_too_large"
    assert server.chat(question("Hello?"), max_tokens=1).status_code == 200


def test_who_is_refused_while_still_sending_gets_the_refusal(server):
    headers = {"Content-Type": "application/json", "Host": "evil.example"}
    for _ in range(3):
        response = server.client.post("/v1/chat/completions", content=b"x" * 8 * 2**20, headers=headers)
        assert error_of(response, 403)["code"] == "host_not_allowed"


def test_only_json_is_read(server):
    response = server.client.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert error_of(response, 415)["code"] == "unsupported_media_type"


def test_unknown_paths_and_methods_are_told(server):
    assert error_of(server.client.get("/v1/embeddings"), 404)["code"] == "not_found"
    response = server.client.get("/v1/chat/completions")
    assert error_of(response, 405)["code"] == "method_not_allowed" and response.headers["allow"] == "POST"
    for path in ("/../pyproject.toml", "/%2e%2e/__init__.py", "/..%2f__init__.py", "//etc/passwd"):
        assert server.client.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1"])
def test_a_name_that_is_not_this_machines_is_refused(server, host):
    assert error_of(server.client.get("/v1/models", headers={"Host": host}), 403)["code"] == "host_not_allowed"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://[", "http://"])
def test_other_pages_may_not_ask(server, origin):
    asked = {"model": "mini", "messages": [question("?")], "max_tokens": 1}
    response = server.client.post("/v1/chat/completions", json=asked, headers={"Origin": origin})
    assert error_of(response, 403)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers
    own = server.client.post("/v1/chat/completions", json=asked, headers={"Origin": server.url})
    assert own.status_code == 200


# ------------------------------------------------------------------------------------------ the rest


def test_models_state_documents_and_figures(server):
    [model] = server.client.get("/v1/models").json()["data"]
    assert model["id"] == "mini" and server.client.get("/v1/models/mini").json() == model
    assert model["parent"] is None and "one question at a time" in model["description"]
    assert model["image"] == {"height": 512, "width": 512, "fit": "pad", "tokens": 64}
    limits = {"max_output_tokens": 128, "max_body_bytes": 2**21, "max_image_pixels": 2_000_000}
    assert model["limits"] == {"max_images": 8, "max_image_bytes": 15 * 2**20, "accepts": [], **limits}
    assert model["max_model_len"] > 128
    for path in ("/health", "/ready"):
        assert server.client.get(path).json() == {"status": "ready", "is_ready": True}
    assert server.client.get("/openapi.json").json()["openapi"].startswith("3.1")
    docs = server.client.get("/docs")
    assert "POST /v1/chat/completions" in docs.text and "<script" not in docs.text
    page = server.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    for name in (
        "time_to_first_token_seconds_bucket",
        "slots_running",
        "queue_waiting",
        "errors_total",
        "images_total",
    ):
        assert f"fastvlm_{name}" in page.text, name


def test_every_reply_has_an_id_and_says_what_a_browser_may_do(server):
    ids = set()
    for path in ("/health", "/nothing", "/"):
        headers = server.client.get(path).headers
        ids.add(headers["x-request-id"])
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
    assert len(ids) == 3
