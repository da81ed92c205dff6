"""Muon's steps are orthogonal matrices of a fixed size, and they go downhill."""

from __future__ import annotations

import pytest
import torch
from recipes.mini.muon import RMS_OF_ADAMW, Muon, orthogonal


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 20), (20, 5)])
def test_rows_or_columns_become_orthonormal(rows: int, columns: int) -> None:
    matrices = orthogonal(torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0)))
    singular = torch.linalg.svdvals(matrices)
    assert matrices.shape == (3, rows, columns)
    assert float(singular.min()) > 0.5
    assert float(singular.max()) < 1.3


def test_a_step_is_as_large_as_adamw_s() -> None:
    weight = torch.nn.Parameter(torch.zeros(16, 64))
    weight.grad = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.1, weight_decay=0.0).step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(RMS_OF_ADAMW * 0.1, rel=0.25)


def test_it_finds_a_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    target, inputs = torch.randn(12, 6, generator=generator), torch.randn(64, 6, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(12, 6))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss = (inputs @ (weight - target).T).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_parameters_without_a_gradient_stay_and_the_state_goes_on() -> None:
    still, moved = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    first = Muon([still, moved], lr=0.1)
    moved.grad = torch.eye(4)
    first.step()
    assert torch.equal(still.detach(), torch.ones(4, 4))
    second = Muon([still, moved], lr=0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[moved]["momentum"], first.state[moved]["momentum"])
