"""``python -m rl_as_inference`` is ``rlai``."""

from rl_as_inference.cli import main

if __name__ == "__main__":
    main()
