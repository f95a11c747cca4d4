"""Every reading of random small programs against plain Python that writes out every run; the benchmark is longer."""

import math

import pytest

from benchmarks.random_programs import Recipe, brute_force, draw, readings

NUM_PROGRAMS, PER_TEST = 40, 8


@pytest.mark.parametrize("first", range(0, NUM_PROGRAMS, PER_TEST))
def test_every_reading_has_one_meaning(first):
    """Seeds 0 … 39; exact readings to 1e-9, others of 300 trajectories (30 of programs that break), |z| < 5.5."""
    found = []
    for seed in range(first, first + PER_TEST):
        found += [(draw(seed), reading) for reading in readings(draw(seed), 300, 30, thorough=False)]
    assert len(found) > 5 * PER_TEST
    assert not [(recipe, reading, reading.z) for recipe, reading in found if not reading.holds]


def test_the_seeds_cover_what_programs_are_made_of():
    recipes = [draw(seed) for seed in range(NUM_PROGRAMS)]
    for part in ("ends", "breaks", "in_plate", "masked", "gamma_is_tensor", "given", "looks"):
        assert 4 <= sum(bool(getattr(recipe, part)) for recipe in recipes) < NUM_PROGRAMS
    assert {recipe.look_by for recipe in recipes if recipe.looks} == {"obs", "condition"}
    assert {recipe.rendering for recipe in recipes if recipe.gamma < 1} == {"scaled", "survival"}


def test_plain_python_by_hand():
    """One state in effect, two steps at γ = ½, a look of probability 0.1 after every action, no reward."""
    recipe = Recipe(
        **{
            **draw(0).__dict__,
            "horizon": 2,
            "gamma": 0.5,
            "ends": False,
            "breaks": False,
            "looks": ("after",),
            "in_plate": False,
            "masked": False,
            "scale": 1.0,
            "given": (),
            "prior": ((0.5, 0.5),) * 2,
            "policy": (((0.5, 0.5),) * 2,) * 2,
            "payoff": ((0.0, 0.0),) * 2,
            "seen": (((0.1, 0.1),) * 2,) * 2,
        }
    )
    found = brute_force(recipe)
    assert found.elbo == pytest.approx(1.5 * math.log(0.1), abs=1e-12)
    assert found.log_evidence == pytest.approx(math.log(0.1 * (0.5 + 0.5 * 0.1)), abs=1e-12)
    assert found.scaled_variance == pytest.approx(0, abs=1e-12)
    assert found.survival_variance == pytest.approx(0.25 * math.log(0.1) ** 2, abs=1e-12)
