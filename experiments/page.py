"""The report of a finished run: one HTML file that needs no other file, network or script."""

import base64
import dataclasses
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from experiments.drawing import is_whole
from experiments.family import (
    Family,
    command_for,
    defaults_of,
    settings_read,
    stored_config,
)
from experiments.report import Table
from jaxsparse.training import RunFolder, writing
from jaxsparse.training.errors import trusting
from jaxsparse.training.files import replace_text

NAME = "report.html"


class Picture(NamedTuple):
    """A figure of the page.

    Attributes:
      name: of its file.
      caption: what it shows, also for those who cannot see it.
      png: the bytes of the file; None if it was not drawn.
    """

    name: str
    caption: str
    png: bytes | None


class Page(NamedTuple):
    """What the report of a run shows.

    Attributes:
      title: the name of the run.
      what: a line that describes it.
      headline: its result in one line.
      command: makes a new run with the same settings.
      changed: the settings that differ from the preset's; columns setting, value, preset.
      settings: all others that the method reads; columns setting, value.
      record: versions, device, environment.
      tables, lines: the result.
      details: long tables, folded.
      pictures: the figures.
    """

    title: str
    what: str
    headline: str
    command: str
    changed: Table
    settings: Table
    record: Table
    tables: Sequence[Table]
    lines: Sequence[str]
    details: Sequence[Table]
    pictures: Sequence[Picture]


def write_page(family: Family, folder: RunFolder, result: dict[str, Any]) -> None:
    """Write the report of a finished run into its folder, unless it is there already.

    Args:
      family: the family of the run.
      folder: the folder of the run; figures that are in it are shown.
      result: the content of its result.json.

    Raises:
      RunError: the run's files have contents that no run writes.
      WriteError: the report cannot be written.
    """
    path = folder.path / NAME
    with trusting(folder.path):
        text = document(page_of(family, folder, result))
    with suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == text:
            return
    with writing(path):
        replace_text(path, text)


def page_of(family: Family, folder: RunFolder, result: dict[str, Any]) -> Page:
    """The content of the report of a run."""
    config, record = stored_config(family, folder), folder.config()
    report = family.Report(config, folder.path)
    default = dataclasses.asdict(defaults_of(family, config))
    read = settings_read(family, config)
    changed = [
        (name, setting(value), setting(default[name]))
        for name, value in read.items()
        if value != default[name]
    ]
    others = [(name, setting(value)) for name, value in read.items() if value == default[name]]
    facts = _flat({name: x for name, x in record.items() if name != "config"})
    return Page(
        title=folder.path.absolute().name,
        what=report.header,
        headline=report.headline(result),
        command=command_for(family, config),
        changed=Table(
            "Changed from the preset", ("setting", "value", "preset"), changed, "setting"
        ),
        settings=Table("As in the preset", ("setting", "value"), others, "setting"),
        record=Table("Versions, device, data", ("entry", "value"), list(facts), "entry"),
        tables=report.tables(result, folder.rows()),
        lines=report.lines(result),
        details=report.details(result),
        pictures=[
            Picture(name, family.CAPTIONS[name], path.read_bytes() if is_whole(path) else None)
            for name in family.FIGURES
            if (path := folder.path / name)
        ],
    )


def document(page: Page) -> str:
    """The page as HTML; every text of the run is escaped."""
    return "\n".join(
        ["<!DOCTYPE html>", '<html lang="en">', *_head(page), *_body(page), "</html>", ""]
    )


_LEGIBLE = 0.37  # the share of its width at which a figure can still be read
# No resource but what is in the file itself may be read, whatever a text of the run says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """\
:root { color-scheme: light dark; --back: #fff; --text: #1a1a1a; --faint: #666; --line: #d5d5d5;
  --card: #f5f6f7; }
@media (prefers-color-scheme: dark) { :root { --back: #16181b; --text: #e8e8e8; --faint: #a5a5a5;
  --line: #3a3d42; --card: #22252a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.result { font-size: 1.3rem; font-weight: 600; background: var(--card); padding: .75rem 1rem;
  border-radius: .5rem; }
.faint, caption, figcaption { color: var(--faint); }
caption { text-align: left; padding: .25rem 0; }
pre { background: var(--card); padding: .75rem; border-radius: .5rem; white-space: pre-wrap; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0 1rem; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th.name, td.name { text-align: left; } td.text { overflow-wrap: anywhere; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff;
  border-radius: .5rem; } summary { cursor: pointer; padding: .25rem 0; }
ul { padding-left: 1.2rem; }"""


def _head(page: Page) -> Iterator[str]:
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_text(_POLICY)}">'
    yield f"<title>{_text(page.title)}</title>"
    yield f"<style>\n{_STYLE}\n</style>"
    yield "</head>"


def _body(page: Page) -> Iterator[str]:
    yield "<body>"
    yield f"<h1>{_text(page.title)}</h1>"
    yield f'<p class="faint">{_text(page.what)}</p>'
    yield f'<p class="result">{_text(page.headline)}</p>'
    yield "<h2>Figures</h2>"
    for picture in page.pictures:
        yield from _figure(picture)
    yield "<h2>Result</h2>"
    for table in page.tables:
        yield from _table(table)
    if page.lines:
        yield "<ul>"
        yield from (f"<li>{_text(line)}</li>" for line in page.lines)
        yield "</ul>"
    for table in page.details:
        yield from _folded(table)
    yield "<h2>Settings</h2>"
    yield "<p>A new run with the same settings:</p>"
    yield f"<pre>{_text(page.command)}</pre>"
    if page.changed.rows:
        yield from _table(page.changed)
    yield from _folded(page.settings)
    yield from _folded(page.record)
    yield "</body>"


def _figure(picture: Picture) -> Iterator[str]:
    yield "<figure>"
    if picture.png is None:
        yield f"<p>{_text(picture.name)} was not drawn.</p>"
    else:
        # On a phone, a wide figure is scrolled: squeezed into the screen it could not be read.
        least = round(_LEGIBLE * int.from_bytes(picture.png[16:20]))  # its width, in the header
        source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
        yield (
            f'<div class="wide"><img alt="{_text(picture.caption)}" style="min-width:{least}px"'
            f' src="{source}"></div>'
        )
    yield f"<figcaption>{_text(picture.caption)}</figcaption>"
    yield "</figure>"


def _folded(table: Table) -> Iterator[str]:
    yield f"<details><summary>{_text(table.title)}</summary>"
    yield from _table(table, titled=False)
    yield "</details>"


def _table(table: Table, titled: bool = True) -> Iterator[str]:
    yield '<div class="wide"><table>'
    if titled:
        yield f"<caption>{_text(table.title)}</caption>"
    yield f"<thead>{_row('th', table, table.columns)}</thead><tbody>"
    yield from (_row("td", table, row) for row in table.rows)
    yield "</tbody></table></div>"


def _row(tag: str, table: Table, cells: Sequence[str]) -> str:
    opened = {name: f'{tag} class="name"' if name == table.left else tag for name in table.columns}
    shown = zip(opened.values(), cells, strict=True)
    return f"<tr>{''.join(f'<{start}>{_text(cell)}</{tag}>' for start, cell in shown)}</tr>"


def _text(text: str) -> str:
    """Text of the run, for HTML; file names may hold bytes that are no characters."""
    return html.escape(text.encode(errors="backslashreplace").decode())


def setting(value: Any) -> str:
    """A setting as a word."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(map(setting, value))
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.10g}"
    return "none" if value is None else str(value)


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The entries of a record under joined names."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", setting(value)
