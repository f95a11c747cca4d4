"""Planning as inference: what to do now, by inferring the next actions from where one stands."""

from rl_as_inference.planning.mppi_planner import MPPIPlanner
from rl_as_inference.planning.smc_planner import SMCPlanner

__all__ = ["MPPIPlanner", "SMCPlanner"]
