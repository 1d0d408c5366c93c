"""What MkDocs does not do by itself: pages show the figures in `results/`.

In the repository, pages link to files beside `docs/`, which the site does not have. Pictures in
`results/` are added to the site; a link to other files becomes their name.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(
    r"\[([^\]]*)\]\((?:\.\./)+((?:benchmarks|experiments|jaxsparse|tests)/[^)]*)\)"
)
DRAWN = re.compile(r"^Figure: (results/\S+\.png)$", re.MULTILINE)  # a line of `reproduce`


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures of `results/`, and two documents of the top level."""
    added = {f"results/{path.name}": path for path in sorted((ROOT / "results").glob("*.png"))}
    added["contributing.md"] = ROOT / "CONTRIBUTING.md"
    added["changelog.md"] = ROOT / "CHANGELOG.md"
    for name, path in added.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show the figures of a page, and replace its links to files that the site does not have."""
    up = "../" * page.file.src_uri.count("/")
    markdown = DRAWN.sub(rf"![\1]({up}\1)", markdown)
    markdown = markdown.replace(f"]({up}../results/", f"]({up}results/")
    return OUTSIDE.sub(r"`\2`", markdown)
