"""What the site has beside docs/, as hooks of mkdocs: README and its like are pages, every how-to stands in the nav.

The documents link to each other as files of the repository, where they are read too. Here those links lead to pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE_DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff")
# What a browser fetches by itself; a link that a reader follows may lead anywhere.
FETCHED = re.compile(
    r'<(?:script|img|iframe)\b[^>]*\bsrc="(?:https?:)?//[^"]*|<link\b[^>]*\bstylesheet\b[^>]*"(?:https?:)?//[^"]*'
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A folder in the nav stands for its pages."""
    docs = Path(config.docs_dir)
    for entry in config.nav or []:
        for title, where in entry.items():
            if isinstance(where, str) and where.endswith("/"):
                entry[title] = [path.relative_to(docs).as_posix() for path in sorted(docs.glob(f"{where}*.md"))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files beside docs/ belong to the site."""
    for name in BESIDE_DOCS:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between docs/ and the files beside it: on the site they are one folder."""
    if page.file.src_uri in BESIDE_DOCS:
        return markdown.replace("](docs/", "](")
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./({'|'.join(map(re.escape, BESIDE_DOCS))})", rf"]({up}\1", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A bar within a table stands for itself, in code too, as on GitHub; Python-Markdown leaves the backslash."""
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html, flags=re.DOTALL)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that would fetch something from elsewhere when it is opened."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri}: its page fetches {found[0]!r}; keep a copy in docs/")
    return output


class Doctests(Extension):
    """Examples within docstrings are code; Markdown would take `>>>` for quotations."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^>>> (?:.+\n?)+", r"```pycon\n\g<0>\n```\n", obj.docstring.value)
