"""MkDocs hook: README, CONTRIBUTING and CHANGELOG as pages; links that leave `docs/` mended."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# [text](target), also of an image, whose target has neither a scheme nor a leading "#".
LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are kept at the root of the repository."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page at pages of the site."""
    at_root = page.file.src_uri in PAGES.values()
    return LINK.sub(lambda match: link(match[1], match[2], at_root), markdown)


def link(text: str, target: str, at_root: bool) -> str:
    """Return the Markdown of a link of a page.

    A link to a file that is not in the site, such as a config, becomes its text.

    Args:
        text: What the link shows.
        target: The path of the file, relative to the page's file in the repository.
        at_root: Whether the page's file is at the root of the repository, not in `docs/`.
    """
    if at_root:
        target = target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
    if not target.startswith("../"):
        return f"[{text}]({target})"
    path, hash_sign, anchor = target.removeprefix("../").partition("#")
    return f"[{text}]({PAGES[path]}{hash_sign}{anchor})" if path in PAGES else text
