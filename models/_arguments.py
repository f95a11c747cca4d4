"""Checks of arguments that several problems share."""

from torch import Tensor

from rl_as_inference.checks import check_discount, check_temperature

__all__ = ["check_integer", "check_probability", "check_program"]


def check_integer(name: str, value: object, least: int, why: str = "") -> None:
    """Raises ValueError unless ``value`` is an integer ≥ ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}{why}, got {value!r}")


def check_probability(name: str, value: float) -> None:
    """Raises ValueError unless ``value`` is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], got {value!r}")


def check_program(horizon: object, discount: float | Tensor, temperature: float | Tensor) -> None:
    """Raises ValueError for what a program would refuse only once it runs."""
    check_integer("horizon", horizon, 1)
    check_discount(discount)
    check_temperature(temperature)
