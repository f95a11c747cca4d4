"""Short strings: the tilted reference by enumerating all of them, and best-of-n by drawing."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.models.short_strings import default_score, short_strings, strings

F64 = torch.float64


def example() -> Any:
    path = Path(__file__).parents[2] / "examples" / "short_strings.py"
    spec = importlib.util.spec_from_file_location("example_of_short_strings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(mdp: rlai.TabularMDP, texts: list[str], max_length: int, letters: str) -> Tensor:
    """The reference's probability of every string, letter by letter, from the rows of the action prior."""
    found = []
    for text in texts:
        chance = 1.0
        for k, letter in enumerate(text):
            chance *= float(mdp.action_prior[texts.index(text[:k]), letters.index(letter)])
        if len(text) < max_length:
            chance *= float(mdp.action_prior[texts.index(text), len(letters)])
        found.append(chance)
    return torch.tensor(found, dtype=F64)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_tilted_reference(temperature: float) -> None:
    """p_ref(x) e^{r(x)/α} / Z over all 40 strings, against the exact plan's and the posterior's, letter by letter."""
    mdp = short_strings(3, 3, temperature, dtype=F64)
    texts = strings(3, 3)
    assert len(texts) == mdp.num_states - 1 == 40
    reference = by_hand(mdp, texts, 3, "abc")
    assert float(reference.sum()) == pytest.approx(1, abs=1e-12)
    scores = torch.tensor([default_score(text) for text in texts], dtype=F64)
    weights = reference * (scores / temperature).exp()
    for dynamics in ("causal", "posterior"):
        plan = exact.plan(mdp, dynamics)
        assert float(plan.objective) == pytest.approx(math.log(float(weights.sum())), abs=1e-12)
        table = plan.policy
        for text, weight in zip(texts, weights, strict=True):
            chance = 1.0
            for k, letter in enumerate(text):
                chance *= float(table[k, texts.index(text[:k]), "abc".index(letter)])
            chance *= float(table[len(text), texts.index(text), 3])
            assert chance == pytest.approx(float(weight / weights.sum()), abs=1e-9)


def test_all_strings_of_the_default() -> None:
    """5,461 strings, by the example's own enumeration, to 1e-9; a rollout's strings are those of the tables."""
    module, mdp = example(), short_strings(dtype=F64)
    reference = module.chain(mdp, mdp.action_prior.log())
    assert float(reference.exp().sum()) == pytest.approx(1, abs=1e-9)
    scores = torch.tensor([default_score(text) for text in strings()], dtype=F64)
    tilted = (reference + scores / 0.5).log_softmax(0)
    assert float((module.chain(mdp, exact.plan(mdp).log_policy).exp() - tilted.exp()).abs().max()) < 1e-9
    torch.manual_seed(0)
    draws = mdp.rollout(None, 500)
    last = draws.states.gather(0, draws.lengths()[None] - 1)[0]
    for n in range(500):
        assert float(draws.returns()[n]) == default_score(strings()[int(last[n])])
        length = int(draws.lengths()[n])
        assert len(strings()[int(last[n])]) == length - 1


def test_best_of_n_by_drawing() -> None:
    """Exact formula against 100,000 bests of 4, seed 0: mean score, and the largest share of a string."""
    module, mdp = example(), short_strings(dtype=F64)
    reference, scores = module.chain(mdp, mdp.action_prior.log()), mdp.reward_table[:-1, -1]
    formula = module.best_of(4, reference, scores).exp()
    assert float(formula.sum()) == pytest.approx(1, abs=1e-9)
    assert torch.allclose(module.best_of(1, reference, scores), reference)
    torch.manual_seed(0)
    draws = torch.distributions.Categorical(logits=reference).sample((100_000, 4))
    best = draws.gather(1, scores[draws].argmax(1, keepdim=True)).squeeze(1)
    spread = float(scores[best].std()) / math.sqrt(100_000)
    assert abs(float(scores[best].mean() - formula @ scores)) < 4 * spread
    shares = torch.bincount(best, minlength=len(formula)) / 100_000
    likely = formula > 1e-3
    z = (shares - formula)[likely] / (formula * (1 - formula) / 100_000).sqrt()[likely]
    assert float(z.abs().max()) < 4.5


def test_a_reference_of_ones_own() -> None:
    table = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]])
    mdp = short_strings(2, 2, reference=table, score=len)
    texts = strings(2, 2)
    assert mdp.action_prior[texts.index("b")].tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert mdp.action_prior[texts.index("ab")].tolist() == [0.0, 0.0, 1.0]
    assert mdp.reward_table[texts.index("ab"), 2] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 0}, "max_length must be an integer >= 1"),
        ({"num_letters": 5}, "num_letters must be <= 4"),
        ({"reference": torch.ones(2, 2)}, "reference must have shape \\(5, 5\\)"),
        ({"reference": torch.ones(5, 5)}, "action_prior"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0"),
    ],
)
def test_bad_input(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        short_strings(**options)
