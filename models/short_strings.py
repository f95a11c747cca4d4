"""A text of a few letters, written by a language model that is to be steered: KL-regularised control in small.

""  ──a──► "a" ──c──► "ac" ──end──► over        4 letters and an end, at most 6 letters:
 │                                              5,461 strings, one state each
 └──end──► over                                 each letter by the reference p(·|last letter)
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer
from rl_as_inference.processes import TabularMDP

__all__ = ["default_score", "short_strings", "strings"]

_LETTERS = "abcd"


def strings(max_length: int = 6, num_letters: int = 4) -> list[str]:
    """Returns all strings, the shorter first and then by letter: the states of :func:`short_strings`, in order.

    Example:
        >>> strings(2, 2)
        ['', 'a', 'b', 'aa', 'ab', 'ba', 'bb']
    """
    return list(_all_strings(max_length, _LETTERS[:num_letters]))


def default_score(text: str) -> float:
    """Returns what a finished string earns: 1 for every ``ab`` in it and 0.75 for every ``dc``, in reward units.

    Two ways of being good that get in each other's way: a policy of a small family has to choose one, or cover both.

    Example:
        >>> default_score("abab"), default_score("dcd"), default_score("aabdc")
        (2.0, 0.75, 1.75)
    """
    return text.count("ab") + 0.75 * text.count("dc")


@checked
def short_strings(
    max_length: int = 6,
    num_letters: int = 4,
    temperature: float | Tensor = 0.5,
    *,
    score: Callable[[str], float] = default_score,
    reference: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns the writing of a string as a deterministic finite process, with the reference as its action prior.

        states   every string so far, in the order of :func:`strings`, and one that is over
        actions  a letter, which is appended, or the end, the last one; after ``max_length`` letters the end alone
        r        score(string) at the end
        p(a|s)   reference(a | last letter of s): a Markov language model

    The posterior given optimality is the reference, tilted: ``p(x | O) ∝ p_ref(x) exp(score(x)/α)``. Dynamics are
    deterministic, so that the causal plan draws from it too. Fine-tuning a language model with a KL penalty aims at it.

    Source: Korbak, Perez & Buckley 2022, "RL with KL penalties is better viewed as Bayesian inference",
    arXiv:2205.11275.

    Args:
        max_length: of a string, ≥ 1.
        num_letters: 1 to 4.
        temperature: α > 0, in reward units per nat: what a nat of divergence from the reference costs.
        score: of a finished string, in reward units.
        reference: ``p(letter or end | last letter)``, rows for the beginning and each letter, ``(1 + L, L + 1)``; by
            default letters in alphabetical order are likelier to follow each other, and one in five strings ends.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range, or the reference has another shape.

    Example:
        >>> short_strings().num_states
        5462
    """
    check_integer("max_length", max_length, 1)
    check_integer("num_letters", num_letters, 1)
    if num_letters > len(_LETTERS):
        raise ValueError(f"num_letters must be <= {len(_LETTERS)}, got {num_letters}")
    letters, end = _LETTERS[:num_letters], num_letters
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    table = _reference(num_letters) if reference is None else torch.as_tensor(reference).cpu()
    if table.shape != (num_letters + 1, num_letters + 1):
        raise ValueError(
            f"reference must have shape {(num_letters + 1, num_letters + 1)}, a row for the beginning and each letter "
            f"with the end's probability last; got {tuple(table.shape)}"
        )
    texts = strings(max_length, num_letters)
    index = {text: i for i, text in enumerate(texts)}
    over = len(texts)
    last = torch.tensor([letters.index(text[-1]) + 1 if text else 0 for text in texts])
    full = torch.tensor([len(text) == max_length for text in texts])
    after = torch.tensor([[index.get(text + letter, over) for letter in letters] + [over] for text in texts])
    only_end = torch.nn.functional.one_hot(torch.tensor(end), num_letters + 1)
    prior = torch.where(full[:, None], only_end.to(table), table[last])
    reward = torch.zeros(over + 1, num_letters + 1, dtype=torch.float64)
    reward[:over, end] = torch.tensor([float(score(text)) for text in texts], dtype=torch.float64)
    states = torch.arange(over + 1)
    mdp = TabularMDP.from_successors(
        torch.cat([after, torch.full((1, num_letters + 1), over)])[..., None].to(device=device),
        torch.ones(over + 1, num_letters + 1, 1, **options),
        reward.to(**options),
        (states == 0).to(**options),
        horizon=max_length + 1,
        temperature=temperature,
        action_prior=torch.cat([prior, only_end.to(prior)[None]]).to(**options),
        terminal=(states == over).to(device=device),
    )
    mdp.name = "short_strings"
    return mdp


def _all_strings(max_length: int, letters: str) -> Iterator[str]:
    for length in range(max_length + 1):
        yield from map("".join, product(letters, repeat=length))


def _reference(num_letters: int) -> Tensor:
    """Returns a Markov model in which a letter is likely to be followed by itself or by its neighbours."""
    places = torch.arange(num_letters, dtype=torch.float64)
    near = torch.exp(-(places[:, None] - places).abs())
    rows = torch.cat([torch.ones(1, num_letters, dtype=torch.float64), near])
    rows = 0.8 * rows / rows.sum(-1, keepdim=True)
    return torch.cat([rows, torch.full((num_letters + 1, 1), 0.2, dtype=torch.float64)], -1)
