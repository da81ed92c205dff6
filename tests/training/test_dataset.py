"""What is trained on is what the processor makes of a conversation; learned are the replies and their end tokens."""

import pickle
import re
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_files import N, gray, levels, llava, processor, save_images, write_lines

from fastvlm.errors import ConfigError, DataError, UsageError
from fastvlm.processing.prompt import SPECIAL_TOKENS
from fastvlm.training.data import dataset as dataset_module
from fastvlm.training.data.collation import Collator
from fastvlm.training.data.dataset import IGNORED, SupervisedDataset
from fastvlm.training.data.messages import read_record
from fastvlm.training.data.samples import Sample, open_samples

PROCESSOR = processor()
HERE = Path()


def dataset(*samples, max_tokens=10_000, **options):
    return SupervisedDataset(samples, PROCESSOR, max_tokens=max_tokens, **options)


def sample(record, *images, origin="x.jsonl:1"):
    messages, sources = read_record(record, HERE)
    return Sample(messages, images or sources, origin)


def decode(ids):
    return PROCESSOR.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def replies(row):
    """Texts of the supervised stretches, and where each begins."""
    starts, texts, current = [], [], []
    for position, (token, label) in enumerate(zip(row["input_ids"].tolist(), row["labels"].tolist(), strict=True)):
        assert label in {token, IGNORED}
        if label == IGNORED:
            current = []
            continue
        if not current:
            starts.append(position)
            texts.append(current)
        current.append(token)
    return [decode(text) for text in texts], starts


# Any text, and marks that a careless search for replies would fall for.
TEXTS = st.lists(
    st.text(max_size=8)
    | st.sampled_from(["assistant\n", "<|im_end", "|im_start|>", "\n", " \n", "\r\n", "user", "<", "image>", "\u0301"]),
    max_size=4,
).map("".join)
USERS = st.lists(st.just("<image>") | TEXTS, min_size=1, max_size=4).map(" ".join)
TURNS = st.lists(st.tuples(USERS, TEXTS.filter(str.strip)), min_size=1, max_size=3)


@given(turns=TURNS, system=st.none() | TEXTS)
def test_ids_are_the_processors_and_labels_the_replies(turns, system):
    record = llava(*[text for turn in turns for text in turn])
    if system is not None:
        record["conversations"].insert(0, {"from": "system", "value": system})
    count = sum(user.count("<image>") for user, _ in turns)
    images = [gray(level) for level in range(1, count + 1)]
    texts = [*(user.replace("<image>", "") for user, _ in turns), *(reply for _, reply in turns), system or ""]
    if any(mark in text for text in texts for mark in SPECIAL_TOKENS):
        return  # put together by chance, and refused
    one = sample({**record, "images": images})
    row = dataset(one)[0]

    text = PROCESSOR.apply_chat_template(one.messages)
    expected = PROCESSOR(images=[images] if images else None, text=[text], return_tensors="pt")
    assert torch.equal(row["input_ids"], expected["input_ids"][0])
    assert ("pixel_values" in row) == bool(count) and levels(row) == list(range(1, count + 1))

    said = [re.sub(r"\A\s*[\r\n]+", "", reply) for _, reply in turns]
    found, starts = replies(row)
    assert found == [unicodedata.normalize("NFC", reply) + "<|im_end|>" for reply in said]

    assistants = [index for index, message in enumerate(one.messages) if message["role"] == "assistant"]
    for index, start in zip(assistants, starts, strict=True):
        asked = one.messages[:index]
        places = sum(item["type"] == "image" for message in asked for item in message["content"])
        prompt = PROCESSOR(
            images=[images[:places]] if places else None,
            text=[PROCESSOR.apply_chat_template(asked, add_generation_prompt=True)],
        )
        assert row["input_ids"][:start].tolist() == prompt["input_ids"][0]


@pytest.mark.parametrize("mark", SPECIAL_TOKENS)
def test_a_mark_in_a_text_is_refused_and_opens_nothing(mark):
    turns = [{"role": "user", "content": f"Hi\n{mark}assistant\nMine"}, {"role": "assistant", "content": "Ho"}]
    with pytest.raises(DataError, match=r"^x.jsonl:7: .*which the model reads as a mark"):
        dataset(Sample(turns, (), "x.jsonl:7"))[0]


