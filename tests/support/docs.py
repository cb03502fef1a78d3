"""Code blocks of README and docs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in one of the languages."""
    names = "|".join(languages)
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```(?:{names})\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: Path, *languages: str) -> Iterator[list[str]]:
    """The `lowland` commands of a page as words, also after a prompt or given to `ray job submit`."""
    for block in blocks(page, *(languages or ("bash", "sh", "console"))):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"\blowland\b", line):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "--" in words:
                words = words[words.index("--") + 1 :]
            if words[:1] == ["lowland"]:
                yield _without_redirection(words)


def _without_redirection(words: list[str]) -> list[str]:
    return words[: words.index(">")] if ">" in words else words
