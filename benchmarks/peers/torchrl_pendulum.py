"""TorchRL's MPPIPlanner on TorchRL's own pendulum: seconds an action, and returns. Runs in TorchRL's environment.

python benchmarks/peers/torchrl_pendulum.py '{"samples": 512, "look_ahead": 30, ...}'      prints JSON
"""

import json
import sys
import time
from importlib.metadata import version

import torch
from tensordict import TensorDict
from torchrl.envs.custom.pendulum import PendulumEnv
from torchrl.modules import MPPIPlanner, ValueOperator
from torchrl.objectives.value import TDLambdaEstimator


class Nothing(torch.nn.Module):
    """What follows the plan, as in our run: nothing."""

    def forward(self, th: torch.Tensor, thdot: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(th)[..., None]


def planner(env: PendulumEnv, options: dict, steps: int) -> MPPIPlanner:
    values = ValueOperator(Nothing(), in_keys=["th", "thdot"])
    returns = TDLambdaEstimator(gamma=1.0, lmbda=1.0, value_network=values)
    return MPPIPlanner(
        env,
        returns,
        temperature=options["inverse_temperature"],
        planning_horizon=options["look_ahead"],
        optim_steps=steps,
        num_candidates=options["samples"],
        top_k=options["top_k"],
    )


def begin(env: PendulumEnv, count: int) -> TensorDict:
    params = env.gen_params(batch_size=[count])
    return env.reset(params)


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    env = PendulumEnv()
    found: dict = {"versions": {name: version(name) for name in ("torch", "torchrl", "tensordict")}, "seconds": {}}
    with torch.no_grad():
        plan = planner(env, options, 1)
        for count in options["counts"]:
            state = begin(env, count)
            plan(state.clone())
            times = []
            for _ in range(options["repeats"]):
                started = time.perf_counter()
                plan(state.clone())
                times.append(time.perf_counter() - started)
            found["seconds"][count] = sorted(times)[len(times) // 2]
        found["returns"] = {}
        for steps in options["optim_steps"]:
            torch.manual_seed(1)
            plan, state = planner(env, options, steps), begin(env, options["starts"])
            total = torch.zeros(options["starts"])
            for _ in range(200):
                step = env.step(plan(state))["next"]
                total += step["reward"][..., 0]
                state = step.exclude("reward")
            found["returns"][steps] = total.tolist()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
