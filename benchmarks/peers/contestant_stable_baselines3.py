"""Stable-Baselines3's soft actor-critic, with its own defaults wherever the task says nothing."""

from benchmarks.peers.turns import Turns

__all__ = ["main"]


def main() -> None:
    turns = Turns()
    task = turns.task

    import torch
    from stable_baselines3 import SAC

    torch.set_num_threads(task.threads)
    model = SAC(
        "MlpPolicy",
        task.environment,
        seed=task.seed,
        device="cpu",
        policy_kwargs={"net_arch": task.widths},
        batch_size=task.batch_size,
        learning_starts=task.learning_starts,
        train_freq=1,
        gradient_steps=1,
    )
    turns.play(
        lambda steps: model.learn(steps, log_interval=None, reset_num_timesteps=False),
        packages=("stable-baselines3", "torch"),
        settings=lambda: {
            "threads": torch.get_num_threads(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "updates": model._n_updates,
        },
    )


if __name__ == "__main__":
    main()
