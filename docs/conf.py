"""How `make docs` builds the site in `site/` from these pages and the docstrings."""

import importlib.metadata

project = "weight_averaging"
author = copyright = "The weight_averaging authors"
release = importlib.metadata.version("weight_averaging")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["results/**/data"]
html_theme = "furo"
html_title = f"weight_averaging {release}"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_show_sourcelink = False

myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
suppress_warnings = [
    "myst.header",  # a page of results may begin with a smaller heading
    "ref.python",  # a class is known by its package and by its module
]
default_role = "code"  # single backticks in docstrings
nb_execution_mode = "off"  # the tests run the notebooks (tests/repository/test_notebooks.py)

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "inherited-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def literal_blocks(app, what, name, obj, options, lines):
    """Mark indented blocks of a docstring as code: in reStructuredText they would be quotations."""
    marked, fresh = [], True
    for place, line in enumerate(lines):
        begins = line.startswith("    ") and not line.lstrip().startswith(">>>")
        if begins and fresh and place and not lines[place - 1].strip():
            marked += ["::", ""]
        if line.strip():
            fresh = not line.startswith(" ")
        marked.append(line)
    lines[:] = marked


def setup(app):
    app.connect("autodoc-process-docstring", literal_blocks, priority=100)  # before napoleon reads the sections
