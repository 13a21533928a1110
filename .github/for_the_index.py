"""Prepare README and pyproject.toml for a package index, where links of the repository lead nowhere.

The release workflow runs this before it builds: relative links become absolute, pictures show, and the
repository's address, which the workflow knows and the sources do not, goes into the project's metadata.

    python .github/for_the_index.py https://github.com owner/name v0.2.0
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def absolute(text: str, address: str, tag: str) -> str:
    """A README whose links and pictures lead to the repository as it is at a tag."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}[{found[2]}]({address}/{kind}/{tag}/{found[3]})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)", link, text)


def with_addresses(project: str, address: str, tag: str) -> str:
    """A pyproject.toml that says where sources, pages and changes are, unless it says so already."""
    if "[project.urls]" in project:
        return project
    urls = {"Source": address, "Documentation": f"{address}/blob/{tag}/docs/index.md"}
    urls |= {"Changes": f"{address}/blob/{tag}/CHANGELOG.md", "Issues": f"{address}/issues"}
    table = "\n".join(f'{name} = "{url}"' for name, url in urls.items())
    return project.replace(
        "[project.optional-dependencies]", f"[project.urls]\n{table}\n\n[project.optional-dependencies]"
    )


def version(root: Path) -> str:
    """What the sources call themselves."""
    (found,) = re.findall(
        r'^__version__ = "(.*)"$', (root / "dynarray" / "__init__.py").read_text(), flags=re.M
    )
    return found


def main(server: str, repository: str, tag: str, root: Path = ROOT) -> None:
    """Write both files anew, if the tag is that of the version."""
    if tag != f"v{version(root)}":
        sys.exit(f"the tag is {tag}, and the version {version(root)}")
    address = f"{server}/{repository}"
    for path, change in ((root / "README.md", absolute), (root / "pyproject.toml", with_addresses)):
        path.write_text(change(path.read_text("utf-8"), address, tag), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
