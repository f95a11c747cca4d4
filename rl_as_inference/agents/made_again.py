"""An agent's settings as plain data, and agents made again from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium.envs.registration import EnvSpec

from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.options import options_of
from rl_as_inference.agents.soft_actor_critic import SoftActorCritic
from rl_as_inference.agents.soft_q_learning import SoftQLearning

__all__ = ["ALGORITHMS", "make_agent", "named_environment", "settings_of"]

ALGORITHMS: dict[str, type[Learner]] = {"sac": SoftActorCritic, "sql": SoftQLearning}
"""The learners, as the command line calls them."""
