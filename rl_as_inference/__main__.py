"""``python -m rl_as_inference`` is ``rlai``."""

from rl_as_inference.cli import main

main()
