"""A report as a list of blocks, written as Markdown and as one page of HTML that needs no other file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.files import write_text

STYLE = """
body { font: 16px/1.5 Georgia, serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #bbb; text-align: left; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; }
code { background: #f2f2f2; padding: 0 .2rem; }
"""


@dataclass
class Heading:
    text: str
    level: int = 2


@dataclass
class Text:
    text: str


@dataclass
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # a cell may have several lines


@dataclass
class Figure:
    """A picture that stands beside the report as NAME.png and NAME.svg."""

    name: str
    caption: str


Block = Heading | Text | Table | Figure


def write(folder: Path, title: str, blocks: Sequence[Block]) -> None:
    """Writes `report.md` and `report.html` into a folder that holds the figures."""
    blocks = [Heading(title, 1), *blocks]
    write_text(folder / "report.md", "\n\n".join(map(_markdown, blocks)) + "\n")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>"
    body = "\n".join(_html(block, folder) for block in blocks)
    page = f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'
    write_text(folder / "report.html", page)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *rows]
            cells = [[cell.replace("|", r"\|").replace("\n", "<br>") for cell in line] for line in lines]
            return "\n".join(f"| {' | '.join(line)} |" for line in cells)
        case Figure(name, caption):
            return f"![{caption}]({name}.png)\n\n*{caption}*"


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Table(header, rows):
            head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
            body = "\n".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        case Figure(name, caption):
            data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
            picture = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            return f"<figure>{picture}<figcaption>{_inline(caption)}</figcaption></figure>"


def _inline(text: str) -> str:
    """The little Markdown that reports use, escaped: `code`, **bold**, line breaks."""
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return text.replace("\n", "<br>\n")
