"""README as the description on the package index: with absolute links, where WEIGHT_AVERAGING_URL has the address.

All else is in setup.cfg. Without the variable the description is README as it is (docs/release.md).
"""

import os
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
RELATIVE = re.compile(r"(!?)(\[[^\[\]]*\]\()(?![a-z]+:|#)([^)]+)\)")


def absolute(text: str, url: str, version: str) -> str:
    """A page of Markdown whose links lead into the repository at `url`, as of the tag of a version."""

    def link(match: re.Match[str]) -> str:
        view = "raw" if match[1] else "blob"  # a picture as it is, a file in its page
        return f"{match[1]}{match[2]}{url}/{view}/v{version}/{match[3]})"

    return RELATIVE.sub(link, text)


if __name__ == "__main__":
    address = os.environ.get("WEIGHT_AVERAGING_URL", "").rstrip("/")
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', (HERE / "weight_averaging/__init__.py").read_text(), re.MULTILINE)
    assert found is not None
    setup(
        long_description=absolute(readme, address, found[1]) if address else readme,
        **({"url": address, "project_urls": {"Source": address}} if address else {}),
    )
