"""The report of a finished run: what it says, that it needs nothing else, that text is escaped."""

import base64
import json
import os
import warnings
from html.parser import HTMLParser

import pytest
from made_up_runs import RUNS, fewshot_run

from experiments import continual, fewshot, online, page, plots, runs
from experiments.family import command_for, settings_read

FAMILIES = {"fewshot": fewshot, "continual": continual, "online": online}
# Mean and sample standard deviation of the two seeds of each made-up run, worked out by hand.
HEADLINES = {
    "fewshot": "test accuracy 55.00% +- 7.07 (std over 2 seeds)",
    "continual": "retained accuracy 50.00% +- 14.14 (std over 2 seeds), sparsity 30.00% +- 0.00"
    " (std over 2 seeds)",
    "online": "online accuracy 50.00% +- 14.14 (std over 2 seeds)",
}
VOID = ("meta", "img", "br")


class Reader(HTMLParser):
    """The elements, images and words of a page; each element must be closed."""

    def __init__(self, text):
        super().__init__()
        self.images, self.words, self.tags, self.attributes, self.open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [value or "" for _, value in attrs]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "\n".join(self.words)


def drawn(family, run):
    runs.draw_missing(FAMILIES[family], run, run.result())
    return (run.path / page.NAME).read_text()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_page_shows_the_result_and_the_figures(name, tmp_path):
    run = RUNS[name](tmp_path / "run")
    read = Reader(drawn(name, run))
    assert HEADLINES[name] in read.words
    assert f"{page.setting(run.config()['config']['method'])} on" in read.text
    figures = [(tmp_path / "run" / figure).read_bytes() for figure in FAMILIES[name].FIGURES]
    sources = [image["src"].split(",")[1] for image in read.images]
    assert [base64.b64decode(source) for source in sources] == figures
    assert [image["alt"] for image in read.images] == list(FAMILIES[name].CAPTIONS.values())
    for word in ("0.10.2", "cpu", f"python -m experiments.{name}"):
        assert word in read.text
    for seed in run.result()["seeds"]:
        value = seed.get("retained_accuracy", seed.get("accuracy"))
        assert f"{100 * value:.2f}" in read.text


@pytest.mark.parametrize("name", FAMILIES)
def test_a_page_needs_nothing_else(name, tmp_path):
    text = drawn(name, RUNS[name](tmp_path / "run"))
    read = Reader(text)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert not {"script", "link", "iframe", "object"} & {*read.tags}
    assert all(image["src"].startswith("data:image/png;base64,") for image in read.images)
    assert "width=device-width, initial-scale=1" in read.attributes
    assert "prefers-color-scheme: dark" in text
    assert any("default-src 'none'; img-src data:" in value for value in read.attributes)


def test_the_accuracy_matrix_is_the_mean_over_seeds(tmp_path):
    words = Reader(drawn("continual", RUNS["continual"](tmp_path / "run"))).words
    words = [word for word in words if word.strip()]
    start = words.index("on 3") + 1
    assert words[start : start + 8] == [
        "1",
        "80.00",
        "10.00",
        "10.00",
        "2",
        "70.00",
        "80.00",
        "20.00",
    ]


def test_online_accuracy_by_dataset_is_shown(tmp_path):
    words = Reader(drawn("online", RUNS["online"](tmp_path / "run"))).words
    start = words.index("mean")
    assert words[start : start + 4] == ["mean", "50.00", "50.00", "25.00"]


def test_text_of_the_run_is_escaped(tmp_path):
    place = tmp_path / "<script>alert(1)<" / '"><img src=x>'
    read = Reader(drawn("fewshot", fewshot_run(place, data_dir="/<script>&amp;")))
    assert "script" not in read.tags and len(read.images) == len(fewshot.FIGURES)
    assert '"><img src=x>' in read.words  # as text


def test_a_setting_like_a_script_is_escaped(tmp_path):
    run = fewshot_run(tmp_path / "run", dataset="folder", data_dir="/<script>&amp;")
    read = Reader(drawn("fewshot", run))
    assert "script" not in read.tags
    assert "/<script>&amp;" in read.words
    assert any("'--data-dir=/<script>&amp;'" in word for word in read.words)


