"""Statements, proofs and solutions that fold: native <details>, no script needed.

Statements are open and solutions closed; a proof is closed where the page marks it
``:class: dropdown``.  A proof's anchor is ``proof:`` and its statement's label.
"""

import re
from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import (  # type: ignore[import-untyped]
    depart_solution_node,
    solution_node,
    visit_solution_node,
)
from sphinx_proof.nodes import (  # type: ignore[import-untyped]
    NODE_TYPES,
    depart_enumerable_node,
    depart_unenumerable_node,
    proof_node,
    unenumerable_node,
    visit_enumerable_node,
    visit_unenumerable_node,
)

Visitor = Callable[[Any, nodes.Element], None]

STATEMENTS = (*NODE_TYPES.values(), unenumerable_node)
TITLE = re.compile(r'<p class="admonition-title"[^>]*>(.*?)</p>', re.S)
SHARED = (["proof-content"], ["exercise-content"], ["solution-content"])
FIRST = re.compile(r"\A(<div[^>]*>\s*<p>)Proof\. ?", re.S)
BUTTONS = (
    '\n<div class="pf-folding" role="group" aria-label="Proofs and solutions">'
    '<button type="button" data-fold="open">Open all proofs and solutions</button>'
    '<button type="button" data-fold="close">Close all</button></div>'
)


class Anchors(SphinxPostTransform):
    """Give each proof and solution an anchor of its own, which tells what it solves.

    The extensions give them serial numbers, and all of their contents one anchor.
    """

    default_priority = 200

    def run(self, **kwargs: Any) -> None:
        """Name the first proof after each statement, and the solutions."""
        label = ""
        for node in self.document.findall(nodes.Element):
            if isinstance(node, STATEMENTS):
                label = node["label"]
            elif isinstance(node, proof_node):
                node["ids"] = [f"proof:{label}"] if label else []
                label = ""
            elif isinstance(node, solution_node):
                node["ids"] = [f"solution:{node['target_label']}"]
            elif isinstance(node, nodes.section) and node["ids"][:1] in SHARED:
                node["ids"] = []


def closed(node: nodes.Element) -> bool:
    """Return whether the page asks for this box to be shut."""
    first = node.children[0] if isinstance(node, proof_node) else node
    return "dropdown" in first["classes"]


def box(node: nodes.Element, kind: str, summary: str, inner: str) -> str:
    """Return a box that folds."""
    opened = "" if closed(node) else " open"
    anchor = f' id="{node["ids"][0]}"' if node["ids"] else ""
    head = f"<summary>{summary}</summary>"
    return f'<details class="{kind}"{anchor}{opened}>\n{head}\n{inner}\n</details>\n'


def begin(translator: Any, node: nodes.Element) -> None:
    """Remember where in the page the box begins."""
    node["pf_start"] = len(translator.body)


def titled(kind: str, visit: Visitor, depart: Visitor) -> tuple[Visitor, Visitor]:
    """Return the visitors of a box with a title, which becomes its summary."""

    def opening(translator: Any, node: nodes.Element) -> None:
        begin(translator, node)
        visit(translator, node)

    def ending(translator: Any, node: nodes.Element) -> None:
        depart(translator, node)
        text = "".join(translator.body[node["pf_start"] :])
        title = TITLE.search(text)
        if title is None:
            raise ValueError(f"a {kind} without a title: {node.astext()[:60]}")
        inner = text[title.end() : text.rindex("</div>")].strip()
        classes = " ".join(c for c in [*node["classes"], kind] if c != "dropdown")
        whole = box(node, classes, title[1].strip(), inner)
        translator.body[node["pf_start"] :] = [whole]

    return opening, ending


def end_proof(translator: Any, node: nodes.Element) -> None:
    """Turn the finished proof into a box whose summary is the word "Proof"."""
    text = "".join(translator.body[node["pf_start"] :])
    inner = FIRST.sub(r"\1", text.strip()).partition(">")[2]
    inner = inner[: inner.rindex("</div>")].strip()
    whole = box(node, "proof pf-proof", "Proof", f'<div class="pf-inner">{inner}</div>')
    translator.body[node["pf_start"] :] = [whole]


def buttons(
    app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Offer to open everything where something is shut (html-page-context)."""
    body = context.get("body") or ""
    if re.search(r'<details class="[^"]*pf-(?:proof|solution)\b', body):
        context["body"] = body.replace("</h1>", "</h1>" + BUTTONS, 1)


def connect(app: Sphinx) -> None:
    """Replace the visitors of the boxes by ones that fold."""
    pairs = {node: titled("pf-statement", visit_enumerable_node, depart_enumerable_node)
             for node in NODE_TYPES.values()}  # fmt: skip
    pairs[unenumerable_node] = titled(
        "pf-statement", visit_unenumerable_node, depart_unenumerable_node
    )
    pairs[solution_node] = titled(
        "pf-solution", visit_solution_node, depart_solution_node
    )
    pairs[proof_node] = begin, end_proof
    for node, visitors in pairs.items():
        app.add_node(node, override=True, html=visitors)
    app.add_post_transform(Anchors)
    app.connect("html-page-context", buttons)
