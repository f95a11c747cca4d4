"""This project's soft actor-critic, plain or with batch-normalised critics."""

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
        precision=task.precision,
        # Left to itself it would judge by the warm-up alone, which is too short to repay compiling.
        compile="auto" if task.cold else True,
        **({} if task.algorithm == "sac" else {"architecture": "batch_norm"}),
        **({} if task.critic_hidden_sizes is None else {"critic_hidden_sizes": task.critic_hidden_sizes}),
    )
    turns.play(
        agent.learn,
        packages=("rl-as-inference", "torch"),
        settings=lambda: {
            "threads": torch.get_num_threads(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "compiled": agent._update.compiled,
            **{name: agent.options[name] for name in ("architecture", "actor_every", "adam_beta", "precision")},
        },
    )


if __name__ == "__main__":
    main()
