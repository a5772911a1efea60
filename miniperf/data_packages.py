"""Data that comes along in an installed package."""

import importlib.util
from pathlib import Path


def folder_of(package: str, who_needs: str, pip_arguments: str) -> Path:
    """The folder of a package. It is found by location: importing it may be slow, or need what is not installed.

    Args:
        package: as it is imported.
        who_needs: begins the error's line: "mini_wmt needs".
        pip_arguments: end it: what `pip install` takes, with the version whose data it is.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        name = package.replace("_", "-")
        raise ModuleNotFoundError(f"{who_needs} the package {name}: pip install {pip_arguments}")
    return Path(found.origin).parent
