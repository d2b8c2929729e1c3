"""The documents lead somewhere: files, anchors and pictures that they link to are there, and every public name."""

from __future__ import annotations

import re

import pytest
from doc_pages import ROOT

import statewise

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read_text(page):
    """Without blocks of code, whose brackets are no links and whose `#` are no headings."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors_of(page):
    """The anchors of headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", read_text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page, root=ROOT):
    for link in LINK.findall(read_text(page)):
        where, _, anchor = link.partition("#")
        target = (page.parent / where).resolve() if where else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.is_relative_to(root) or not target.exists() or (anchor and anchor not in anchors_of(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    assert [*broken_links(page)] == []


def test_a_link_to_no_file_or_heading_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b.c` d, e\n[x](#a-bc-d-e) [y](#a) [z](gone.md) [w](https://x.org)\n```\n[v](gone.md)\n```\n")
    assert [*broken_links(page, tmp_path)] == ["#a", "gone.md"]


def test_the_reference_has_every_public_name():
    given = re.findall(r"^::: statewise\.(?:api\.)?(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert set(statewise.__all__) - {"__version__"} <= set(given)
