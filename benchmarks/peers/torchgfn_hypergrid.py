"""torchgfn's losses and gradients on its HyperGrid, as JSON; runs in torchgfn's own environment.

``python torchgfn_hypergrid.py '{"ndim": 2, "height": 8, "num_trajectories": 64, "alpha": 0.7, "seed": 0}'``
"""

import json
import sys
from importlib.metadata import version
from typing import Any

import torch
from gfn.estimators import DiscretePolicyEstimator
from gfn.gflownet import TBGFlowNet
from gfn.gflownet.trajectory_balance import (
    LogPartitionVarianceGFlowNet,
    RelativeLogPartitionVarianceGFlowNet,
    TrustPCLGFlowNet,
)
from gfn.gym import HyperGrid
from gfn.preprocessors import EnumPreprocessor
from torch import Tensor, nn


class Table(nn.Module):
    """A table of logits, every policy of the grid."""

    input_dim = 1

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.output_dim = logits.shape[-1]

    def forward(self, index: Tensor) -> Tensor:
        return self.logits[index.long().squeeze(-1)]


def main(options: dict[str, Any]) -> dict[str, Any]:
    """Returns trajectories of one policy, and every loss with its gradients in logits and log Z."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(options["seed"])
    grid = HyperGrid(options["ndim"], options["height"], validate_modes=False)
    num_states, num_actions = options["height"] ** options["ndim"], grid.n_actions
    seen = EnumPreprocessor(grid.get_states_indices)

    def forward(scale: float) -> DiscretePolicyEstimator:
        return DiscretePolicyEstimator(Table(scale * torch.randn(num_states, num_actions)), num_actions, seen)

    policy, reference = forward(1.0), forward(0.5)
    reference.requires_grad_(False)
    backward = DiscretePolicyEstimator(
        Table(0.3 * torch.randn(num_states, num_actions - 1)), num_actions, seen, is_backward=True
    )
    backward.requires_grad_(False)
    parts = {"policy": policy, "reference": reference, "backward": backward}
    log_z, alpha = 1.3, options["alpha"]
    losses = {
        "trajectory balance": TBGFlowNet(policy, backward, init_logZ=log_z),
        "log partition variance": LogPartitionVarianceGFlowNet(policy, backward),
        "Trust-PCL": TrustPCLGFlowNet(policy, reference, alpha=alpha, init_v_soft_s0=alpha * log_z),
        "relative log partition variance": RelativeLogPartitionVarianceGFlowNet(policy, reference, beta=1 / alpha),
    }
    draws = losses["trajectory balance"].sample_trajectories(
        grid, n=options["num_trajectories"], save_logprobs=False, epsilon=0.3
    )
    found = {}
    for name, flow in losses.items():
        flow.zero_grad()
        loss = flow.loss(grid, draws)
        loss.backward()
        slope = getattr(flow, "logZ", torch.zeros(())).grad
        found[name] = {
            "loss": float(loss.detach()),
            "gradient": policy.module.logits.grad.tolist(),
            "log_z_gradient": None if slope is None else float(slope),
        }
    return {
        "versions": {name: version(name) for name in ("torchgfn", "torch")},
        "states": draws.states.tensor.tolist(),
        "actions": draws.actions.tensor.squeeze(-1).tolist(),
        "log_rewards": draws.log_rewards.tolist(),
        "indices": [int(i) for i in grid.get_states_indices(draws.states).flatten()],
        "log_z": log_z,
        "logits": {name: part.module.logits.tolist() for name, part in parts.items()},
        "losses": found,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
