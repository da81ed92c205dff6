"""A step's loss: the model's own number, whatever the batch is cut into; a black row changes nothing."""

import pytest
import small_run
import torch

import fastvlm
from fastvlm.training.data.collation import Collator
from fastvlm.training.data.dataset import IGNORED, SupervisedDataset
from fastvlm.training.data.recipe_data import open_mixture
from fastvlm.training.run.arguments import training_arguments
from fastvlm.training.run.run_folder import RunFolder
from fastvlm.training.run.trainer import FastVlmTrainer, with_black_image


@pytest.fixture
def parts(small_model, small_data, tmp_path):
    """A trainer with its model and rows."""
    recipe = small_run.recipe(small_model, small_data)
    model, processor = fastvlm.load(small_model, device="cpu", dtype="float32")
    rows = SupervisedDataset(open_mixture(recipe.data), processor, max_tokens=128)
    arguments = training_arguments(recipe, tmp_path / "run", has_eval=False)
    trainer = FastVlmTrainer(model, arguments, recipe=recipe, files=RunFolder(tmp_path / "run"))
    return trainer, model, rows


def batch_of(rows, *numbers):
    return Collator(0)([rows[number] for number in numbers])


def test_the_loss_is_the_model_s_own(parts):
    trainer, model, rows = parts
    batch = batch_of(rows, 0, 5, 24, 26)  # images, two images, text alone
    model.eval()
    expected = model(**batch, use_cache=False).loss
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected)


def test_logits_are_made_only_where_something_is_learned(parts):
    trainer, model, rows = parts
    batch = batch_of(rows, 0, 1)
    _, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert outputs.logits.shape[0] == (batch["labels"] != IGNORED).sum() < batch["labels"].numel() / 2
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}, "the batch itself stays whole"


def test_parts_of_a_step_add_up_to_the_whole(parts):
    trainer, model, rows = parts
    whole = batch_of(rows, 0, 1, 2, 26)
    count = (whole["labels"] != IGNORED).sum()
    one = trainer.compute_loss(model, whole, num_items_in_batch=count)
    two = sum(
        trainer.compute_loss(model, batch_of(rows, *half), num_items_in_batch=count) for half in ((0, 1), (2, 26))
    )
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("numbers", [(25,), (25, 26, 27)])
def test_a_black_row_changes_no_loss_and_no_gradient_of_the_others(numbers, parts):
    trainer, model, rows = parts
    batch = batch_of(rows, *numbers)
    assert "pixel_values" not in batch
    model.requires_grad_(True)
    trainer.compute_loss(model, batch).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert not any("vision_tower" in name for name in before)
    model.zero_grad()
    longer = with_black_image(batch, model.config.image_token_index)
    trainer.compute_loss(model, longer).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, "every weight takes part"
        expected = before.get(name, torch.zeros_like(parameter))
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4, msg=name)


def test_statistics_stay_though_everything_is_switched_to_training(parts):
    trainer, model, rows = parts
    state = {name: t.clone() for name, t in model.named_buffers() if "running" in name}
    model.train()
    trainer.compute_loss(model, batch_of(rows, 0, 1))
    assert state and all(torch.equal(t, dict(model.named_buffers())[name]) for name, t in state.items())


def test_a_batch_without_anything_to_learn_is_no_nan(parts):
    trainer, model, rows = parts
    batch = batch_of(rows, 0)
    batch["labels"].fill_(IGNORED)
    loss = trainer.compute_loss(model, batch)
    assert loss.item() == 0 and loss.requires_grad
