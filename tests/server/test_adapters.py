"""`fastvlm serve --adapter`: the model's name picks base or adapter, and each answers as the offline engine does."""

import re
import threading

import peft
import pytest
import torch
from server_process import ROOT, Server, example, question

import fastvlm
from fastvlm.backends.devices import pick_device
from fastvlm.backends.local import fast_dtype
from fastvlm.engine.types import SamplingParams

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient.checkpointing.*")

IMAGES = ("letter", "shapes", "red_star", "word")
TEXT = "What do you see?"
SCALE = 0.15  # of random matrices: replies change


def load():
    return fastvlm.load("mini", dtype=fast_dtype(pick_device()))


def make_adapter(folder, seed, targets):
    """A random adapter of the mini, saved by peft; an engine with its weights merged by peft."""
    model, processor = load()
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, lora)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=SCALE)
    wrapped.save_pretrained(folder)
    return fastvlm.Engine.from_model(wrapped.merge_and_unload().eval(), processor)


@pytest.fixture(scope="module")
def served(tmp_path_factory, offline):
    """A server of the mini with two adapters, and the offline engine of each name."""
    folder = tmp_path_factory.mktemp("adapters")
    engines = {
        "mini": offline,
        "poet": make_adapter(folder / "poet", 1, r".*language_model.*\.(q_proj|v_proj|up_proj)"),
        "painter": make_adapter(folder / "painter", 2, r".*(multi_modal_projector\.linear_2|language_model.*k_proj)"),
    }
    adapters = [f"{name}={folder / name}" for name in ("poet", "painter")]
    with Server("--adapter", adapters[0], "--adapter", adapters[1]) as server:
        yield server, engines


def ask(server, name, image, **settings):
    return server.client.post(
        "/v1/chat/completions",
        json={"model": name, "messages": [question(TEXT, example(image))], "max_tokens": 16, **settings},
    )


def offline_text(engine, image):
    content = [{"type": "image", "path": str(ROOT / "examples" / f"{image}.png")}, {"type": "text", "text": TEXT}]
    return engine.generate([{"role": "user", "content": content}], SamplingParams(max_new_tokens=16)).text


def test_replies_of_all_names_asked_together_equal_the_offline_engines(served):
    server, engines = served
    replies = {}

    def note(name, image):
        reply = ask(server, name, image).json()
        assert reply["model"] == name
        replies[name, image] = reply["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=note, args=(name, image)) for image in IMAGES for name in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == {(name, image): offline_text(engines[name], image) for name, image in replies}
    assert len(replies) == len(IMAGES) * len(engines)
    for name in ("poet", "painter"):
        assert any(replies[name, image] != replies["mini", image] for image in IMAGES), name


def test_models_are_listed_the_base_first(served):
    server, _ = served
    listed = server.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["mini", "poet", "painter"]
    assert [model["parent"] for model in listed] == [None, "mini", "mini"] and listed[1]["description"] is None
    assert server.client.get("/v1/models/painter").json() == listed[2]
    enum = server.client.get("/openapi.json").json()["components"]["schemas"]["ChatRequest"]["properties"]["model"][
        "enum"
    ]
    assert enum == ["mini", "poet", "painter"]


def test_unknown_names_are_404_and_told_which_there_are(served):
    server, _ = served
    bodies = {
        "/v1/chat/completions": {"model": "other", "messages": [question("?")]},
        "/v1/completions": {"model": "other", "prompt": "A"},
    }
    answers = [server.client.post(path, json=body) for path, body in bodies.items()]
    for answer in [*answers, server.client.get("/v1/models/other")]:
        error = answer.json()["error"]
        assert answer.status_code == 404 and error["code"] == "model_not_found" and error["param"] == "model"
        assert "'mini', 'poet', 'painter'" in error["message"]


def test_an_adapter_streams_and_completes_under_its_name(served):
    server, engines = served
    lines = [line for line in ask(server, "poet", "letter", stream=True).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]" and '"model":"poet"' in lines[0].replace(" ", "")
    asked = {"model": "poet", "prompt": "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n", "max_tokens": 8}
    reply = server.client.post("/v1/completions", json=asked).json()
    ids = engines["poet"].processor.tokenizer(asked["prompt"])["input_ids"]
    expected = engines["poet"].generate({"input_ids": [ids]}, SamplingParams(max_new_tokens=8))
    assert reply["choices"][0]["text"] == expected.text and reply["model"] == "poet"


def test_what_an_adapter_takes_is_told_and_is_less_than_the_model(served):
    server, _ = served
    told = dict(re.findall(r"fastvlm: adapter: (\w+): ([\d.]+ \w+) of decoder weights", "".join(server.lines)))
    assert set(told) == {"poet", "painter"}
    size = sum(file.stat().st_size for file in (ROOT / "src/fastvlm/weights/mini").glob("*.safetensors"))
    assert all(0 < in_bytes(text) < 2 * size for text in told.values())  # float32 here, half of it in the file
    page = server.client.get("/metrics").text
    assert 'fastvlm_slots{model="painter",replica="0"} 4.0' in page


def in_bytes(text):
    value, unit = text.split()
    return float(value) * 1000 ** ("B", "KB", "MB", "GB").index(unit)
