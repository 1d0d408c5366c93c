"""Figures that compare finished runs of one family."""

import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import continual, fewshot, online
from experiments.drawing import Rows, Shown, literal, rendered, write
from experiments.family import Family, defaults_of, name_of, settings_read, stored_config
from experiments.page import setting
from experiments.style import lines, own_style
from jaxsparse.training import RunError, RunFolder
from jaxsparse.training.errors import reading

FAMILIES: Mapping[str, Any] = {"fewshot": fewshot, "continual": continual, "online": online}
PLACE = Path("runs/plots")
# These need no name in a label; where data lie is no difference.
_NAMELESS = ("method", "dataset", "data", "stream", "network")
_SAME = ("data_dir",)
_MARK = "runs"  # the entry of a picture that says which runs it shows


class Run(NamedTuple):
    """A run that can be drawn.

    Attributes:
      name: its folder, as the user named it.
      family: its family.
      folder: its folder.
      rows: its metrics.
      result: the content of its result.json; None before its end.
    """

    name: str
    family: Family
    folder: RunFolder
    rows: Rows
    result: Any


def read_run(name: str, path: Path) -> Run:
    """A run with what its figures need.

    Raises:
      RunError: there is no run, it is damaged, or it has too little to be drawn: a few-shot run
        needs the metrics of an epoch, a run on a stream its result.
    """
    folder = RunFolder.open(path)
    rows, result = folder.rows(), folder.result()
    units = {family.UNIT: family for family in FAMILIES.values()}
    found = [units[unit] for unit in units if any(row.get(unit) for row in rows)]
    if fewshot in found:
        return Run(name, units[fewshot.UNIT], folder, rows, result)
    if result is not None and found:
        return Run(name, found[0], folder, rows, result)
    raise RunError(f"{path} has neither metrics of an epoch nor the result of a stream")


def compare(runs: Sequence[Run], out: Path | None) -> list[Path]:
    """Draw the figures that compare runs, and return their paths.

    Args:
      runs: two or more runs.
      out: a folder for the figures, or a file that ends in .png for all of them one below the
        other; None: a folder under runs/plots that belongs to these runs.

    Raises:
      RunError: the runs are of different families, the same run is named twice, a run is damaged,
        or a file that is not a figure of these runs would be replaced.
      WriteError: a figure cannot be written.
    """
    family = runs[0].family
    for run in runs[1:]:
        if run.family is not family:
            raise RunError(
                f"want runs of one family, got {runs[0].name} ({name_of(family)}) and"
                f" {run.name} ({name_of(run.family)})"
            )
    places = [run.folder.path.resolve() for run in runs]
    for one, other in itertools.combinations(range(len(runs)), 2):
        if places[one] == places[other]:
            raise RunError(f"want different runs, got {runs[one].name} and {runs[other].name}")
    mark = hashlib.sha256("\0".join(map(str, places)).encode(errors="surrogateescape")).hexdigest()
    out = PLACE / f"{name_of(family)}-{mark[:12]}" if out is None else out
    paths = _paths(out, family, mark)
    pictures = _pictures(family, _shown(runs))
    if len(paths) == 1:
        pictures = [_below_each_other(pictures)]
    for path, picture in zip(paths, pictures, strict=True):
        write(_marked(picture, mark), path, make_folder=True)
    return paths


def _paths(out: Path, family: Family, mark: str) -> list[Path]:
    """Where the figures go; what is there must be a figure of the same runs."""
    with reading(out):
        ending = "" if out.is_dir() else out.suffix.lower()
        is_taken = ending != ".png" and (out.exists() or out.is_symlink()) and not out.is_dir()
    if is_taken or ending in (".pdf", ".svg", ".jpg", ".jpeg", ".html"):
        raise RunError(f"--out must be a folder or a file that ends in .png, got {out}")
    one_file = ending == ".png"
    paths = [out] if one_file else [out / name for name in family.COMPARED]
    for path in paths:
        with reading(path):
            if path.exists() and _mark_of(path) != mark:
                raise RunError(f"{path} is not a figure of these runs; name another --out")
    return paths


def _shown(runs: Sequence[Run]) -> list[Shown]:
    """The runs with their labels and looks."""
    labels = labels_of(runs)
    return [
        Shown(literal(label), run.rows, run.result, look)
        for run, label, look in zip(runs, labels, itertools.cycle(lines()), strict=False)
    ]


def labels_of(runs: Sequence[Run]) -> list[str]:
    """What tells each run from the others: the settings that differ between the runs.

    A setting that a run has from its preset is left out where the label is clear without it.

    Examples:
      >>> labels_of([read_run("a", Path("a")), read_run("b", Path("b"))])
      ['sparse-maml', 'fomaml, inner_lr 0.1']
    """
    configs = [stored_config(run.family, run.folder) for run in runs]
    read = [settings_read(run.family, c) for run, c in zip(runs, configs, strict=True)]
    names = dict.fromkeys(name for settings in read for name in settings if name not in _SAME)
    differ = [
        name
        for name in names
        if len({repr(settings[name]) for settings in read if name in settings}) > 1
    ]
    full, short = [], []
    for run, config, settings in zip(runs, configs, read, strict=True):
        default = defaults_of(run.family, config)
        words = {name: _word(name, settings[name]) for name in differ if name in settings}
        full.append(", ".join(words.values()))
        chosen = (n for n in words if n in _NAMELESS or settings[n] != getattr(default, n))
        short.append(", ".join(words[name] for name in chosen))
    labels = short if all(short) and len({*short}) == len(short) else full
    return [
        _ended(
            run, label if labels.count(label) == 1 else ", ".join(filter(None, (label, run.name)))
        )
        for run, label in zip(runs, labels, strict=True)
    ]


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return setting(value) if name in _NAMELESS else f"{name} {setting(value)}"


def _ended(run: Run, label: str) -> str:
    return label if run.result is not None else f"{label} (unfinished)"


def _pictures(family: Family, shown: Sequence[Shown]) -> list[bytes]:
    """The figures, in the order of `family.COMPARED`."""
    pictures = []
    for name, draw in family.COMPARED.items():
        try:
            with own_style():
                pictures.append(rendered(draw(shown)))
        except Exception as error:  # numbers that no run writes
            raise RunError(f"{name} is not drawn: {type(error).__name__}, {error}") from error
    return pictures


def _below_each_other(pictures: Sequence[bytes]) -> bytes:
    """One picture of several."""
    from PIL import Image

    parts = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    size = max(part.width for part in parts), sum(part.height for part in parts)
    whole, top, buffer = Image.new("RGB", size, "white"), 0, io.BytesIO()
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    whole.save(buffer, format="png")
    return buffer.getvalue()


def _marked(picture: bytes, mark: str) -> bytes:
    """The picture with the mark of its runs."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    info.add_text(_MARK, mark)
    Image.open(io.BytesIO(picture)).save(buffer, format="png", optimize=True, pnginfo=info)
    return buffer.getvalue()


def _mark_of(path: Path) -> str | None:
    """The mark of a picture; None without one."""
    from PIL import Image

    try:
        if not path.is_file():  # opening a pipe would wait
            return None
        with Image.open(path) as picture:
            picture.load()
            return picture.info.get(_MARK)
    except Exception:  # Pillow has many; none is a picture of ours
        return None
