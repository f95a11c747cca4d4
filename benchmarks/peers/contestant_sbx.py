"""SBX's soft actor-critic or its CrossQ, in JAX, with its own defaults wherever the task says nothing."""

import os

from benchmarks.peers.turns import Turns

__all__ = ["main"]


def main() -> None:
    turns = Turns()
    task = turns.task

    # XLA reads the size of its thread pool from here, once, when JAX starts.
    os.environ.update(NPROC=str(task.threads), JAX_PLATFORMS="cpu")
    import jax
    import torch
    from sbx import SAC, CrossQ

    torch.set_num_threads(task.threads)
    model = (SAC if task.algorithm == "sac" else CrossQ)(
        "MlpPolicy",
        task.environment,
        seed=task.seed,
        policy_kwargs={"net_arch": task.widths},
        batch_size=task.batch_size,
        learning_starts=task.learning_starts,
        train_freq=1,
        gradient_steps=1,
    )
    turns.play(
        lambda steps: model.learn(steps, log_interval=None, reset_num_timesteps=False),
        packages=("sbx-rl", "jax", "jaxlib", "stable-baselines3"),
        settings=lambda: {
            "threads": task.threads,
            "default_matmul_precision": jax.config.jax_default_matmul_precision or "default",
            "updates": model._n_updates,
            "policy_delay": getattr(model, "policy_delay", None),
        },
    )


if __name__ == "__main__":
    main()
