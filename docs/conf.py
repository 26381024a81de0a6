"""Sphinx: the manual in MyST Markdown, API pages from the docstrings. A build needs no network."""

import sys
from pathlib import Path

import bimkern

sys.path.insert(0, str(Path(__file__).parent))

project = "bimkern"
author = "the authors of bimkern"
copyright = "the authors of bimkern, Apache-2.0"
version = release = bimkern.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "command_help"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # docstrings put names into single backticks
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"bimkern {release}"
html_show_sourcelink = False
