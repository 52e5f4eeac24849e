"""The repository's address, configured once, and the buttons that it makes possible.

``_config.yml`` says ``repository: {url: …, branch: …}``.  An empty address makes no
button.  On a host that the theme knows the page links its source, an editor and the
list of issues; on another it links the repository alone.  Colab and Binder read
notebooks from a branch of a repository on GitHub: the workflow that publishes the
site keeps them on the branch ``notebooks``.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml  # type: ignore[import-untyped]
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

ADDRESS = re.compile(r"(https://[\w.-]+(?::\d+)?)/([\w./-]*[\w-])/([\w.-]+)")
KNOWN = {"github": "github.com", "gitlab": "gitlab.com", "bitbucket": "bitbucket.org"}
BRANCH = "notebooks"
RENAMED = {"fas fa-pencil-alt": "fas fa-pencil"}  # the theme has an icon's old name
COLAB = "https://colab.research.google.com/github"
BINDER = "https://mybinder.org/v2/gh"


class Repository(NamedTuple):
    """A public repository: its address, host, owner and name."""

    url: str
    host: str
    owner: str
    name: str

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """Return the configured repository, or None.

        Raises:
            ConfigError: The address is none of a repository.
        """
        url = str(config.press_repository).strip().rstrip("/").removesuffix(".git")
        if not url:
            return None
        match = ADDRESS.fullmatch(url)
        if not match:
            raise ConfigError(
                "repository.url in _config.yml must be https://<host>/<owner>/<name>, "
                f"or empty, got {url!r}"
            )
        return cls(url, match[1].removeprefix("https://"), match[2], match[3])

    @property
    def provider(self) -> str:
        """The kind of host, as the theme names it; "" for one it does not know."""
        return next((k for k, host in KNOWN.items() if host == self.host), "")


def configure(app: Sphinx, config: Config) -> None:
    """Tell the theme of the repository if it knows the host (config-inited).

    The settings are read here, since those of ``html_theme_options`` hide them.
    """
    path = Path(app.srcdir) / "_config.yml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    given = settings.get("repository") or {}
    config.press_repository = given.get("url") or ""
    repository = Repository.of(config)
    if not repository or not repository.provider:
        return
    config.html_theme_options |= {
        "repository_url": repository.url,
        "repository_branch": given.get("branch") or "main",
        "use_repository_button": True,
        "use_source_button": True,
        "use_edit_page_button": True,
        "use_issues_button": repository.provider != "bitbucket",
    }


def buttons(
    app: Sphinx,
    name: str,
    template: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Add what the repository makes possible on this page (html-page-context)."""
    repository = Repository.of(app.config)
    if repository is None:
        return
    shown = context.get("header_buttons", [])
    for entry in (e for group in shown for e in group.get("buttons", [])):
        entry["icon"] = RENAMED.get(entry["icon"], entry["icon"])
    if not repository.provider:
        shown.append(link("Repository", repository.url, "fas fa-code-branch"))
    if repository.provider == "github" and "press_notebook" in context:
        shown.append(launch(repository, context["press_notebook"]))


def launch(repository: Repository, file: str) -> dict[str, Any]:
    """Return the menu of machines that run a notebook of the repository."""
    path = f"{repository.owner}/{repository.name}"
    places = {
        "Colab": f"{COLAB}/{path}/blob/{BRANCH}/{file}",
        "Binder": f"{BINDER}/{path}/{BRANCH}?urlpath=lab/tree/{file}",
    }
    return {
        "type": "group",
        "tooltip": "Run this page",
        "icon": "fas fa-rocket",
        "label": "launch-buttons",
        "buttons": [link(k, url, "fas fa-play") for k, url in places.items()],
    }


def link(text: str, url: str, icon: str) -> dict[str, str]:
    """Return a button of the header."""
    label = f"launch-{text.lower()}"
    tip = f"Open in {text}" if icon == "fas fa-play" else "Source repository"
    return {"type": "link", "text": text, "url": url, "icon": icon, "tooltip": tip,
            "label": label}  # fmt: skip
