"""Learners on environments: soft actor-critic, soft Q-learning, MPO, soft policy iteration, and in learned dynamics."""

from rl_as_inference.agents.curves import CurveRow
from rl_as_inference.agents.evaluation import Evaluation
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.model_based import ModelBasedAgent
from rl_as_inference.agents.mpo import MPO
from rl_as_inference.agents.perturbations import PerturbedReturns, perturb
from rl_as_inference.agents.replay import Batch, Replay
from rl_as_inference.agents.return_constraint import ReturnConstraint
from rl_as_inference.agents.soft_actor_critic import SoftActorCritic
from rl_as_inference.agents.soft_policy_iteration import SoftPolicyIteration
from rl_as_inference.agents.soft_q_learning import SoftQLearning
from rl_as_inference.agents.training import Training, train
from rl_as_inference.agents.videos import record_videos

__all__ = [
    "MPO",
    "Batch",
    "CurveRow",
    "Evaluation",
    "Learner",
    "ModelBasedAgent",
    "PerturbedReturns",
    "Replay",
    "ReturnConstraint",
    "SoftActorCritic",
    "SoftPolicyIteration",
    "SoftQLearning",
    "Training",
    "perturb",
    "record_videos",
    "train",
]
