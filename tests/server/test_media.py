"""PDFs and videos in requests: read where the server accepts them, within its limits, and refused elsewhere."""

import base64

import pytest
from media_files import disk, encrypted_pdf, pdf, video
from PIL import Image
from server_process import ROOT, Server, example, question

WORDS = ["OAK", "CAT", "SUN"]


def uri(data, kind="application/pdf"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def page_question(text, data, pages=None):
    image = {"type": "image_url", "image_url": {"url": uri(data), "pages": pages}}
    return {"role": "user", "content": [image, {"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def accepting():
    with Server("--accept", "pdf", "--accept", "video", "--max-images", 3, "--max-image-pixels", 300_000) as running:
        yield running


def reply(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"], response.json()["usage"]["prompt_tokens"]


def error(response):
    assert response.status_code == 400, response.text
    return response.json()["error"]["message"]


def test_a_word_on_a_page_and_a_shape_in_a_video(accepting):
    assert accepting.client.get("/v1/models").json()["data"][0]["limits"]["accepts"] == ["pdf", "video"]
    document = pdf(WORDS)
    assert reply(accepting.chat(page_question("What does it say?", document, "2")))[0] == "CAT"
    with Image.open(ROOT / "examples" / "red_star.png") as star:
        clip = uri(video([star.convert("RGB")], each=15), "video/mp4")
    answer, one_image = reply(accepting.chat(question("What shape is this?", clip)))
    assert answer == "It is a star."
    text = {"type": "text", "text": "What shape is this?"}
    for part in (
        {"type": "video_url", "video_url": {"url": clip}},
        {"type": "file", "file": {"file_data": clip, "filename": "clip.mp4"}},
    ):
        assert reply(accepting.chat({"role": "user", "content": [part, text]})) == (answer, one_image)
    assert reply(accepting.chat(page_question("What shape is this?", document)))[1] == one_image + 2 * 64


def test_the_limits_hold_for_all_images_of_a_request_together(accepting):
    assert "has 6 pages; the limit is 3" in error(accepting.chat(page_question("?", pdf(WORDS * 2))))
    star = example("red_star")
    crowded = question("?", star, uri(pdf(WORDS)))
    assert "has 3 pages; the limit is 2" in error(accepting.chat(crowded))
    assert reply(accepting.chat(question("?", star, uri(pdf(WORDS[:2]))), max_tokens=1))
    large = uri(video([disk("red", (640, 480))], each=2), "video/mp4")
    assert "640 x 480 = 307200 pixels; the limit is 300000" in error(accepting.chat(question("?", large)))


def test_what_is_wrong_is_said_with_its_place(accepting):
    place = "messages[0].content[0].image_url.url"
    for message, says in (
        (page_question("?", encrypted_pdf()), f"{place} is encrypted"),
        (page_question("?", pdf(["x"])[:80]), "damaged PDF"),
        (page_question("?", pdf(["x"]), "2"), f"{place} has no page 2; it has 1"),
        (page_question("?", pdf(["x"]), "a-b"), "pages is 'a-b'; expected numbers and ranges"),
        (page_question("?", video([disk("red")], each=2), "1"), "has pages, but is not a PDF"),
        (question("?", uri(video([disk("red")], each=2)[:300], "video/mp4")), place),
    ):
        assert says in error(accepting.chat(message))
    assert reply(accepting.chat(question("What shape is this?", example("red_star"))))[0] == "It is a star."


def test_a_server_that_was_not_told_to_refuses_them(server):
    assert "is a PDF, which this server does not accept. Send images, or start" in error(
        server.chat(question("?", uri(pdf(["x"]))))
    )
    assert "--accept video" in error(server.chat(question("?", uri(video([disk("red")], each=2), "video/mp4"))))


def test_the_other_apis_have_names_for_files_too(accepting):
    data = pdf(["OAK"])
    encoded = base64.b64encode(data).decode()
    source = {"type": "base64", "media_type": "application/pdf", "data": encoded}
    text = "What does it say?"
    content = [{"type": "document", "source": source, "title": "a.pdf"}, {"type": "text", "text": text}]
    message = {"model": "mini", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    assert accepting.client.post("/v1/messages", json=message).json()["content"][0]["text"] == "OAK"
    file = {"type": "input_file", "file_data": uri(data), "filename": "a.pdf"}
    given = [{"role": "user", "content": [file, {"type": "input_text", "text": text}]}]
    answer = accepting.client.post("/v1/responses", json={"model": "mini", "input": given, "temperature": 0}).json()
    assert answer["output"][0]["content"][0]["text"] == "OAK"
    turn = {"role": "user", "content": text, "images": [encoded]}
    answer = accepting.client.post("/api/chat", json={"model": "mini", "messages": [turn], "stream": False}).json()
    assert answer["message"]["content"] == "OAK"
