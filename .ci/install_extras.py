"""Installs what the extra `test` names, as wheels, as far as this system and Python have them.

Both further backends are needed: without one of them this fails.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

BACKENDS = ("jax", "torch")


def main():
    """Installs the packages, all together if that works, and says which ones are left out."""
    wanted = requirements()
    left_out = [] if install(wanted) else [one for one in wanted if not install([one])]
    print("Left out:", ", ".join(left_out) or "nothing")
    sys.exit(int(any(name_of(one) in BACKENDS for one in left_out)))


def requirements():
    """Returns the requirements of the extra."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"]["test"]


def install(wanted):
    """Returns whether requirements are there now."""
    command = [sys.executable, "-m", "pip", "install", "--only-binary", ":all:", *wanted]
    return subprocess.run(command, check=False).returncode == 0


def name_of(requirement):
    """Returns the name in a requirement such as `torch>=2`."""
    return re.match(r"[\w.-]+", requirement).group()


if __name__ == "__main__":
    main()
