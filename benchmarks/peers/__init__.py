"""This project's soft actor-critic against other libraries', in one run: ``make bench-peers``."""
