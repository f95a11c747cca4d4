"""Learning from data that others acted, without an environment."""

from rl_as_inference.offline.datasets import OfflineData, read_dataset
from rl_as_inference.offline.estimates import ReturnEstimate, weighted_return
from rl_as_inference.offline.learning import OfflineResult, learn_offline

__all__ = ["OfflineData", "OfflineResult", "ReturnEstimate", "learn_offline", "read_dataset", "weighted_return"]
