"""The benchmark of startup: its stages add up, and it times the job's processes."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import startup

MARKS = {"imports": 1.5, "data": 2.0, "set_up": 4.0, "first_step": 10.0, "second_step": 10.5}


@pytest.fixture
def job(tmp_path):
    """A job that compiles in seconds, on images of noise."""
    labels = {"train": "ab", "val": "cd", "test": "ef"}
    for name in (f"{split}/{c}/{i}" for split in labels for c in labels[split] for i in range(2)):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)).save(path)
    return [
        *("--dataset=folder", f"--data-dir={tmp_path}/images", "--image-size=16", "--width=1"),
        *("--ways=2", "--shots=1", "--query-shots=1", "--meta-batch-size=1", "--inner-steps=1"),
    ]


def test_the_stages_add_up_to_the_total():
    seconds = startup.stages({**MARKS, "processor": 9.0})
    assert [seconds[stage] for stage in startup.STAGES] == [1.5, 0.5, 2.0, 5.5, 0.5]
    assert seconds["total"] == 10.0 and seconds["processor"] == 9.0
    middle = startup.medians([seconds, {**seconds, "total": 12.0}, {**seconds, "total": 70.0}])
    assert "12.0 s (imports 1.5, data 0.5, set up 2.0, compile 5.5" in startup.line("cold", middle)


@pytest.mark.slow
def test_a_process_is_timed_to_its_first_step(job, tmp_path):
    marks = startup.start(tmp_path / "cache", job)
    times = [marks[name] for name in MARKS]
    assert times == sorted(times) and times[0] > 0
    assert list((tmp_path / "cache" / "xla").iterdir())


def test_a_job_that_fails_is_one_line_and_status_1(job, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        startup.start(tmp_path / "cache", [*job, "--ways=3"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ended before its second step" in line and "ways" in line


@pytest.mark.parametrize("flag", ["--repeats=0", "--repeats=many", "--shots=5"])
def test_a_bad_flag_is_one_line_and_status_2(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        startup.main([flag])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
