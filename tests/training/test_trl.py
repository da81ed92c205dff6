"""TRL's SFTTrainer takes our model as it is, with our samples."""

import json

import pytest
import torch
from trl import SFTConfig, SFTTrainer

import fastvlm
from fastvlm.training.data.collation import Collator
from fastvlm.training.data.dataset import SupervisedDataset
from fastvlm.training.data.samples import open_samples

# transformers 5.23 renames gradient to activation checkpointing; TRL asks by the old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def settings(folder, **own):
    """A short run on a CPU."""
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        max_length=None,
        save_strategy="no",
        **own,
    )


def test_sft_trainer_trains_our_model_on_our_samples(small_model, small_data, tmp_path):
    import datasets

    model, processor = fastvlm.load(small_model, device="cpu", dtype="float32")
    processor.padding_side = "right"
    samples = open_samples([small_data], images_in=small_data.parent)
    rows = SupervisedDataset(samples, processor, max_tokens=128)
    numbers = datasets.Dataset.from_dict({"row": list(range(len(rows)))})
    collate = Collator(processor.tokenizer.pad_token_id)
    arguments = settings(
        tmp_path,
        max_steps=6,
        learning_rate=1e-2,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    before = model.lm_head.weight.clone()
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=numbers,
        data_collator=lambda chosen: collate([rows[number["row"]] for number in chosen]),
        processing_class=processor,
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.2
    assert not torch.equal(before, model.lm_head.weight)


def test_sft_trainer_reads_messages_with_images(small_model, small_data, tmp_path):
    """TRL's own way to images: a column `images`, a column `messages`, its own collator, our processor."""
    import datasets
    from PIL import Image

    model, processor = fastvlm.load(small_model, device="cpu", dtype="float32")
    records = json.loads(small_data.read_text())[:8]
    rows = {"images": [], "messages": []}
    for record in records:
        question, answer = (turn["value"].removeprefix("<image>\n") for turn in record["conversations"])
        with Image.open(small_data.parent / record["image"][0]) as image:
            rows["images"].append([image.copy()])
        rows["messages"].append(
            [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
        )
    trainer = SFTTrainer(
        model=model,
        args=settings(tmp_path, max_steps=2, learning_rate=1e-3),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=processor,
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)
