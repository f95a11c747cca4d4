"""Categorical critics: projection, the least of several, and the cross entropy, against loops in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from rl_as_inference.objectives.categorical_critics import (
    categorical_critic_loss,
    categorical_projection,
    least_distribution,
)

F64 = torch.float64
SUPPORT = torch.linspace(-2.0, 2.0, 9, dtype=F64)


def masses(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64).softmax(-1)


def by_hand(positions, probabilities):
    """Bellemare et al.'s algorithm 1, one mass after the other."""
    found = [0.0] * len(SUPPORT)
    for position, probability in zip(positions, probabilities, strict=True):
        place = (min(max(position, -2.0), 2.0) + 2.0) / 0.5
        below, above = math.floor(place), math.ceil(place)
        if below == above:
            found[below] += probability
        else:
            found[below] += probability * (above - place)
            found[above] += probability * (place - below)
    return found


def test_every_atom_gets_what_it_is_due():
    """Masses between atoms, on them and past both ends: every atom to 1e-14 of a loop."""
    positions = 2 * torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(1), dtype=F64)
    positions[0, 0, :9] = SUPPORT
    probabilities = masses(4, 3, 20)
    found = categorical_projection(positions, probabilities, SUPPORT)
    rows = zip(positions.reshape(-1, 20).tolist(), probabilities.reshape(-1, 20).tolist(), strict=True)
    expected = torch.tensor([by_hand(*row) for row in rows], dtype=F64).view(4, 3, 9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 3, dtype=F64), rtol=0, atol=1e-14)


def test_the_mean_stays_where_all_mass_is_in_range():
    generator = torch.Generator().manual_seed(2)
    positions, probabilities = 4 * torch.rand(50, 7, generator=generator, dtype=F64) - 2, masses(50, 7)
    means = (categorical_projection(positions, probabilities, SUPPORT) * SUPPORT).sum(-1)
    torch.testing.assert_close(means, (probabilities * positions).sum(-1), rtol=0, atol=1e-14)


def test_a_distribution_on_the_atoms_is_its_own_projection():
    probabilities = masses(5, 9)
    found = categorical_projection(SUPPORT.expand(5, 9), probabilities, SUPPORT)
    torch.testing.assert_close(found, probabilities, rtol=0, atol=1e-14)


def test_the_least_distribution_is_that_of_the_least_mean():
    probabilities = masses(3, 4, 2, 9)
    found = least_distribution(probabilities, SUPPORT)
    for i in range(4):
        for j in range(2):
            means = [float((probabilities[k, i, j] * SUPPORT).sum()) for k in range(3)]
            assert torch.equal(found[i, j], probabilities[means.index(min(means)), i, j])


def test_the_loss_is_the_cross_entropy_and_its_gradient_that_of_each_critic_alone():
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(3), dtype=F64).requires_grad_()
    target = masses(5, 9).requires_grad_()
    loss = categorical_critic_loss(logits, target)
    expected = sum(F.cross_entropy(each, target.detach()) for each in logits)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    weight = torch.arange(5, dtype=F64)
    each = [F.cross_entropy(one, target.detach(), reduction="none") for one in logits]
    weighted = categorical_critic_loss(logits, target, weight)
    torch.testing.assert_close(weighted, sum((weight * one).mean() for one in each), rtol=1e-14, atol=0)
    gradient, none = torch.autograd.grad(loss, (logits, target), allow_unused=True)
    assert none is None
    # softmax less target, over the batch: never longer than √2 a row, whatever the error
    torch.testing.assert_close(gradient, (logits.softmax(-1) - target).detach() / 5, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: categorical_projection(torch.zeros(2, 3), torch.zeros(3), SUPPORT), "probabilities must have the"),
        (lambda: categorical_projection(torch.zeros(3), torch.zeros(3), SUPPORT[:1]), "support must be at least two"),
        (lambda: categorical_critic_loss(torch.zeros(2, 5, 9), torch.zeros(4, 9)), "logits must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
