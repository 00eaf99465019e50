"""Sphinx: the pages of this folder, the API from its docstrings, equations as MathML; nothing from the network."""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

import stca

project = "stca"
version = release = stca.__version__
project_copyright = "the authors of stca, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3
default_role = "py:obj"
viewcode_follow_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_ivar = True
napoleon_custom_sections = ["Shapes", "Source"]

html_theme = "furo"
html_title = f"stca {version}"
html_math_renderer = "mathml"
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["stca.css"]

_mathml, _log = LatexToMathML(), getLogger(__name__)


def _converted(node: nodes.math | nodes.math_block, display: bool) -> str:
    """An equation as MathML; one that cannot be converted is a warning, and so ends `make docs`."""
    try:
        return _mathml.convert_with_local_state(node.astext(), displaystyle=display)
    except LatexError as error:
        _log.warning("equation %r: %s", node.astext(), error, location=node)
        return ""


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_converted(node, display=False))
    raise nodes.SkipNode


def _display(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(_converted(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Registers how equations are written."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
