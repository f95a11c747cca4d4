"""Draws by the inverse of cumulative probabilities: counted and searched, bit for bit the same."""

import pytest
import torch

import rl_as_inference as rlai
from rl_as_inference.checks import deferred
from rl_as_inference.processes.inversion import Inversion, Sampler, cumulated, invert
from tests.problems import random_mdp

F32, F64 = torch.float32, torch.float64


def _rows(num_rows: int, num_outcomes: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns cumulative probabilities, of which every third outcome is impossible, but for the last."""
    generator = torch.Generator().manual_seed(num_outcomes)
    probabilities = torch.rand(num_rows, num_outcomes, generator=generator, dtype=dtype) ** 4
    probabilities[:, :-1:3] = 0.0
    sums = probabilities.cumsum(-1)
    return sums / sums[:, -1:]


@pytest.mark.parametrize("num_outcomes", [1, 2, 3, 4, 15, 16, 17, 40])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_few_outcomes_are_counted_as_many_are_searched(num_outcomes: int, dtype: torch.dtype) -> None:
    """At 0, at the largest number below 1, on every edge, just below and above, and at 4,000 uniform numbers."""
    rows = _rows(7, num_outcomes, dtype)
    generator = torch.Generator().manual_seed(1)
    edges = rows.flatten()
    uniform = torch.cat(
        [
            torch.tensor([0.0, 1 - torch.finfo(dtype).eps / 2], dtype=dtype).repeat_interleave(7),
            *(edges, torch.nextafter(edges, edges.new_zeros(())), torch.nextafter(edges, edges.new_ones(()))),
            torch.rand(4000, generator=generator, dtype=dtype),
        ]
    )
    uniform = uniform[uniform < 1]
    row = torch.randint(7, uniform.shape, generator=generator)
    expected = invert(rows[row], uniform[:, None])
    inversion, out = Inversion.of(rows), torch.empty_like(row)
    assert torch.equal(inversion(row, uniform), expected)
    assert inversion(row, uniform, out) is out
    assert torch.equal(out, expected)
    assert not (torch.diff(rows, prepend=rows.new_zeros(7, 1))[row, expected] == 0).any()  # nothing impossible
    of_steps = Inversion.of_steps(torch.stack([rows.flip(0), rows]))
    assert torch.equal(of_steps[1](row, uniform), expected)
    assert torch.equal(of_steps[0](6 - row, uniform), expected)


@pytest.mark.filterwarnings("ignore:reward of tabular:UserWarning")
@pytest.mark.parametrize("num_actions", [3, 20])
@pytest.mark.parametrize("num_trajectories", [5, 3000])
@pytest.mark.parametrize("on_successor", [False, True])
def test_rollouts_are_zero_behind_the_end_and_learn_before_it(
    num_actions: int, num_trajectories: int, on_successor: bool
) -> None:
    """Rewards and prior, which are learned here, of terminal states count for nothing, whichever way is looked up.

    Five trajectories of ten steps have fewer places than a table of 20 actions has entries, 3,000 have more.
    """
    base = random_mdp(
        3, num_states=5, num_actions=num_actions, horizon=10, terminal=True, reward_on_successor=on_successor
    )
    reward, prior = base.reward_table.clone().requires_grad_(), base.action_prior.clone().requires_grad_()
    mdp = rlai.TabularMDP(
        base.kernel.probabilities,
        reward,
        initial=base.initial_probabilities,
        terminal=base.terminal,
        action_prior=prior / prior.detach().sum(-1, keepdim=True),
        horizon=10,
        discount=0.9,
        temperature=0.5,
    )
    policy = rlai.guides.TabularPolicy(5, num_actions, horizon=10).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(policy.logits)
    draws = mdp.rollout(policy, num_trajectories)
    ended = mdp.terminal[draws.states[:-1]]
    assert ended.any()
    assert torch.equal(draws.mask, ~ended)
    assert (reward[mdp.terminal] != 0).any()
    log_policy = torch.stack(
        [policy(s, t).log_prob(a) for t, (s, a) in enumerate(zip(draws.states[:-1], draws.actions, strict=True))]
    )
    where = (draws.states[:-1], draws.actions, draws.states[1:])[: reward.dim()]
    expected = {
        "rewards": reward[where],
        "log_prior": mdp.action_prior[draws.states[:-1], draws.actions].log(),
        "log_policy": log_policy,
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(draws, name), torch.where(ended, 0.0, values), msg=name)
    own = torch.autograd.grad(draws.terms().sum(), (reward, prior, policy.logits), retain_graph=True)
    terms = 0.9 ** torch.arange(10, dtype=F64)[:, None] * torch.where(
        ended, 0.0, expected["rewards"] / 0.5 + expected["log_prior"] - expected["log_policy"]
    )
    for mine, plain in zip(own, torch.autograd.grad(terms.sum(), (reward, prior, policy.logits)), strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize("kind", ["alike", "sure", "own", "many", "large"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_samplers_find_what_a_search_of_each_row_finds(kind: str, dtype: torch.dtype) -> None:
    """Rows that change at common numbers, also some that change at fewer, and rows that each have their own."""
    generator = torch.Generator().manual_seed(2)
    probabilities = torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=dtype).repeat(2334, 1)
    if kind == "sure":
        probabilities = torch.eye(3, dtype=dtype).repeat(2334, 1)
    elif kind == "own":  # one that is like no other
        probabilities[5001] = torch.tensor([0.125, 0.375, 0.5], dtype=dtype)
    elif kind == "many":
        probabilities = torch.rand(7002, 3, generator=generator, dtype=dtype)
        probabilities /= probabilities.sum(-1, keepdim=True)
    elif kind == "large":
        probabilities = probabilities.repeat(10, 1)
    indices = torch.randint(50, probabilities.shape, generator=generator)
    sampler = Sampler(indices, probabilities)
    assert (sampler._edges is None) == (kind in ("many", "large"))
    cumulative = cumulated(probabilities.log())
    uniform = torch.rand(35, 2000, generator=generator, dtype=dtype)
    edges = torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=dtype)
    uniform[0, :12] = torch.cat([edges, torch.nextafter(edges, edges + 1), torch.nextafter(edges, edges.new_zeros(4))])
    row = torch.randint(7002, uniform.shape, generator=generator)
    row[0, 100:200] = 5001
    out = torch.empty_like(row)
    for t, successor in enumerate(sampler.along(uniform)):
        expected = indices[row[t], invert(cumulative[row[t]], uniform[t][:, None])]
        assert torch.equal(successor(row[t], out[t]), expected)
        assert torch.equal(out[t], expected)
        assert torch.equal(sampler(row[t], uniform[t]), expected)
    assert t == 34
    every = Sampler(None, probabilities)  # whose outcomes are the states themselves
    assert torch.equal(every(row[3], uniform[3]), invert(cumulative[row[3]], uniform[3][:, None]))


def test_many_tables_draw_at_once() -> None:
    """Under ``vmap`` no value may be looked at: no common numbers are looked for."""
    indices = torch.tensor([[[0, 1]], [[1, 2]], [[2, 0]]])
    slips, state = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.arange(3)

    def successors(probabilities: torch.Tensor) -> torch.Tensor:
        with deferred():
            mdp = rlai.TabularMDP.from_successors(
                indices, probabilities.expand(3, 1, 2), torch.zeros(3, 1), torch.ones(3) / 3, horizon=2
            )
            return mdp.next_state(state, torch.zeros_like(state))

    drawn = torch.func.vmap(successors, randomness="different")(slips)
    assert drawn.tolist() == [[1, 2, 0], [0, 1, 2]]


def test_cumulated_ends_in_one() -> None:
    assert (cumulated(torch.randn(1000, 7).log_softmax(-1))[:, -1] == 1).all()
