"""Prints the lowest version that pyproject.toml allows of every direct dependency, as constraints for pip."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + [each for extra in project["optional-dependencies"].values() for each in extra]
for each in sorted(set(wanted)):
    if found := re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)(?:,.*)?", each):
        print("==".join(found.groups()))
