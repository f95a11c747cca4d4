"""Reinforcement learning written as probabilistic inference: one Pyro program, many readings."""

import sys

from rl_as_inference import imports as _imports

# Public names are in __init__.pyi.
if _imports.Finder not in sys.meta_path:  # as when it is loaded again
    sys.meta_path.insert(0, _imports.Finder)
sys.modules[__name__].__class__ = _imports.Package
_imports.enter_environments()