def test_a_name_that_is_not_text_is_shown(tmp_path):
    place = os.fsencode(tmp_path) + b"/run\xff"
    read = Reader(drawn("fewshot", fewshot_run(type(tmp_path)(os.fsdecode(place)))))
    assert "run\\udcff" in read.words


def test_changed_settings_come_first(tmp_path):
    words = Reader(drawn("fewshot", fewshot_run(tmp_path / "run", inner_lr=0.125))).words
    start = words.index("inner_lr")
    assert words[start : start + 3] == ["inner_lr", "0.125", "0.4"]
    assert words.index("As in the preset") > start
    assert "embedding" not in words  # only sparse-MAML+ reads it


@pytest.mark.parametrize(
    ("family", "flags"),
    [
        (fewshot, []),
        (fewshot, ["--method=fomaml", "--shots=1", "--inner-lr=0.1", "--no-bias", "--seeds=3"]),
        (fewshot, ["--dataset=omniglot", "--network=resnet12", "--channels", "8", "8", "8", "8"]),
        (fewshot, ["--preset=table-s1", "--clip=None"]),
        (continual, ["--stream=split-cifar10", "--method=er", "--memories=600"]),
        (continual, ["--method=mer", "--data=glyphs", "--clip-norm=2"]),
        (online, ["--p=0.9", "--data=glyphs", "--method=cmaml"]),
    ],
)
def test_the_command_of_a_run_makes_its_settings(family, flags):
    config = runs.read_flags(family, flags).config
    words = command_for(family, config).split()[3:]
    read = runs.read_flags(family, words).config
    assert settings_read(family, read) == settings_read(family, config)


def test_a_page_that_is_there_is_not_written_again(tmp_path):
    run = fewshot_run(tmp_path / "run")
    drawn("fewshot", run)
    path = tmp_path / "run" / page.NAME
    before = path.stat().st_mtime_ns
    drawn("fewshot", run)
    assert path.stat().st_mtime_ns == before
    path.write_text("damaged")
    assert "</html>" in drawn("fewshot", run)


def test_a_figure_that_is_not_there_is_said(tmp_path):
    run = fewshot_run(tmp_path / "run")
    page.write_page(fewshot, run, run.result())
    read = Reader((tmp_path / "run" / page.NAME).read_text())
    assert read.images == [] and "curves.png was not drawn." in read.words


@pytest.mark.parametrize("error", [OSError("disk is full"), ValueError("a\nmistake")])
def test_a_failed_report_is_one_warning(error, tmp_path, monkeypatch):
    def fail(*unused):
        raise error

    run = fewshot_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    monkeypatch.setattr(page, "replace_text", fail)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runs.draw_missing(fewshot, run, run.result())
    (line,) = (str(warning.message) for warning in told)
    assert f"{tmp_path / 'run' / page.NAME} is not written: " in line and "\n" not in line
    assert all((run.path / name).read_bytes() == content for name, content in before.items())


def test_the_command_of_figures_writes_the_page(tmp_path, capsys):
    fewshot_run(tmp_path / "run")
    fewshot_run(tmp_path / "short", finished=False)
    plots.main([str(tmp_path / "run")])
    assert capsys.readouterr().out.endswith("curves.png, sparsity.png, report.html\n")
    assert HEADLINES["fewshot"] in Reader((tmp_path / "run" / page.NAME).read_text()).words
    plots.main([str(tmp_path / "short")])
    assert capsys.readouterr().out.endswith("curves.png, sparsity.png\n")
    assert not (tmp_path / "short" / page.NAME).exists()


def test_a_run_of_an_unknown_setting_has_no_page(tmp_path, capsys):
    run = fewshot_run(tmp_path / "run")
    record = json.loads((run.path / "config.json").read_text())
    record["config"]["magic"] = 1
    (run.path / "config.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit) as stop:
        plots.main([str(tmp_path / "run")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "unknown settings: magic" in line
