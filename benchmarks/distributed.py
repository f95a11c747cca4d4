"""Two ranks against one process, what their communication takes, and a model of more ranks.

    python -m benchmarks.distributed [--quick] [--latency SECONDS] [--bandwidth BYTES_PER_SECOND]

Starts ``torchrun`` with two ranks of one thread each. They take turns: rank 0 fits alone while rank 1 waits (it sleeps
in an all-reduce), then both fit together, and so on in short rounds, so that what else the machine does falls on both
alike. FrozenLake 8x8, 4,096 trajectories of 200 steps (its own time limit) for each gradient, score function, a policy
of 64x64 units; and 16,384, since of what a step takes whatever the number of trajectories only the policy's table is
shared out.

- ``steps_per_second``: of each way, and the ratio, whose median over rounds is told with the quartiles. By the clock,
  and by processor time (the slower rank's), which is what an idle machine of as many cores comes to.
- ``larger``: the same with 16,384 trajectories.
- ``cores_at_once``: how many times the work of one core the two do when each fits alone at the same time and nothing is
  shared. Virtual cores are now and then halves of one: below 2 it says how little two ranks can gain here.
- ``bound``: what the compute of ``model`` allows two ranks at most, if waiting took nothing.
- ``communication``: the sum of the gradient and the two exchanges of a step (the table of log probabilities, and the
  gradient in it) by themselves, right after a barrier, as a share of the step; and the time spent in them in the fit,
  where a rank also waits for the other.
- ``all_reduce``: seconds by size on loopback; latency and bandwidth are fitted to them. Two ranks send each other up
  to 2 MiB at once, ``latency + bytes / bandwidth``, and more in a ring.
- ``model``: no measurement. Steps/s up to 1,024 ranks from ``a + b n`` seconds of compute for ``n`` trajectories
  (measured at three numbers), of which the table's (measured by itself) are shared out; two exchanges, in which each
  rank sends the others its part of the table or theirs, ``latency + bytes (R-1) / (R bandwidth)``; and the gradient's
  all-reduce by a ring, ``2 (R-1) (latency + bytes / (R bandwidth))``, or by halving and doubling,
  ``2 log2(R) latency + 2 bytes (R-1) / (R bandwidth)`` (Thakur, Rabenseifner & Gropp 2005), of two ranks as above. All
  ranks are taken for equally fast; with another network's latency and bandwidth say so.
"""

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "results" / "distributed.json"
NUMBER, LARGER, HORIZON = 4096, 16384, 200
RANKS = [2**k for k in range(11)]
SIZES = [2, 2**8, 2**12, 2**16, 2**20, 2**23]
"""Numbers of float32 in an all-reduce."""


