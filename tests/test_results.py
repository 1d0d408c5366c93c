"""The files in results/: small, complete, and the source of what the documents print."""

import json
import re
import shutil

import pytest
from test_reproduce import store, value

from experiments import drawing, reproduce
from experiments.tables import figures, saved
from experiments.tables.index import READS

ROOT = saved.RESULTS.parent
PAGES = "\n".join(page.read_text("utf-8") for page in reproduce.PAGES.glob("*.md"))


def flags_of(name):
    kind, _, label = name.partition(" ")
    return [f"--{kind}", label]


def show(name, *flags):
    reproduce.main(["--no-run", *flags_of(name), *flags])


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results files in place of the repository's."""
    place = tmp_path / "results"
    monkeypatch.setattr(saved, "RESULTS", place)
    return place


def test_results_are_few_and_small():
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert 0 < len(files) < 60
    assert sum(path.stat().st_size for path in files) < 3_000_000


def test_each_file_belongs_to_a_table_or_is_shown():
    shown = PAGES + (ROOT / "README.md").read_text("utf-8")
    for path in (ROOT / "results").iterdir():
        known = path.name in [saved.file_of(name).name for name in READS]
        assert known or f"results/{path.name}" in shown, path


@pytest.mark.parametrize("name", READS)
def test_the_document_prints_the_stored_results(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(figures, "save", lambda *_: None)
    section = PAGES.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0].rstrip()
    if not saved.file_of(name).exists():
        command = f"python -m experiments.reproduce {' '.join(flags_of(name))}"
        assert section == f"Not run yet: `{command}`."
        return
    show(name)
    printed = capsys.readouterr().out.rstrip()
    assert "|---|" in section
    if name == "table S6":  # it prints the scans before the table
        assert "scan on held-out" in printed
        printed = printed[printed.index("Settings chosen on held-out") :]
    assert printed == section


def test_the_readme_prints_the_same_figures():
    figures = re.findall(r"\d+\.\d\d \+- \d+\.\d\d", (ROOT / "README.md").read_text("utf-8"))
    assert len(figures) > 10
    assert not [figure for figure in figures if figure not in PAGES]


def test_a_folder_of_runs_is_saved_and_shown_again(tmp_path, capsys, results):
    store(tmp_path, "rotations", "er", (0.70, 0.71))
    stored = json.loads((tmp_path / "rotations-er/result.json").read_text())
    stored["seeds"][0]["accuracy"] = [[0.5] * 20] * 20
    (tmp_path / "rotations-er/result.json").write_text(json.dumps(stored))
    config = tmp_path / "rotations-er/config.json"
    config.write_text(
        config.read_text().replace('"data_dir": null', '"data_dir": "/home/somebody"')
    )
    where = ["--out", str(tmp_path), "--seeds", "2"]
    show("table 3", *where)
    before = capsys.readouterr().out
    show("table 3", *where, "--save")
    file = results / "table-3.json"
    assert capsys.readouterr().out == f"{before}saved: {file}\n"
    content = json.loads(file.read_text())
    assert content["flags"] == {"seeds": 2}
    run = content["runs"]["rotations-er"]
    assert run["config"]["method"] == "er" and run["config"]["data_dir"] is None
    # The whole result without the matrix.
    del stored["seeds"][0]["accuracy"]
    assert run["result"] == stored
    shutil.rmtree(tmp_path / "rotations-er")
    show("table 3")  # --seeds is in the file
    assert capsys.readouterr().out == before


def test_a_figure_is_drawn_from_its_file(tmp_path, capsys, results):
    store(tmp_path, "rotations", "lamaml", (0.7, 0.7), sparsity=0.2)
    where = ["--out", str(tmp_path), "--seeds", "2"]
    show("figure 3", *where)
    show("figure 3", *where, "--save")
    drawn = (tmp_path / "figure-3.png").read_bytes()
    picture = results / "figure-3.png"
    assert picture.read_bytes() == drawn
    picture.unlink()
    capsys.readouterr()
    show("figure 3")
    assert f"Figure: {picture}" in capsys.readouterr().out
    assert drawing.is_whole(picture) and picture.read_bytes() == drawn


def test_a_part_of_a_figure_does_not_replace_the_whole(tmp_path, capsys, results, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stream in ("rotations", "permutations"):
        for method in ("lamaml", "sparse-lamaml"):
            store(tmp_path / "runs", stream, method, (0.7, 0.7), sparsity=0.2)
    show("figure 3", "--out", "runs", "--seeds", "2", "--save")
    kept = (results / "figure-3.png").read_bytes()
    capsys.readouterr()
    show("figure 3", "--seeds", "2")
    assert "Figure: runs/reproduce/figure-3.png" in capsys.readouterr().out
    assert (results / "figure-3.png").read_bytes() == kept
    for flags in (["--seeds", "2"], ["--out", "runs"]):
        with pytest.raises(SystemExit) as stopped:
            show("figure 3", *flags, "--document")
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and "--document shows the figure of results/" in line
    page = tmp_path / "pages" / "page.md"
    page.parent.mkdir()
    page.write_text("<!-- figure 3 -->\n<!-- end of figure 3 -->\n")
    monkeypatch.setattr(reproduce, "PAGES", page.parent)
    monkeypatch.chdir(tmp_path / "pages")  # from here, results/ has an absolute path
    show("figure 3", "--document")
    assert "Figure: results/figure-3.png\n" in page.read_text()


def test_other_settings_than_those_of_the_file_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        show("table S5", "--seeds", "3")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "table-s5.json/rotations-lamaml holds a run of another configuration: seeds" in line


def damaged(**changes):
    run = {"config": {"stream": "rotations"}, "result": {"retained_accuracy": value(0.5)}}
    return json.dumps({"flags": {}, "runs": {"rotations-er": run}} | changes)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[1, 2]",
        "{}",
        damaged()[:40],
        damaged(flags={"sees": 2}),
        damaged(flags={"streams": 2}),
        damaged(runs=[]),
        damaged(runs={"rotations-er": {"config": {}}}),
        damaged(runs={"rotations-er": {"config": {}, "result": 3}}),
        damaged(runs={"rotations-er": {"config": {"method": "none"}, "result": {}}}),
    ],
)
def test_a_damaged_or_missing_file_is_one_line(text, capsys, results):
    results.mkdir()
    if text is not None:
        (results / "table-3.json").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        show("table 3")
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(results / "table-3.json") in line


def test_a_missing_folder_is_not_an_empty_table(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        show("table 1", "--out", str(tmp_path / "nowhere"))
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert line.endswith(
        f"--out: there is no folder {tmp_path / 'nowhere'}, and --no-run makes none"
    )


def test_a_missing_file_is_said_to_be_missing(capsys, results):
    with pytest.raises(SystemExit):
        show("table 3")
    (line,) = capsys.readouterr().err.splitlines()
    assert "no runs of table 3 are saved: there is no file" in line


def test_only_a_folder_of_runs_is_saved(tmp_path, capsys, results):
    for flags, message in (
        (["--save"], "--save needs the folder of the runs: name it with --out"),
        (["--save", "--out", str(tmp_path)], "there is nothing to show"),
    ):
        with pytest.raises(SystemExit) as stopped:
            show("table 3", *flags)
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not results.exists()
