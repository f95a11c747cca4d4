"""Reinforcement-learning problems written as generative models, one problem a file.

Each name is a function whose arguments all have defaults. It returns a process, or a Pyro program
without arguments.
"""

from rl_as_inference.models.cliff import cliff
from rl_as_inference.models.corridor import corridor
from rl_as_inference.models.double_integrator import double_integrator
from rl_as_inference.models.food_truck import food_truck
from rl_as_inference.models.frozen_lake import frozen_lake
from rl_as_inference.models.gridworld import gridworld
from rl_as_inference.models.hidden_goal import hidden_goal
from rl_as_inference.models.point_mass import point_mass
from rl_as_inference.models.procrastination import procrastination
from rl_as_inference.models.random_mdp import random_mdp
from rl_as_inference.models.restaurants import restaurants
from rl_as_inference.models.uncertain_slip import uncertain_slip

__all__ = [
    "cliff",
    "corridor",
    "double_integrator",
    "food_truck",
    "frozen_lake",
    "gridworld",
    "hidden_goal",
    "point_mass",
    "procrastination",
    "random_mdp",
    "restaurants",
    "uncertain_slip",
]
