"""The site: ``make docs`` builds it into build/site."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

import _gallery  # noqa: E402, the folder of this file is no package
import _notebooks  # noqa: E402
import _reference  # noqa: E402

import dynarray  # noqa: E402

_reference.write(DOCS / "api")
_notebooks.write(DOCS / "notebooks")
_gallery.write(DOCS / "examples")

project = "dynarray"
author = "the dynarray authors"
copyright = "the dynarray authors, MIT licence"
version = release = dynarray.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
root_doc = "index"
exclude_patterns = ["README.md"]
templates_path: list[str] = []
# `x` in a docstring is code, and a link where it is the name of something documented.
default_role = "py:obj"
add_module_names = False
autosummary_generate = False
autodoc_typehints = "none"  # the docstrings say shapes and dtypes, which annotations cannot
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "attrs_inline", "colon_fence"]
suppress_warnings = ["myst.header"]  # pages of the README's kind begin where they like

html_theme = "pydata_sphinx_theme"
html_title = "dynarray"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system says
html_favicon = "static/icon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "dynarray", "image_light": "static/icon.svg", "image_dark": "static/icon.svg"},
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_end": ["theme-switcher"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "search_bar_text": "Search the pages and the API",
}
# Nothing stands beside pages that are alone in their part of the site.
ALONE = ("index", "install", "tour", "gallery", "papers", "benchmarks", "glossary", "release_notes")
html_sidebars: dict[str, list[str]] = {name: [] for name in ALONE}


def setup(app: Sphinx) -> None:
    """What Sphinx calls when it has read this file."""
    app.connect("source-read", _gallery.lead_to_pages)
