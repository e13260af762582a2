"""What the documentation links to is there: files, pictures, and headings within files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "workers", "service", "tests")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *(ROOT / folder / "README.md" for folder in FOLDERS)]
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return FENCED.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """Of all headings, as GitHub names them: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path):
    for link in LINK.findall(prose(document)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_no_two_headings_share_an_anchor(document: Path):
    """GitHub would number them, and a link would lead to the first."""
    assert len(anchors(document)) == len(re.findall(r"^#+ ", prose(document), re.MULTILINE))


def test_the_landing_page_leads_to_every_other_document():
    linked = {link.partition("#")[0] for link in LINK.findall(prose(ROOT / "README.md"))}
    assert {str(d.relative_to(ROOT)) for d in DOCUMENTS} - linked == {"README.md"}
