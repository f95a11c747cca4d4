"""The models as environments of Gymnasium, under ids such as ``rlai/FrozenLake-v0``.

Importing the package enters them in Gymnasium's registry, or has them entered once Gymnasium is imported; a model, and
PyTorch, are first loaded where an environment is made. Whoever has not imported the package names this module:
Gymnasium imports what stands before a colon.

    gymnasium.make("rl_as_inference.environments:rlai/FrozenLake-v0", map_name="4x4")

Example:
    >>> import gymnasium
    >>> env = gymnasium.make("rlai/Tiger-v0", horizon=2)
    >>> _ = env.reset(seed=0)
    >>> heard, reward, *_ = env.step(0)  # listens
    >>> int(heard), reward
    (0, -1.0)
"""

import gymnasium  # noqa: F401 - before its own module: of threads that import both at once, one would fail
from gymnasium.envs.registration import register, registry

__all__ = ["MODELS"]

MODELS = {
    "rlai/Bandit-v0": "bandit",
    "rlai/Cliff-v0": "cliff",
    "rlai/CryingBaby-v0": "crying_baby",
    "rlai/DeepSea-v0": "deep_sea",
    "rlai/DoubleIntegrator-v0": "double_integrator",
    "rlai/FoodTruck-v0": "food_truck",
    "rlai/FrozenLake-v0": "frozen_lake",
    "rlai/Gridworld-v0": "gridworld",
    "rlai/LightDark-v0": "light_dark",
    "rlai/LightDarkLinear-v0": "light_dark_linear",
    "rlai/MachineWear-v0": "machine_wear",
    "rlai/MultiGoal-v0": "point_mass",
    "rlai/Pendulum-v0": "pendulum",
    "rlai/PointMass-v0": "point_mass",
    "rlai/Procrastination-v0": "procrastination",
    "rlai/RandomMDP-v0": "random_mdp",
    "rlai/Restaurants-v0": "restaurants",
    "rlai/RiverSwim-v0": "river_swim",
    "rlai/ShortStrings-v0": "short_strings",
    "rlai/TMaze-v0": "t_maze",
    "rlai/Tiger-v0": "tiger",
}
"""Which model each id is: all that are processes in parts. Pyro programs run whole trajectories and have no steps.
``MultiGoal`` is the name that the point mass between several goals has elsewhere."""

for _id, _name in MODELS.items():
    if _id not in registry:  # this module may be loaded anew
        # No time limit: an environment truncates at its model's own horizon, which is an option.
        register(
            _id,
            entry_point=f"rl_as_inference.model_environments:{_name}",
            vector_entry_point=f"rl_as_inference.model_environments:{_name}_vector",
        )
