"""Reproduce tables and figures of the paper: run what they need, print our numbers and the paper's.

python -m experiments.reproduce --table S5 --no-run
python -m experiments.reproduce --table S5
python -m experiments.reproduce --table 3 --methods sparse-lamaml er
python -m experiments.reproduce --table S8 --p 0.98 --seeds 3 --timesteps 1000
python -m experiments.reproduce --figure S3
python -m experiments.reproduce --table 1 --scale paper
python -m experiments.reproduce --table S6 --sweep
python -m experiments.reproduce --claims
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import cli, runs
from experiments.tables import claims, saved
from experiments.tables.flags import Flags
from experiments.tables.index import READS, SWEEPS, Known, Reads
from experiments.tables.runner import Runner
from jaxsparse.training import RunError, writing
from jaxsparse.training.errors import one_line, trusting
from jaxsparse.training.files import replace_text

PROG = "python -m experiments.reproduce"
CLAIMS = Path(__file__).resolve().parent.parent / "docs" / "claims.md"
PAGES = CLAIMS.parent / "reproducing"


def main(args: Sequence[str] | None = None) -> None:
    """Parse the flags, run what is missing, print the table."""
    given = list(sys.argv[1:] if args is None else args)
    with cli.command():
        flags = cli.parse(Flags, given, Flags(), PROG)
        if [bool(flags.table), bool(flags.figure), flags.claims].count(True) != 1:
            cli.fail("want one of --table, --figure and --claims")
        if flags.claims:
            _write_claims(given)
            return
        for name in ("seeds", "timesteps"):
            if getattr(flags, name) < 1:
                cli.fail(f"--{name} must be 1 or more, got {getattr(flags, name)}")
        cli.use_all_cores()
        cli.use_compilation_cache()
        cli.start_backend()
        name = f"table {flags.table}" if flags.table else f"figure {flags.figure}"
        reads = _reads(flags, name)
        called = f"{name} --sweep" if flags.sweep else name
        _check_read(flags, called, reads.flags, cli.given(given))
        if flags.document:
            _check_document(flags, name, given)  # fail now rather than after the runs
        flags, runner = _open(flags, name, given)
        with trusting(runner.place):
            lines = reads.show(flags, runner)
        cli.say("\n".join(lines))
        if flags.document or flags.save:
            runner.check_found()
        if flags.document:
            shown = f"Figure: {runner.pictures}/"
            write_section(PAGES, name, [x.replace(shown, "Figure: results/") for x in lines])
        if flags.save:
            _save(flags, name, reads.flags, runner)


def _reads(flags: Flags, name: str) -> Reads:
    """The table or figure; with --sweep those that have one."""
    if not flags.sweep:
        return READS[name]
    if name not in SWEEPS:
        known = ", ".join(table.removeprefix("table ") for table in SWEEPS)
        cli.fail(f"--sweep is read only with --table {known}, not with --{name}")
    for flag in ("save", "document", "keep"):
        if getattr(flags, flag):
            cli.fail(f"--{flag} is not read with --sweep")
    return SWEEPS[name]


def _open(flags: Flags, name: str, given: Sequence[str]) -> tuple[Flags, Runner]:
    """A `Runner` for the table, and the flags; a results file has its own defaults of the flags."""
    command = cli.command_line(PROG, given)
    out = runs.user_path("--out", flags.out or Path("runs/reproduce"))
    if flags.run or flags.out is not None or flags.sweep:
        if not flags.run and not out.is_dir():
            cli.fail(f"--out: there is no folder {out}, and --no-run makes none")
        pictures = saved.results() if flags.save else out
        kept = saved.read_all(name) if flags.keep else []
        return flags, Runner(out, flags.run, command, kept, pictures)
    if flags.keep:
        cli.fail("--keep adds to the folder of the runs: name it with --out")
    if flags.save:
        cli.fail("--save needs the folder of the runs: name it with --out")
    file = saved.read(name)
    with trusting(file.path):
        stored = {name: x for name, x in file.flags.items() if name not in cli.given(given)}
        flags = dataclasses.replace(flags, **stored)
    pictures = saved.results() if _is_kept(flags, name, given) else out
    return flags, Runner(file.path, False, command, [file], pictures)


def _check_document(flags: Flags, name: str, given: Sequence[str]) -> None:
    """Refuse to document a figure that differs from the one in results/, and a missing section."""
    if flags.figure and not flags.save and not _is_kept(flags, name, given):
        cli.fail("--document shows the figure of results/: write it there with --save")
    section(PAGES, name)


def _is_kept(flags: Flags, name: str, given: Sequence[str]) -> bool:
    """Whether the flags show a results file alone, and all of it."""
    return not (flags.run or flags.out or {*cli.given(given)} & READS[name].flags.keys())


def _write_claims(given: Sequence[str]) -> None:
    """Write `docs/claims.md` from the results files."""
    others = {*cli.given(given)} - {"claims"}
    if others:
        cli.fail(f"--{min(others).replace('_', '-')} is not read with --claims")
    with trusting(saved.results()):
        lines = claims.document()
    with writing(CLAIMS):
        replace_text(CLAIMS, "\n".join([*lines, ""]))
    cli.say(f"written: {CLAIMS}")


def _save(flags: Flags, name: str, known: Known, runner: Runner) -> None:
    """Write the results file of a table, with the flags that differ from the defaults."""
    old = saved.read_or_empty(name)
    found = {**old.runs, **runner.found} if flags.keep else runner.found
    if lost := sorted(run for run in old.runs if saved.loses(old.runs[run], found.get(run))):
        cli.fail(
            f"{old.path} would lose {len(lost)} runs, or their tests on other data, that"
            f" {runner.place} lacks, such as {lost[0]}; keep them with --keep, or delete the file"
        )
    defaults = Flags()
    changed = {flag: getattr(flags, flag) for flag in known}
    if flags.keep and old.runs:
        for flag, value in changed.items():
            stored = old.flags.get(flag, getattr(defaults, flag))
            changed[flag] = _union(stored, value, known[flag] or getattr(defaults, flag))
    changed = {flag: x for flag, x in changed.items() if x != getattr(defaults, flag)}
    cli.say(f"saved: {saved.write(name, changed, found)}")


def _union(old: Any, new: Any, order: Sequence[Any]) -> Any:
    """The value of a flag that shows the runs of both values; an empty tuple shows all.

    Values are in the order of the flag's known values; others come last.
    """
    if not isinstance(new, tuple):
        return new
    both = tuple(dict.fromkeys((*order, *old, *new))) if old and new else ()
    return tuple(value for value in both if value in (*old, *new))


def _check_read(flags: Flags, name: str, known: Known, given: Sequence[str]) -> None:
    """Refuse flags that the table does not read, and values that it does not have."""
    for field in ("streams", "methods", "memories", "p", "timesteps", "seeds", "scale"):
        if field not in given:
            continue
        if field not in known:
            cli.fail(f"--{field} is not read with --{name}")
        values, allowed = getattr(flags, field), known[field]
        if not isinstance(values, tuple):
            continue
        if not values:
            cli.fail(f"--{field} must have at least one value, got none")
        if len(set(values)) < len(values):
            cli.fail(f"--{field} must have different values, got {' '.join(map(str, values))}")
        for value in values:
            if allowed is not None and value not in allowed:
                listed = ", ".join(map(str, allowed))
                cli.fail(f"--{field} must be one of {listed} with --{name}, got {value}")


def section(pages: Path, name: str) -> tuple[Path, str, str]:
    """The page that has a section, and its text before and after; without one a `RunError`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    for page in sorted(pages.glob("*.md")):
        try:
            before, found, rest = page.read_text(encoding="utf-8").partition(begin)
        except (OSError, ValueError) as error:
            raise RunError(f"{page} cannot be read: {one_line(error)}") from error
        _, closed, after = rest.partition(end)
        if found and closed:
            return page, before + begin, end + after
    raise RunError(f"a page of {pages} must contain {begin} and {end}")


def write_section(pages: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the lines of a section in the page that has it."""
    page, before, after = section(pages, name)
    with writing(page):
        replace_text(page, "\n".join([before, *lines, after]))


if __name__ == "__main__":
    main()
