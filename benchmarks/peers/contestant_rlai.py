"""This project's soft actor-critic."""

from benchmarks.peers.turns import Turns

__all__ = ["main"]


def main() -> None:
    turns = Turns()
    task = turns.task

    import torch

    from rl_as_inference.agents import SoftActorCritic

    torch.set_num_threads(task.threads)
    agent = SoftActorCritic(
        task.environment,
        seed=task.seed,
        device="cpu",
        hidden_sizes=task.hidden_sizes,
        batch_size=task.batch_size,
        learning_starts=task.learning_starts,
        updates_per_step=1,
        num_envs=1,
        compile=True,  # left to itself it would judge by the warm-up alone, which is too short to repay compiling
    )
    turns.play(
        agent.learn,
        packages=("rl-as-inference", "torch"),
        settings=lambda: {
            "threads": torch.get_num_threads(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    )


if __name__ == "__main__":
    main()