def test_a_reply_that_begins_with_a_blank_line_is_refused():
    """Readers take blank lines away; whoever makes samples by hand is told."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\nHo"}]
    with pytest.raises(DataError, match="0 of its 1 replies follow the prompt's own tokens"):
        dataset(Sample(turns, (), "x"))[0]


def test_a_template_whose_replies_do_not_follow_the_prompt_is_refused():
    theirs = processor(chat_template="transformers")
    with pytest.raises(ConfigError, match="chat_template='default'"):
        SupervisedDataset([], theirs, max_tokens=10)
    with pytest.raises(ConfigError, match="nothing can be supervised"):
        SupervisedDataset([], processor(chat_template="{{ messages[0]['role'] }}"), max_tokens=10)
    with pytest.raises(UsageError, match="max_tokens is 0"):
        dataset(max_tokens=0)


def test_images_and_places_are_counted():
    one = sample(llava("<image>\nWhat?", "A.", image="x.png"))
    with pytest.raises(DataError, match=r"1 place\(s\) for images and 2 image\(s\)"):
        dataset(Sample(one.messages, (gray(1), gray(2)), "x"))[0]


def test_the_size_of_images_sets_the_placeholders():
    one = sample(llava("<image>\nWhat?", "A.", image=gray(5)))
    small, large = dataset(one)[0], dataset(one, image_size=256)[0]
    wide = dataset(one, image_size=(64, 128))[0]
    assert large["pixel_values"].shape == (1, 3, 256, 256) and wide["pixel_values"].shape == (1, 3, 64, 128)
    assert len(large["input_ids"]) - len(small["input_ids"]) == 16 - N
    assert len(small["input_ids"]) - len(wide["input_ids"]) == N - 2


def test_a_missing_or_damaged_image_is_told_with_its_path(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    path = write_lines(tmp_path / "x.jsonl", *[llava("<image>", "A.", image=name) for name in ("gone.png", "bad.png")])
    rows = SupervisedDataset(open_samples([path]), PROCESSOR, max_tokens=100)
    with pytest.raises(DataError, match=f"^{path}:1: image 1: there is no file {tmp_path}/gone.png"):
        rows[0]
    with pytest.raises(DataError, match=f"^{path}:2: .*is not an image that can be opened"):
        rows[1]


# ---------------------------------------------------------------------------------------------- long samples


TWO = llava("Look:\n<image>\nWhat?", "One.", "And here: <image>", "Two.")


def two_images():
    return sample({**TWO, "images": [gray(1), gray(2)]})


@pytest.mark.parametrize("max_tokens", range(1, 110))
def test_a_long_sample_is_cut_at_its_end_never_inside_an_image(max_tokens):
    one = two_images()
    whole = dataset(one)[0]
    ids, labels = whole["input_ids"].tolist(), whole["labels"].tolist()
    rows = dataset(one, max_tokens=max_tokens)
    image_id = PROCESSOR.image_token_id
    first = ids.index(image_id)
    second = ids.index(image_id, first + N)
    end = min(max_tokens, len(ids))
    for start in (first, second):
        end = start if start < end < start + N else end
    if all(label == IGNORED for label in labels[:end]):
        with pytest.raises(DataError, match=rf"^x.jsonl:1: it has {len(ids)} tokens, and none.*Raise max_tokens"):
            rows[0]
        with pytest.raises(DataError, match=r"^x.jsonl:1: .*--set max_tokens=N"):
            rows.lengths()
        return
    row = rows[0]
    assert row["input_ids"].tolist() == ids[:end] and row["labels"].tolist() == labels[:end]
    assert levels(row) == [1, 2][: ids[:end].count(image_id) // N]
    assert list(rows.lengths()) == [end]


# ---------------------------------------------------------------------------------------------- lengths, workers


def mixed(tmp_path, count):
    save_images(tmp_path, 1, 2)
    records = [
        [llava("Hi" * n, "Ho"), llava("<image>\n" + "What? " * n, "A.", image="1.png"), llava("A", "B" * n)][n % 3]
        for n in range(1, count + 1)
    ]
    return open_samples([write_lines(tmp_path / "x.jsonl", *records)])


def test_lengths_are_those_of_the_rows_and_open_no_image(tmp_path):
    samples = mixed(tmp_path, 40)
    rows = SupervisedDataset(samples, PROCESSOR, max_tokens=10_000)
    expected = [len(row["input_ids"]) for row in (rows[index] for index in range(40))]
    (tmp_path / "1.png").unlink()
    assert list(rows.lengths()) == expected


def test_processes_find_the_same_lengths(tmp_path, monkeypatch):
    samples = mixed(tmp_path, 40)
    alone = list(SupervisedDataset(samples, PROCESSOR, max_tokens=10_000).lengths())
    for name, value in (("CHUNK", 7), ("PARALLEL_FROM_CHUNKS", 2)):
        monkeypatch.setattr(dataset_module, name, value)
    monkeypatch.setattr(torch.utils.data.DataLoader, "multiprocessing_context", "fork")
    assert list(SupervisedDataset(samples, PROCESSOR, max_tokens=10_000).lengths(workers=2)) == alone


def test_lengths_are_remembered(tmp_path, monkeypatch):
    rows = SupervisedDataset(mixed(tmp_path, 5), PROCESSOR, max_tokens=10_000)
    rows.lengths()
    (tmp_path / "x.jsonl").unlink()
    assert len(rows.lengths()) == 5


def test_the_first_bad_sample_stops_lengths(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", llava("Hi", "Ho"), llava("Hi"), "{")
    rows = SupervisedDataset(open_samples([path]), PROCESSOR, max_tokens=100)
    with pytest.raises(DataError, match=f"^{path}:2: it has no assistant's turn"):
        rows.lengths()
    with pytest.raises(DataError, match=f"^{path}:3: it is not valid JSON"):
        rows[2]


def as_one_batch(rows):
    return Collator()([rows[index] for index in range(len(rows))])


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    assert all(torch.equal(batch[name], other[name]) for name in other)


def test_workers_make_the_same_batches(tmp_path):
    rows = SupervisedDataset(mixed(tmp_path, 6), PROCESSOR, max_tokens=100)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=6, num_workers=2, collate_fn=Collator(), multiprocessing_context="fork"
    )
    [batch] = list(loader)
    assert_same(batch, as_one_batch(rows))


def test_a_dataset_can_be_pickled(tmp_path):
    """As it is for a worker that is started anew."""
    rows = SupervisedDataset(mixed(tmp_path, 6), PROCESSOR, max_tokens=100)
    assert_same(as_one_batch(pickle.loads(pickle.dumps(rows))), as_one_batch(rows))


def test_what_is_bad_is_told_through_workers(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", llava("Hi"))
    rows = SupervisedDataset(open_samples([path]), PROCESSOR, max_tokens=100)
    loader = torch.utils.data.DataLoader(rows, num_workers=1, collate_fn=Collator(), multiprocessing_context="fork")
    with pytest.raises(DataError, match=f"{path}:1: it has no assistant's turn"):
        list(loader)
