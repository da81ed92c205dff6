"""The examples of transformers' FastVLM pages, with fastvlm's classes, a folder on this machine, and a local web.

The code between the rulers is theirs, line for line but for the import, the path and the URL:
https://huggingface.co/docs/transformers/model_doc/fast_vlm and the docstring of `FastVlmForConditionalGeneration`.
"""

import http.server
import io
import threading
from io import BytesIO

import httpx
import pytest
import tiny
import torch
from PIL import Image
from qwen2_format import small_tokenizer

from fastvlm import FastVlmForConditionalGeneration, FastVlmImageProcessor, FastVlmProcessor

IMAGES = {"/australia.jpg": (640, 480, "red"), "/000000039769.jpg": (300, 500, "pink")}


class Images(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        width, height, color = IMAGES[self.path]
        file = io.BytesIO()
        Image.new("RGB", (width, height), color).save(file, "JPEG")
        self.send_response(200)
        self.send_header("Content-Length", str(len(file.getvalue())))
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with random weights and a tokenizer of 324 tokens."""
    path = tmp_path_factory.mktemp("tiny-fastvlm")
    tokenizer = small_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>", "<image>")}
    config = tiny.config(
        text={
            "vocab_size": len(tokenizer),
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "bos_token_id": ids["<|endoftext|>"],
        }
    )
    config.image_token_index = ids["<image>"]
    tiny.loud(FastVlmForConditionalGeneration(config)).eval().save_pretrained(path)
    FastVlmProcessor(FastVlmImageProcessor(image_size=128), tokenizer).save_pretrained(path)
    return str(path)


def test_formatting_prompts(folder):
    # ----------------------------------------------------------------------------------------------------------
    processor = FastVlmProcessor.from_pretrained(folder)

    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "What's shown in this image?"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "This image shows a red stop sign."},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Describe the image in more details."},
            ],
        },
    ]

    text_prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    # ----------------------------------------------------------------------------------------------------------
    assert text_prompt == (  # without the page's extra newlines: as the model was trained
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhat's shown in this "
        "image?<|im_end|>\n<|im_start|>assistant\nThis image shows a red stop sign.<|im_end|>\n<|im_start|>user\n"
        "Describe the image in more details.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_single_input_inference(folder, web):
    # ----------------------------------------------------------------------------------------------------------
    # Load the model in half-precision
    model = FastVlmForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, device_map="auto")
    processor = FastVlmProcessor.from_pretrained(folder)

    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": f"{web}/australia.jpg"},
                {"type": "text", "text": "What is shown in this image?"},
            ],
        },
    ]

    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, torch.bfloat16)

    # Generate
    generate_ids = model.generate(**inputs, max_new_tokens=30)
    replies = processor.batch_decode(generate_ids, skip_special_tokens=True)
    # ----------------------------------------------------------------------------------------------------------
    assert inputs["pixel_values"].dtype == torch.bfloat16
    assert inputs["pixel_values"].shape == (1, 3, 128, 128)
    assert len(replies) == 1
    assert "What is shown in this image?" in replies[0]
    assert "<image>" not in replies[0]
    assert generate_ids.shape[1] > inputs["input_ids"].shape[1]


def test_batched_inference(folder, web):
    # ----------------------------------------------------------------------------------------------------------
    # Load the model in half-precision
    model = FastVlmForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, device_map="auto")
    processor = FastVlmProcessor.from_pretrained(folder)

    # Prepare a batch of two prompts
    conversation_1 = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": f"{web}/australia.jpg"},
                {"type": "text", "text": "What is shown in this image?"},
            ],
        },
    ]

    conversation_2 = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": f"{web}/000000039769.jpg"},
                {"type": "text", "text": "What is shown in this image? How many circles are there?"},
            ],
        },
    ]

    inputs = processor.apply_chat_template(
        [conversation_1, conversation_2],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        padding=True,
        return_tensors="pt",
    ).to(model.device, torch.bfloat16)

    # Generate
    generate_ids = model.generate(**inputs, max_new_tokens=30)
    replies = processor.batch_decode(generate_ids, skip_special_tokens=True)
    # ----------------------------------------------------------------------------------------------------------
    assert inputs["pixel_values"].shape == (2, 3, 128, 128)
    assert inputs["attention_mask"][0, 0] == 0  # the shorter prompt is padded on the left
    assert len(replies) == 2


def test_batched_replies_equal_single_ones(folder, web):
    """In float32, greedy: what the batch says is what each prompt gets alone."""
    model = FastVlmForConditionalGeneration.from_pretrained(folder)
    processor = FastVlmProcessor.from_pretrained(folder)
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    *({"type": "image", "url": f"{web}{path}"} for path in paths),
                    {"type": "text", "text": text},
                ],
            }
        ]
        for paths, text in (
            (["/australia.jpg"], "What is shown?"),
            (["/000000039769.jpg", "/australia.jpg"], "How many circles are there in this image?"),
            ([], "You are a helpful assistant"),
        )
    ]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    generation = {"max_new_tokens": 12, "do_sample": False}
    together = processor.apply_chat_template(conversations, padding=True, **options)
    replies = model.generate(**together, **generation)[:, together["input_ids"].shape[1] :]
    for index, conversation in enumerate(conversations):
        inputs = processor.apply_chat_template(conversation, **options)
        alone = model.generate(**inputs, **generation)[0, inputs["input_ids"].shape[1] :].tolist()
        assert replies[index, : len(alone)].tolist() == alone


def test_the_docstring_example(folder, web):
    """The docstring puts the text before the image; it goes to the front, here as in transformers."""
    # ----------------------------------------------------------------------------------------------------------
    device = "cuda" if torch.cuda.is_available() else "cpu"

    model = FastVlmForConditionalGeneration.from_pretrained(folder).to(device)
    processor = FastVlmProcessor.from_pretrained(folder)

    conversation = [{"role": "user", "content": [{"type": "text", "text": "What are these?"}, {"type": "image"}]}]

    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    url = f"{web}/australia.jpg"
    with httpx.stream("GET", url) as response:
        image = Image.open(BytesIO(response.read()))

    inputs = processor(images=image, text=prompt, return_tensors="pt").to(device)

    # Generate
    generated_ids = model.generate(**inputs, max_new_tokens=15)
    replies = processor.batch_decode(generated_ids, skip_special_tokens=True)[0]
    # ----------------------------------------------------------------------------------------------------------
    assert "user\n<image>\nWhat are these?<|im_end|>" in prompt
    assert "What are these?" in replies
