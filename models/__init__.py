"""Reinforcement-learning problems written as generative models, one problem a file.

Each name is a function whose arguments all have defaults. It returns a process, or a Pyro program
without arguments. :mod:`~rl_as_inference.models.families` has some of them with unknowns.
"""

from rl_as_inference.models import families as families
from rl_as_inference.models.bandit import bandit
from rl_as_inference.models.cliff import cliff
from rl_as_inference.models.corridor import corridor
from rl_as_inference.models.crying_baby import crying_baby
from rl_as_inference.models.deep_sea import deep_sea
from rl_as_inference.models.double_integrator import double_integrator
from rl_as_inference.models.food_truck import food_truck
from rl_as_inference.models.frozen_lake import frozen_lake
from rl_as_inference.models.gridworld import gridworld
from rl_as_inference.models.hidden_goal import hidden_goal
from rl_as_inference.models.light_dark import light_dark
from rl_as_inference.models.light_dark_linear import light_dark_linear
from rl_as_inference.models.machine_wear import machine_wear
from rl_as_inference.models.pendulum import pendulum
from rl_as_inference.models.point_mass import point_mass
from rl_as_inference.models.procrastination import procrastination
from rl_as_inference.models.random_mdp import random_mdp
from rl_as_inference.models.restaurants import restaurants
from rl_as_inference.models.river_swim import river_swim
from rl_as_inference.models.short_strings import short_strings
from rl_as_inference.models.t_maze import t_maze
from rl_as_inference.models.tiger import tiger
from rl_as_inference.models.uncertain_slip import uncertain_slip

__all__ = [
    "bandit",
    "cliff",
    "corridor",
    "crying_baby",
    "deep_sea",
    "double_integrator",
    "food_truck",
    "frozen_lake",
    "gridworld",
    "hidden_goal",
    "light_dark",
    "light_dark_linear",
    "machine_wear",
    "pendulum",
    "point_mass",
    "procrastination",
    "random_mdp",
    "restaurants",
    "river_swim",
    "short_strings",
    "t_maze",
    "tiger",
    "uncertain_slip",
]
