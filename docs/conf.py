"""Sphinx's settings for the site that docs/build_site.py stages. Nothing on it asks the network for anything."""

import re

from rddlib import __version__

project, author, release = "rddlib", "the rddlib authors", __version__
html_title = f"rddlib {__version__}"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx-mathjax-offline"]
html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_show_sphinx = html_show_copyright = False
html_sourcelink_suffix = ""  # llms.txt leads to the pages as Markdown

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}  # sliders want a kernel; the figure above each says what they would show
nb_mime_priority_overrides = [("*", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True  # $$ ... $$ in the middle of a paragraph
myst_heading_anchors = 4
highlight_language = "text"
default_role = "code"  # docstrings mark code as Markdown does
smartquotes = False  # they hold values in quotes and options in two dashes

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
nitpicky = True
nitpick_ignore_regex = [
    ("py:(class|data|exc)", ".*")
]  # types in signatures: torch's and pandas's are described elsewhere


def _plain(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`: stars, bars and last underscores are no markup; "name: ..." begins a line."""
    for number, line in reversed(list(enumerate(lines))):
        lines[number] = re.sub(r"`[^`]*`|([*|]|_\b)", lambda m: rf"\{m[1]}" if m[1] else m[0], line)
        if re.match(r"\w+(, \w+)*: |Raises |Returns ", line):
            lines.insert(number, "")


def setup(app):
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon writes markup
