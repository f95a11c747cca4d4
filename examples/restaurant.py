"""What does he like, who walked past the doughnuts?

A walker passes a doughnut shop on the way to the vegetarian café. Put priors on what each kind of food is worth to
him, and condition on the walk: the posterior is what the walk says about his tastes. It also says what it cannot know:
the noodles, which he never came near.

A second walker goes by a doughnut shop that is nearer and ends in another one, farther along the road to the
café. To a consistent planner that is an odd thing to want. A naive hyperbolic discounter set out for the café and
was tempted on the way; so bias and tastes are inferred together.

After Evans, Stuhlmüller, Salvatier & Filan, "Modeling Agents with Probabilistic Programs", chapters 4 and 5.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference.models import restaurants
from rl_as_inference.models.restaurants import RESTAURANTS
from rl_as_inference.reasoning import hyperbolic_policy

LEFT, DOWN, RIGHT, UP = range(4)
TO_THE_CAFE = [UP, UP, LEFT, UP, UP, UP, RIGHT, UP]
TO_THE_FAR_DOUGHNUTS = [UP, UP, LEFT, UP, UP, LEFT]


def walk(actions: list[int]) -> tuple[Tensor, Tensor]:
    """Returns the states and actions of a walk from the start; the last state is where it ends."""
    town = restaurants(torch.zeros(3))
    state = int(town.initial_probabilities.argmax())
    states = [state]
    for action in actions:
        state = int(town.kernel.probabilities[state, action].argmax())
        states.append(state)
    return torch.tensor(states), torch.tensor(actions)


def tastes() -> Tensor:
    return pyro.sample("utility", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))


def consistent() -> Any:
    """A walker who plans well; what the food is worth to him is unknown."""
    return restaurants(tastes())


def any_walker() -> Any:
    """A walker who plans well, or discounts hyperbolically and does not know it, or does and knows it."""
    kind = pyro.sample("kind", dist.Categorical(torch.ones(3) / 3))
    town = restaurants(tastes(), temperature=0.03)
    k = (kind > 0).double()
    return town, hyperbolic_policy(town, k, sophisticated=bool(kind == 2))


def share_who_prefer(data: Any, one: str, other: str) -> str:
    """Returns a posterior probability with its Monte Carlo error, for draws that follow each other."""
    import arviz

    utility = data.posterior["utility"].values
    better = (utility[..., RESTAURANTS.index(one)] > utility[..., RESTAURANTS.index(other)]).astype(float)
    return f"{better.mean():.2f} ± {float(arviz.mcse(better)) if better.std() else 0:.2f}"


def draw(walks: dict[str, tuple[Tensor, Tensor]], draws: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    from rl_as_inference.style import BLUE, GREY, ORANGE, tidy

    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    town, *panels = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    layout = restaurants(torch.zeros(3)).layout
    assert layout is not None
    town.imshow(layout == "#", cmap="Greys", vmin=0, vmax=2.5)
    for row, column in zip(*((layout != "#") & (layout != ".")).nonzero(), strict=True):
        town.text(column, row, layout[row, column], ha="center", va="center", fontsize=11, weight="bold")
    for (name, (states, _)), color, shift in zip(walks.items(), (BLUE, ORANGE), (-0.12, 0.12), strict=True):
        town.plot(states % 8 + shift, states // 8 + shift, color=color, linewidth=2.5, label=name, alpha=0.8)
    town.set_xticks([])
    town.set_yticks([])
    town.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0))
    for ax, (name, data), color in zip(panels, draws.items(), (BLUE, ORANGE), strict=True):
        utility = data.posterior["utility"].values.reshape(-1, 3)
        parts = ax.violinplot(utility, showmedians=True, showextrema=False)
        for body in parts["bodies"]:
            body.set_color(color)
        parts["cmedians"].set_color(color)
        ax.axhline(0, color=GREY, linewidth=1, linestyle=":")
        ax.set_xticks([1, 2, 3], RESTAURANTS, fontsize=8)
        tidy(ax, "", "utility (reward units)", name)
        ax.set_ylim(-3.2, 3.2)
    figure.savefig(path, dpi=130)


def main(quick: bool = False, picture: Path | None = None) -> None:
    options = {"num_draws": 40, "num_chains": 1, "num_warmup": 12} if quick else {"num_draws": 1000}
    # A walk or two cannot say all: directions in which tastes stay at their prior are no news here.
    warnings.filterwarnings("ignore", message="the demonstrations say nothing")
    walks = {"to the café": walk(TO_THE_CAFE), "to the far doughnuts": walk(TO_THE_FAR_DOUGHNUTS)}
    first = rlai.infer_agent(consistent, [walks["to the café"]], **options, seed=0)
    utility = first.posterior["utility"].values.reshape(-1, 3)
    print("one walk to the café, past the doughnuts")
    for index, name in enumerate(RESTAURANTS):
        print(f"  {name:<11} utility {utility[:, index].mean():+.2f} ± {utility[:, index].std():.2f}")
    print(f"  P(vegetarian > doughnuts) = {share_who_prefer(first, 'vegetarian', 'doughnuts')}")
    print(f"  P(vegetarian > noodles)   = {share_who_prefer(first, 'vegetarian', 'noodles')}")

    second = rlai.infer_agent(any_walker, [walks["to the far doughnuts"]] * 2, **options, seed=0)
    chances = second.sample_stats["probability_kind"].values.mean((0, 1))
    print("two walks past the near doughnuts to the far ones")
    for name, chance in zip(("consistent", "naive", "sophisticated"), chances, strict=True):
        print(f"  P({name}) = {chance:.2f}")
    print(f"  P(vegetarian > doughnuts) = {share_who_prefer(second, 'vegetarian', 'doughnuts')}")
    if picture is not None:
        draw(walks, {"one walk to the café": first, "two to the far doughnuts": second}, picture)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("restaurant.png"))
