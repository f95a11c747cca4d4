"""Names of options: which a problem takes, and what a misspelt one may have meant."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter
from typing import Any

__all__ = ["check_options", "flag", "meant", "typed"]

_OTHER_NAMES = {
    "async": "asynchronous",
    "episodes": "num_episodes",
    "gamma": "discount",
    "hidden": "hidden_sizes",
    "lr": "learning_rate",
    "num_gradients": "gradients_num_trajectories",
    "num_rollouts": "num_trajectories",
    "rollouts": "num_trajectories",
    "step": "num_steps",
    "steps": "num_steps",
    "timesteps": "num_steps",
    "total_timesteps": "num_steps",
}
"""What others call an option, or this package did."""

_FLAGS = {"asynchronous": "--async"}
"""Options that are written shorter than they are named."""

_SURE, _LIKELY = 0.8, 0.6
"""How much two names are alike (:mod:`difflib`): where the problem might take anything, and where it does not."""


def flag(name: str) -> str:
    """Returns an argument's name as an option is written: ``--learning-rate``."""
    return _FLAGS.get(name) or "--" + name.replace("_", "-")


def typed(text: str) -> Any:
    """Returns what a word looks like: an integer, a float, a truth value, or the word.

    Example:
        >>> [typed(word) for word in ("3", "1e-2", "true", "8x8")]
        [3, 0.01, True, '8x8']
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def meant(name: str, own: Sequence[str], likeness: float = _SURE) -> str | None:
    """Returns which of the names in ``own`` a user may have meant by ``name``; None if none is near.

    Example:
        >>> own = ["learning_rate", "steps", "compile"]
        >>> [meant(name, own) for name in ("lr", "step", "learning_rat", "no_compil", "map_name")]
        ['learning_rate', 'steps', 'learning_rate', 'compile', None]
    """
    name = name.strip("-").replace("-", "_").lower()
    for name in dict.fromkeys((name, name.removeprefix("no_"))):  # noqa: B020 - the same word, without its negation
        if name in own:
            return name
        if _OTHER_NAMES.get(name) in own:
            return _OTHER_NAMES[name]
        begun = [each for each in own if len(name) > 2 and each.startswith(name)]
        near = begun[:1] or difflib.get_close_matches(name, own, n=1, cutoff=likeness)
        if near:
            return near[0]
    return None


def check_options(
    options: Mapping[str, Any], parameters: Iterable[Parameter], where: str, own: Sequence[str] = ()
) -> None:
    """Checks that a problem takes all ``options``.

    Where it takes any (``**kwargs``), one that is not among its named parameters and is like one of ``own`` is still
    a slip.

    Args:
        options: by name.
        parameters: of the problem's function.
        where: the problem, for the message.
        own: names of other options that may have been meant.

    Raises:
        ValueError: naming the options that are not, what the problem takes, and what may have been meant.
    """
    parameters = list(parameters)
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
    known = [each.name for each in parameters if each.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    for name in options:
        if name in known:
            continue
        others = [each for each in (*own, *known) if each != name]  # the command's own --horizon is passed on as such
        guess = meant(name, others, _SURE if takes_any else _LIKELY)
        if takes_any and guess is None:
            continue
        wanted = "" if guess is None else f"; did you mean {flag(guess)}?"
        takes = ", ".join(map(flag, known)) or "none"
        raise ValueError(f"{flag(name)}: not an option of {where}; it takes {takes}{wanted}")
