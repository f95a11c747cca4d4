"""How good is good enough, and what does each bit of deliberation buy?

A walker on ice may forgo a tenth of the best return. The least determined policy that keeps to it is the
MaxEnt policy at one temperature; over all temperatures these policies trace return against information.
"""

import sys
from pathlib import Path

from rl_as_inference import exact, models, rationality_curve, satisfice
from rl_as_inference.inspect import plots


def main(quick: bool = False, picture: Path | None = None) -> None:
    lake = models.gridworld(4, 4, 12 if quick else 20, slip=0.3, holes=[(1, 1), (1, 3), (2, 3)])
    print(f"{'ε':>5} {'return':>8} {'target':>8} {'α':>8} {'1/α':>8} {'bits':>7}")
    for epsilon in (0.0, 0.01, 0.1, 0.3, 0.6):
        answer = satisfice(lake, epsilon)
        print(
            f"{epsilon:>5} {answer.expected_return:8.4f} {answer.target_return:8.4f} {answer.temperature:8.4f} "
            f"{answer.multiplier:8.2f} {answer.information / 0.6931471805599453:7.2f}"
        )
    answer = satisfice(lake, 0.1)
    same = exact.plan(lake.at_temperature(answer.temperature))
    print(f"return of the MaxEnt policy at that α: {float(exact.expected_return(lake, same)):.4f}")
    curve = rationality_curve(lake)
    print(f"the curve falls from {float(curve.expected_return[0]):.4f} to {float(curve.expected_return[-1]):.4f}")
    if picture is not None:
        ax = plots.plot_rationality(curve, satisficing=answer)
        ax.figure.savefig(picture, dpi=110)  # type: ignore[union-attr]


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("satisficing.png"))
