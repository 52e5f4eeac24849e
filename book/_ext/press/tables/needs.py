"""What you need first: a short box before each chapter, ``{needs}``.

Its lines name earlier pages and statements, each with a phrase why.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

TITLE = "What you need first"
SYMBOLS = "book/back/symbols"


class Needs(SphinxDirective):
    """A list of what the page builds on, and the way to its symbols."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the box."""
        self.assert_has_content()
        box = nodes.container(classes=["pf-needs"])
        box += nodes.paragraph(TITLE, TITLE)
        self.state.nested_parse(self.content, self.content_offset, box)
        end = self.env.docname.startswith("book/back/")  # without symbols of its own
        if SYMBOLS in self.env.found_docs and not end:
            box += self.symbols()
        return [box]

    def symbols(self) -> nodes.paragraph:
        """Return a line that leads to the symbols of this page."""
        uri = self.env.app.builder.get_relative_uri(self.env.docname, SYMBOLS)
        link = nodes.reference(
            "", "the symbols of this page", refuri=f"{uri}#{anchor(self.env.docname)}"
        )
        link["internal"] = True
        return nodes.paragraph("", "", nodes.Text("See also: "), link, nodes.Text("."))


def anchor(name: str) -> str:
    """Return where the index of symbols speaks of a page."""
    return "symbols-" + name.removeprefix("book/").replace("/", "-")


def connect(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("needs", Needs)
