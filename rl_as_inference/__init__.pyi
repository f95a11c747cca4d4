from rl_as_inference import environments, exact, guides, inspect, models
from rl_as_inference.agents import MPO, ModelBasedAgent, SoftActorCritic, SoftPolicyIteration, SoftQLearning
from rl_as_inference.cli.sweeping import sweep
from rl_as_inference.compare import Comparison, GradientComparison, compare, compare_gradients
from rl_as_inference.distributed import joined
from rl_as_inference.exploration import ConjugatePosterior, Exploration, bayes_adaptive, explore, infer_dynamics
from rl_as_inference.fit import FitResult, fit
from rl_as_inference.histories import History, history
from rl_as_inference.inference import estimate_log_evidence, posterior, trajectory_kl
from rl_as_inference.learned import LearnedDynamics
from rl_as_inference.objectives import Estimate, TrajectoryELBO, estimate_elbo
from rl_as_inference.offline import OfflineResult, learn_offline
from rl_as_inference.planning import MPPIPlanner, SMCPlanner
from rl_as_inference.processes import (
    GymnasiumProcess,
    LinearGaussianMDP,
    LinearGaussianPOMDP,
    MarkovDecisionProcess,
    PartiallyObservedMDP,
    TabularMDP,
    TabularPOMDP,
    to_gymnasium,
    to_gymnasium_vector,
)
from rl_as_inference.program import act, follow, given_return, observe, reward, simulate, steps, survival, terminate
from rl_as_inference.reasoning import (
    Satisficing,
    hyperbolic_policy,
    infer_agent,
    rationality_curve,
    satisfice,
    worst_case,
)
from rl_as_inference.runs import Run, load_run
from rl_as_inference.sweeps import Sweep
from rl_as_inference.trajectories import Trajectories

__all__ = [
    "MPO",
    "Comparison",
    "ConjugatePosterior",
    "Estimate",
    "Exploration",
    "FitResult",
    "GradientComparison",
    "GymnasiumProcess",
    "History",
    "LearnedDynamics",
    "LinearGaussianMDP",
    "LinearGaussianPOMDP",
    "MPPIPlanner",
    "MarkovDecisionProcess",
    "ModelBasedAgent",
    "OfflineResult",
    "PartiallyObservedMDP",
    "Run",
    "SMCPlanner",
    "Satisficing",
    "SoftActorCritic",
    "SoftPolicyIteration",
    "SoftQLearning",
    "Sweep",
    "TabularMDP",
    "TabularPOMDP",
    "Trajectories",
    "TrajectoryELBO",
    "act",
    "bayes_adaptive",
    "compare",
    "compare_gradients",
    "environments",
    "estimate_elbo",
    "estimate_log_evidence",
    "exact",
    "explore",
    "fit",
    "follow",
    "given_return",
    "guides",
    "history",
    "hyperbolic_policy",
    "infer_agent",
    "infer_dynamics",
    "inspect",
    "joined",
    "learn_offline",
    "load_run",
    "models",
    "observe",
    "posterior",
    "rationality_curve",
    "reward",
    "satisfice",
    "simulate",
    "steps",
    "survival",
    "sweep",
    "terminate",
    "to_gymnasium",
    "to_gymnasium_vector",
    "trajectory_kl",
    "worst_case",
]

__version__: str