def _worker(out: Path, quick: bool) -> None:
    """What each rank does; rank 0 writes."""
    import torch

    import rl_as_inference as rlai
    from rl_as_inference import process_groups
    from rl_as_inference.distributed import joined
    from rl_as_inference.memory import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as ``rlai fit`` does
    lake = rlai.TabularMDP.from_gymnasium(
        "FrozenLake-v1", map_name="8x8", horizon=HORIZON, discount=1.0, temperature=0.1
    )
    policy = rlai.guides.amortized_policy(lake, hidden_sizes=(64, 64))
    steps, warm, rounds = (6, 2, 3) if quick else (12, 2, 15)

    def fitted(number: int, distributed: bool) -> tuple[float, float]:
        """Returns seconds a step by the clock and by the processor."""
        clock: list[float] = []
        processor: list[float] = []

        def tick(*_: object) -> None:
            clock.append(time.perf_counter())
            processor.append(time.process_time())

        rlai.fit(
            lake,
            policy,
            steps=steps,
            estimator="score",
            num_trajectories=number,
            seed=0,
            callback=tick,
            distributed=distributed,
        )
        return tuple((each[-1] - each[warm - 1]) / (steps - warm) for each in (clock, processor))  # type: ignore[return-value]

    with joined() as ranks:

        def alone(number: int) -> tuple[float, float]:
            found = fitted(number, False) if ranks.is_first else (0.0, 0.0)
            return ranks.broadcast(found)

        def slower(seconds: tuple[float, float]) -> list[float]:
            return [max(each) for each in zip(*ranks.gather_objects(seconds), strict=True)]

        alone(NUMBER)
        pairs, apart, larger = [], [], []
        waiting: list[float] = []
        spent: list[float] = []
        plain = process_groups._await

        def timed(*args: Any) -> None:
            began = time.perf_counter()
            plain(*args)
            spent.append(time.perf_counter() - began)

        for _ in range(rounds):
            one = alone(NUMBER)
            process_groups._await = timed
            spent.clear()
            two = fitted(NUMBER, True)
            waiting.append(sum(spent) / steps)
            process_groups._await = plain
            pairs.append((one, slower(two)))
            apart.append((one, slower(fitted(NUMBER, False))))
        for _ in range(1 if quick else 5):
            larger.append((alone(LARGER), slower(fitted(LARGER, True))))
        parts = {n: min(alone(n)[1] for _ in range(1 if quick else 4)) for n in (NUMBER, NUMBER // 2, NUMBER // 4)}
        reduces = {size: _all_reduce_seconds(ranks, size, 20 if quick else 200) for size in SIZES}
        count = sum(p.numel() for p in policy.parameters()) + len(list(policy.parameters())) + 1
        shape, repeats = (HORIZON, lake.num_states * lake.num_actions), 50 if quick else 500
        counts = [count, *[math.prod(shape)] * 2]
        own = _all_reduce_seconds(ranks, count, repeats) + 2 * _exchange_seconds(ranks, shape, repeats)
        table = min(_table_seconds(lake, policy) for _ in range(3 if quick else 20))
        if ranks.is_first:
            found = {
                "pairs": pairs,
                "apart": apart,
                "larger": larger,
                "waiting": statistics.median(waiting),
                "table": table,
                "parts": parts,
                "reduces": reduces,
                "numbers": counts,
                "own": own,
                "load": os.getloadavg(),
                "policy": [int(p.numel()) for p in policy.parameters()],
            }
            out.write_text(json.dumps(found))


def _table_seconds(process: Any, policy: Any) -> float:
    """Returns the processor time of the policy's table of log probabilities and of its gradient."""
    from rl_as_inference.processes.policy_tables import table_for_rollouts

    began = time.process_time()
    table_for_rollouts(process, policy, NUMBER, HORIZON).sum().backward()
    return time.process_time() - began


def _all_reduce_seconds(ranks: Any, size: int, repeats: int) -> float:
    """Returns the median time of an all-reduce of so many float32, when both ranks come at once."""
    import torch

    numbers = torch.zeros(size)
    return _median_seconds(ranks, lambda: ranks.add_up(numbers), max(5, repeats // max(1, size // 2**18)))


def _exchange_seconds(ranks: Any, shape: tuple[int, int], repeats: int) -> float:
    """Returns the median time in which each of two ranks sends the other half of a table."""
    import torch

    table, halves = torch.zeros(shape), [shape[0] // 2] * 2
    return _median_seconds(ranks, lambda: ranks.exchange(table, halves, halves), repeats)


def _median_seconds(ranks: Any, operation: Callable[[], Any], repeats: int) -> float:
    import torch

    seconds = []
    for _ in range(repeats):
        ranks.sum(torch.ones(1))  # both are here
        began = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _line(points: dict[float, float]) -> tuple[float, float]:
    """Returns intercept and slope of the least-squares line, with relative errors alike."""
    weight = {x: 1 / y**2 for x, y in points.items()}
    total = sum(weight.values())
    mean_x = sum(weight[x] * x for x in points) / total
    mean_y = sum(weight[x] * y for x, y in points.items()) / total
    slope = sum(weight[x] * (x - mean_x) * (y - mean_y) for x, y in points.items()) / sum(
        weight[x] * (x - mean_x) ** 2 for x in points
    )
    return mean_y - slope * mean_x, slope


def modelled(
    compute: tuple[float, float, float], sizes: list[float], latency: float, bandwidth: float, ranks: int, number: int
) -> dict[str, float]:
    """Returns steps/s by the model, for ``number`` trajectories shared out among ``ranks``.

    Args:
        compute: ``a`` and ``b`` of the seconds that a gradient takes, and which part of ``a`` is shared out.
        sizes: bytes of the gradient, of the table and of the gradient in it.
        latency: seconds of a message.
        bandwidth: bytes a second.
        ranks: how many.
        number: trajectories of a gradient, of all ranks.
    """
    gradient, *tables = sizes
    is_shared = 1 < ranks <= HORIZON  # more ranks than steps each compute all of the table
    step = compute[0] - compute[2] * (1 - 1 / ranks) * is_shared + compute[1] * math.ceil(number / ranks)
    if is_shared:
        step += sum(latency + size * (ranks - 1) / (ranks * bandwidth) for size in tables)
    ring = 2 * (ranks - 1) * (latency + gradient / (ranks * bandwidth))
    halving = 2 * math.log2(ranks) * latency + 2 * gradient * (ranks - 1) / (ranks * bandwidth)
    if ranks == 2:
        ring = halving = latency + gradient / bandwidth
    return {"ring": 1 / (step + ring), "halving_doubling": 1 / (step + halving)}


def _curves(
    compute: tuple[float, float, float], sizes: list[float], latency: float, bandwidth: float
) -> list[dict[str, Any]]:
    rows = []
    of: dict[str, Callable[[int], int]] = {
        "one gradient shared out": lambda _: NUMBER,
        "as much a rank": lambda ranks: NUMBER * ranks,
    }
    for name, number in of.items():
        alone = modelled(compute, sizes, latency, bandwidth, 1, NUMBER)["ring"]
        for ranks in RANKS:
            found = modelled(compute, sizes, latency, bandwidth, ranks, number(ranks))
            trajectories = {how: rate * number(ranks) / (alone * NUMBER) for how, rate in found.items()}
            rows.append({"scaling": name, "ranks": ranks, "steps_per_second": found, "speedup": trajectories})
    return rows


def measure(quick: bool, latency: float | None = None, bandwidth: float | None = None) -> dict[str, Any]:
    """Returns the results."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        words = ["-m", "benchmarks.distributed", "--worker", str(out), *(["--quick"] if quick else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *words], check=True, env=environment, cwd=Path(__file__).parents[1])
        found = json.loads(out.read_text())
    two = [pair[1] for pair in found["pairs"]]
    reduces = {4.0 * int(size): seconds for size, seconds in found["reduces"].items()}
    intercept, slope = _line(reduces)
    fitted = {"latency": intercept, "bandwidth": 1 / slope}
    used = {"latency": latency or fitted["latency"], "bandwidth": bandwidth or fitted["bandwidth"]}
    compute = (*_line({float(n): seconds for n, seconds in found["parts"].items()}), found["table"])
    seconds = {
        n: [compute[0] - compute[2] * (1 - 1 / r) + compute[1] * n / r for r in (1, 2)] for n in (NUMBER, LARGER)
    }
    step = statistics.median(pair[0] for pair in two)
    processor = statistics.median(pair[1] for pair in two)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "cores": os.cpu_count(),
        "load": found["load"],
        "versions": {name: version(name) for name in ("rl-as-inference", "torch")},
        "what": f"FrozenLake-v1 8x8, horizon {HORIZON}, {NUMBER} trajectories a gradient, score, 64x64",
        "steps_per_second": _rates(found["pairs"]),
        "larger": {"trajectories": LARGER, **_rates(found["larger"])},
        "cores_at_once": _spread([2 * one[0] / two[0] for one, two in found["apart"]]),
        "bound": {str(n): one / two for n, (one, two) in seconds.items()},
        "communication": {
            "numbers": found["numbers"],
            "seconds": found["own"],
            "share_of_step": found["own"] / step,
            "share_of_processor_time": found["own"] / processor,
            "seconds_with_waiting": found["waiting"],
            "share_with_waiting": found["waiting"] / step,
        },
        "all_reduce": [{"bytes": size, "seconds": seconds} for size, seconds in reduces.items()],
        "loopback": fitted,
        "compute": {
            "seconds": compute[0],
            "of_the_table": compute[2],
            "seconds_a_trajectory": compute[1],
            "measured": found["parts"],
        },
        "model": {
            "is": "a model, no measurement",
            **used,
            "rows": _curves(compute, [4.0 * each for each in found["numbers"]], **used),
        },
    }


def _rates(pairs: list[Any]) -> dict[str, Any]:
    """Returns steps/s of one rank and of two, and their ratio by the clock and by processor time."""
    one, two = ([pair[i] for pair in pairs] for i in (0, 1))
    return {
        "one": 1 / statistics.median(pair[0] for pair in one),
        "two": 1 / statistics.median(pair[0] for pair in two),
        "ratio": _spread([a[0] / b[0] for a, b in zip(one, two, strict=True)]),
        "ratio_by_processor_time": _spread([a[1] / b[1] for a, b in zip(one, two, strict=True)]),
    }


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a few rounds, whose times say little")
    parser.add_argument("--latency", type=float, help="seconds, of another network than loopback, for the model")
    parser.add_argument("--bandwidth", type=float, help="bytes a second, likewise")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        _worker(options.worker, options.quick)
        return 0
    results = measure(options.quick, options.latency, options.bandwidth)
    spoken = results["communication"]
    print(f"{results['what']}; load {results['load'][0]:.1f} on {results['cores']} cores")
    for number, rates in ((NUMBER, results["steps_per_second"]), (LARGER, results["larger"])):
        print(
            f"{number} trajectories: one {rates['one']:.2f} steps/s, two {rates['two']:.2f}: "
            f"{rates['ratio']['median']:.2f} times by the clock, {rates['ratio_by_processor_time']['median']:.2f} by "
            f"processor time, {results['bound'][str(number)]:.2f} if waiting took nothing"
        )
    print(f"the two cores at once do {results['cores_at_once']['median']:.2f} times the work of one")
    print(f"what a step sends takes {1e6 * spoken['seconds']:.0f} µs, {100 * spoken['share_of_step']:.2f} % of a step;")
    print(f"with waiting for the other rank {100 * spoken['share_with_waiting']:.1f} %")
    for row in results["model"]["rows"]:
        shown = ", ".join(f"{how} {value:.1f}x" for how, value in row["speedup"].items())
        print(f"model, {row['scaling']}, {row['ranks']:>4} ranks: {shown}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
