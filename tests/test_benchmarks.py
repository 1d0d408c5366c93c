"""The benchmark: its contestants agree, its figures are right, errors are one line."""

import contextlib
import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from benchmarks import curves, families, harness, inner_loop, machine, probe, report
from benchmarks.cases_continual import GlanceCase, split_cifar
from benchmarks.cases_fewshot import FewShotCase
from benchmarks.cases_resnet12 import ResNetCase
from benchmarks.families import GLANCE, RESNET12, SPARSE_MAML
from jaxsparse.training import WriteError

TINY = FewShotCase(tasks=2, shots=1, image=(16, 16, 1), width=4, inner_steps=2, query_shots=2)
TINY_FLAGS = [
    *("--tasks=2", "--shots=1", "--size=16", "--width=4", "--inner-steps=2", "--query-shots=2"),
    *("--device=cpu", "--repeats=1"),
]
QUICK = harness.Setting(repeats=1, probe=False)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One folder of compiled programs for the whole module, because ours compile slowly."""
    cache = tmp_path_factory.mktemp("programs")
    with probe.keeping_programs(cache):
        jax.jit(lambda x: x + 1)(1.0).block_until_ready()  # opens it
        yield cache


@pytest.fixture(scope="module")
def arrays():
    """The tiny case's tasks.

    The seed is fixed, and steps and images are few, so that no activation is within rounding of
    zero and no two in a pooling window are within rounding of each other. PyTorch sums in another
    order: a flipped ReLU or maximum changes the gradient, and more steps would amplify it.
    """
    return TINY.draw()


@pytest.fixture(scope="module")
def reference(arrays, programs):
    return harness.reference_step(SPARSE_MAML.make("jaxsparse", TINY, arrays), arrays)


@pytest.fixture
def small_products(monkeypatch):
    monkeypatch.setitem(machine.MATMUL_SIZE, "cpu", 64)


def one_line(capsys) -> str:
    """The one error line on stderr, without the progress."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("  ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


# ---- the same arithmetic


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize(
    "form",
    ["loop", "channels_last", "vmap", pytest.param("compile", marks=pytest.mark.slow)],
)
def test_pytorch_makes_the_same_step(form, arrays, reference):
    pytest.importorskip("torch")
    contestant = SPARSE_MAML.make(form, TINY, arrays)
    contestant.step()
    errors = harness.check(form, contestant, reference)
    assert max(errors["change"].values()) < 1e-4, errors
    assert max(errors["result"].values()) < 1e-6, errors


@pytest.mark.parametrize(
    "case",
    [split_cifar("sparse-lamaml"), split_cifar("lamaml", second_order=True)],
    ids=["first order", "second order"],
)
def test_pytorch_makes_the_same_glances_with_convolutions(case):
    pytest.importorskip("torch")
    sizes = {"image": (9, 8, 3), "channels": 4, "hidden": (8,), "inner_steps": 3, "meta_rows": 8}
    case = dataclasses.replace(case, convolutions=1, mask_lr=1.0, **sizes)
    arrays = case.draw()
    reference = harness.reference_step(GLANCE.make("jaxsparse", case, arrays), arrays)
    forms = [form for form in ("loop", "sums") if GLANCE.fits(form, case)]
    assert forms == (["loop"] if case.second_order else ["loop", "sums"])
    for form in forms:
        contestant = GLANCE.make(form, case, arrays)
        contestant.step()
        errors = harness.check(form, contestant, reference)
        assert max(errors["change"].values()) < 1e-4, (form, errors)


TINY_RESNET = ResNetCase(shots=1, image=(16, 16, 1), width=2, inner_steps=2, query_shots=1)


@pytest.mark.parametrize("form", [pytest.param("loop", marks=pytest.mark.slow), "channels_last"])
@pytest.mark.slow
def test_pytorch_makes_the_same_step_with_resnet12(form):
    pytest.importorskip("torch")
    arrays = TINY_RESNET.draw()
    reference = harness.reference_step(RESNET12.make("jaxsparse", TINY_RESNET, arrays), arrays)
    contestant = RESNET12.make(form, TINY_RESNET, arrays)
    contestant.step()
    errors = harness.check(form, contestant, reference)
    assert max(errors["change"].values()) < 1e-3, errors
    assert max(errors["result"].values()) < 1e-5, errors


def test_flops_of_resnet12():
    case = dataclasses.replace(TINY_RESNET, shots=1, query_shots=1, inner_steps=1)
    # 16x16 -> 8x8 -> 4x4 -> 3x3, as the third pooling has padding. The first 3x3 and 1x1 layers
    # have no gradient of their input.
    blocks = [(256, 2, 1, 2), (64, 3, 2, 4), (16, 3, 4, 8), (9, 3, 8, 16)]
    layers = sum(2 * at * (p * 10 * i * o + 3 * 18 * o * o) for at, p, i, o in blocks)
    assert case.flops() == 10 * (layers + 3 * 2 * 16 * 5)


def test_flops_of_a_glance():
    case = GlanceCase(
        image=(5, 5, 1), convolutions=1, channels=2, hidden=(), ways=3, inner_steps=2, inner_rows=2,
        meta_rows=4, glances=1,
    )  # fmt: skip
    # 9 positions x 9 taps x 2 channels, forward and for the kernel's gradient; 18 x 3, also for the
    # inputs' gradient.
    per_row = 2 * (2 * 162 + 3 * 54)
    assert case.flops() == 2 * (2 + 4) * per_row
    assert dataclasses.replace(case, second_order=True).flops() == 2 * (3 * 2 + 4) * per_row


def test_fewer_convolutions_than_none_are_refused():
    with pytest.raises(ValueError, match="convolutions must be at least 0, got -1"):
        GlanceCase(convolutions=-1)


@pytest.mark.parametrize("form", ["loop", "vmap"])
def test_pytorch_autocasts_to_bfloat16(form, arrays, reference):
    pytest.importorskip("torch")
    contestant = SPARSE_MAML.make(form, TINY, arrays, precision="bfloat16")
    contestant.step()
    errors = harness.check(form, contestant, reference, harness.LOW_PRECISION_LIMITS)
    assert 1e-4 < errors["change"]["params"] < 1, errors


@pytest.mark.slow
@pytest.mark.parametrize("form", ["seeds vmapped", "seeds mapped"])
def test_every_seed_makes_the_same_step(form, arrays, reference):
    contestant = SPARSE_MAML.make(form, dataclasses.replace(TINY, seeds=2), arrays)
    contestant.step()
    errors = harness.check(form, contestant, reference)
    assert max(errors["change"].values()) < 1e-4, errors


def test_families_with_their_own_cases_refuse_the_flags_of_a_case(capsys):
    for family in ("glance", "resnet12"):
        with pytest.raises(SystemExit):
            inner_loop.main([f"--family={family}", "--tasks=2"])
        assert f"--family {family} has its own cases" in one_line(capsys)


def test_results_are_not_overwritten_by_the_next_step(arrays):
    pytest.importorskip("torch")
    contestant = SPARSE_MAML.make("loop", TINY, arrays)
    contestant.step()
    before = contestant.result()
    kept = {name: x.copy() for name, x in before["params"].items()}
    contestant.step()
    for name, x in before["params"].items():
        np.testing.assert_array_equal(x, kept[name])


def sabotaged(name):
    """The PyTorch loop, broken; defined here because PyTorch may be missing."""
    from benchmarks import torch_fewshot

    class OneStepFewer(torch_fewshot.Loop):
        def __init__(self, case, *args):
            super().__init__(dataclasses.replace(case, inner_steps=case.inner_steps - 1), *args)

    class MaskUp(torch_fewshot.Loop):  # the change is too small to show in the updated masks
        def _meta_gradient(self):
            super()._meta_gradient()
            for x in self.mask.values():
                x.grad = -x.grad

    class OtherResult(torch_fewshot.Loop):  # the gradient is right, its use is not
        def result(self):
            trees = super().result()
            return {tree: {n: 1.01 * x for n, x in trees[tree].items()} for tree in trees}

    return {form.__name__: form for form in (OneStepFewer, MaskUp, OtherResult)}[name]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("OneStepFewer", "change of the mask"),
        ("MaskUp", "change of the mask"),
        ("OtherResult", "updated params"),
    ],
)
def test_a_sabotaged_contestant_is_a_mismatch(name, what, arrays, reference):
    pytest.importorskip("torch")
    contestant = sabotaged(name)(TINY, arrays)
    contestant.step()
    with pytest.raises(harness.Mismatch, match=f"sabotaged .* {what} differ"):
        harness.check("sabotaged", contestant, reference)


def test_a_mismatch_is_one_line_and_status_1(
    tmp_path, capsys, monkeypatch, programs, small_products
):
    torch_fewshot = pytest.importorskip("benchmarks.torch_fewshot")
    monkeypatch.setattr(torch_fewshot, "Loop", sabotaged("OneStepFewer"))
    with pytest.raises(SystemExit) as stop:
        inner_loop.main(
            [*TINY_FLAGS, "--forms", "jaxsparse", "loop", "--no-probe", f"--out={tmp_path}"]
        )
    assert stop.value.code == 1
    assert "loop does not do the same arithmetic" in one_line(capsys)
    assert not list(tmp_path.iterdir())


# ---- figures


def test_flops_are_those_counted_by_hand():
    case = dataclasses.replace(TINY, tasks=1)
    # 16x16 -> 8x8 -> 4x4 -> 2x2 -> 1x1; the first layer has no input gradient.
    layers = 2 * 18 * 1 * 4 * 256 + 3 * 18 * 4 * 4 * (64 + 16 + 4)
    images = 5 * (2 * 1 + 2)
    assert layers == 109_440
    assert case.flops() == (layers + 3 * 2 * 4 * 5) * images == 2_191_200
    assert TINY.flops() == 2 * case.flops()


class Fake:
    """A contestant without a framework: adds one to a number."""

    offset = 0.0
    pause = 0.0

    def __init__(self, case, arrays, device="cpu", precision="float32"):
        self.x = arrays["params"]["x"].copy()

    def step(self):
        self.x = self.x + 1 + self.offset

    def result(self):
        return {"params": {"x": self.x}}


class Wrong(Fake):
    offset = 1.0


class Broken(Fake):
    def step(self):
        raise RuntimeError("no compiler\nhere")


class NotFinite(Fake):
    def step(self):
        self.x = self.x + 1 if self.x[0] == 0 else self.x * np.nan


@dataclasses.dataclass(frozen=True)
class FakeCase:
    name: str = "fake"
    tasks_taken: int = 2
    inner_steps_taken: int = 10

    def draw(self):
        return {"params": {"x": np.zeros(3)}}

    def flops(self):
        return 1e6


def fake_family(**forms):
    forms = {"ours": "Fake", **forms}
    return families.Family(
        name="fake",
        case=FakeCase,
        ours="ours",
        peers=tuple(form for form in forms if form != "ours"),
        forms={form: f"{__name__}:{name}" for form, name in forms.items()},
        optional=frozenset({"optional"}),
    )


def test_another_family_is_compared_by_how_far_its_results_move():
    start = {"params": {"x": np.full(3, 5.0)}}
    moved = Fake(FakeCase(), start)
    moved.step()
    np.testing.assert_array_equal(harness.change(moved, start)["params"]["x"], np.ones(3))
    entry = harness.compare(fake_family(a="Fake", b="Fake"), FakeCase(), ["ours", "a", "b"], QUICK)
    rows = {row["form"]: row for row in entry["rows"]}
    assert entry["peer"] in ("a", "b") and rows[entry["peer"]]["ratio"] == 1.0
    assert rows["ours"]["errors"] == {"result": {"params": 0.0}, "change": {"params": 0.0}}
    for row in rows.values():
        (seconds,) = row["seconds"]
        assert row["ms_per_inner_step"] == pytest.approx(100 * seconds)
        assert row["tasks_per_s"] == pytest.approx(2 / seconds)
        assert row["flops_per_s"] == pytest.approx(1e6 / seconds)
        assert row["ratio"] == pytest.approx(seconds / rows[entry["peer"]]["seconds"][0])


def test_a_wrong_step_of_another_family_is_a_mismatch():
    with pytest.raises(harness.Mismatch, match="wrong does not do the same arithmetic"):
        harness.compare(fake_family(wrong="Wrong"), FakeCase(), ["ours", "wrong"], QUICK)


def test_parameters_that_diverge_are_a_mismatch():
    with pytest.raises(harness.Mismatch, match="nan diverged"):
        harness.compare(fake_family(nan="NotFinite"), FakeCase(), ["ours", "nan"], QUICK)


def test_only_an_optional_form_may_fail():
    family = fake_family(optional="Broken", a="Fake")
    entry = harness.compare(family, FakeCase(), ["ours", "optional", "a"], QUICK)
    assert entry["rows"][1] == {"form": "optional", "failed": "RuntimeError: no compiler here"}
    assert entry["peer"] == "a"
    with pytest.raises(RuntimeError, match="no compiler"):
        harness.compare(fake_family(b="Broken"), FakeCase(), ["ours", "b"], QUICK)


def test_contestants_take_turns_and_everyone_starts_once():
    log = []

    class Logs(Fake):
        def __init__(self, name):
            self.name = name

        def step(self):
            log.append(self.name)

    seconds = harness.timed({name: Logs(name).step for name in "abc"}, repeats=4)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(runs) for name, runs in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_relative_errors_are_over_all_leaves():
    wanted = {"params": {"a": np.array([3.0]), "b": np.array([4.0])}}
    got = {"params": {"a": np.array([3.0]), "b": np.array([4.5])}}
    assert harness.relative_errors(got, wanted) == {"params": pytest.approx(0.1)}


# ---- files


def test_the_files_hold_every_number(tmp_path, capsys, programs, small_products):
    pytest.importorskip("torch")
    forms = ("jaxsparse", "loop", "channels_last")
    inner_loop.main([*TINY_FLAGS, "--forms", *forms, "--no-probe", f"--out={tmp_path}"])
    assert {p.name for p in tmp_path.iterdir()} == {"result.json", "table.md", "inner_loop.png"}
    results = json.loads((tmp_path / "result.json").read_text())
    assert {"device", "cores", "date", "command", "versions"} <= results["machine"].keys()
    assert {"jaxsparse", "jax", "jaxlib", "torch", "python"} <= results["machine"][
        "versions"
    ].keys()
    assert results["matmul_flops_per_s"]["best"] > 0
    (entry,) = results["cases"]
    assert families.SPARSE_MAML.case_of(entry["case"]) == TINY
    assert [row["form"] for row in entry["rows"]] == list(forms)
    for row in entry["rows"]:
        assert {"seconds", "median_s", "ms_per_inner_step", "tasks_per_s", "ratio"} <= row.keys()
        assert row["errors"].keys() == {"result", "change"}
    printed, table = capsys.readouterr().out, (tmp_path / "table.md").read_text()
    for form in forms:
        assert f"| {form} |" in table and form in printed
    assert (tmp_path / "inner_loop.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_what_was_measured():
    row = {
        "form": "jaxsparse",
        "cold": {"compile_s": 12.34, "peak_bytes": 900e6, "base_bytes": 300e6},
        "warm": {"compile_s": 1.5, "peak_bytes": 400e6, "base_bytes": 290e6},
        "ms_per_inner_step": 4.567,
        "tasks_per_s": 43.21,
        "ratio": 0.5,
        "flops_per_s": 80e9,
        "errors": {"change": {"params": 1.2e-6, "mask": 3.4e-6}},
    }
    shown = ["jaxsparse", "12.3 (1.5)", "4.57", "43.21", "900 (110)", "0.50", "40%", "3e-06"]
    assert report.cells(row, rate=200e9) == shown
    failed = {"form": "compile", "failed": "no compiler"}
    entry = {"name": "a case", "rows": [row, failed]}
    about = machine.describe("cpu")
    results = {"machine": about, "precision": "float32", "repeats": 9, "cases": [entry]}
    results["matmul_flops_per_s"] = {"best": 200e9}
    table = report.markdown("A title", results, report.case_sections(results))
    assert "compile does not work here: no compiler" in table


@pytest.mark.parametrize(
    ("device", "kind", "name"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "cpu", "cpu-intel-xeon-2-cores"),
        ("Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz", "cpu", "cpu-intel-core-i7-8700k-2-cores"),
        ("AMD EPYC", "cpu", "cpu-amd-epyc-2-cores"),
        ("NVIDIA H200", "gpu", "nvidia-h200"),
    ],
)
def test_results_of_a_machine_have_a_folder(device, kind, name):
    assert machine.slug({"device": device, "kind": kind, "cores": 2}) == name


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    report.publish(tmp_path, {"result.json": "old"})
    report.publish(tmp_path, {"result.json": "new"})
    assert (tmp_path / "result.json").read_text() == "new"

    def full_disk(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full_disk)
    with pytest.raises(WriteError, match="No space left"):
        report.publish(tmp_path, {"result.json": "newer"})
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "new"


# ---- errors a user can cause


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats=0"], "--repeats must be at least 1"),
        (["--tasks=0"], "tasks must be at least 1"),
        (["--ways=1"], "ways must be at least 2"),
        (["--size=8"], "images must be 16x16 or larger"),
        (["--width=wide"], "--width"),
        (["--forms", "keras"], "keras"),
        (["--curves", "--tasks=2"], "--curves has its own cases"),
    ],
)
def test_a_bad_flag_is_one_line_and_status_2(flags, message, capsys, monkeypatch):
    monkeypatch.setattr(inner_loop, "_run", lambda *_: pytest.fail("the flags were taken"))
    with pytest.raises(SystemExit) as stop:
        inner_loop.main(flags)
    assert stop.value.code == 2
    assert message in one_line(capsys)


def test_without_pytorch_the_error_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(inner_loop, "_run", lambda *_: pytest.fail("the flags were taken"))
    with pytest.raises(SystemExit):  # tyro's first parse imports what is named in sys.modules
        inner_loop.main(["--repeats=0"])
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as stop:
        inner_loop.main(TINY_FLAGS)
    assert stop.value.code == 2
    assert "pip install -e '.[benchmark]'" in one_line(capsys)


def test_a_folder_that_cannot_be_written_is_one_line_before_anything_is_timed(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(inner_loop, "run_cases", lambda *_: pytest.fail("something was timed"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        inner_loop.main([*TINY_FLAGS, f"--out={tmp_path / 'file'}"])
    assert stop.value.code == 1
    assert "cannot write to" in one_line(capsys)


# ---- processes of their own


def test_a_probe_reports_seconds_and_memory_of_its_own_process(programs):
    pytest.importorskip("torch")
    ballast = np.ones(2**27)  # a gigabyte that the probe must not count
    done = probe.in_new_process(SPARSE_MAML, "loop", TINY, cache=programs, steps=3)
    assert ballast.all()
    assert len(done["seconds"]) == 3 and done["compile_s"] >= 0
    assert 50e6 < done["base_bytes"] <= done["peak_bytes"] < 1e9


def test_the_command_prints_json(capsys, programs, reference):
    fields = json.dumps(dataclasses.asdict(TINY))
    probe.main(["--form=jaxsparse", f"--case={fields}", "--steps=2"])
    done = json.loads(capsys.readouterr().out)
    assert done["temp_bytes"] > 0
    assert {"seconds", "compile_s", "cache_misses"} <= done.keys()
    assert done["peak_bytes"] >= done["base_bytes"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--form=keras"], "--form keras: want one of jaxsparse"),
        (["--family=nothing"], "--family nothing: want one of sparse-maml"),
        (["--case={"], "--case {"),
        (['--case={"width": 0}'], "width must be at least 1"),
        (["--steps=1"], "--steps must be at least 2"),
    ],
)
def test_a_bad_flag_of_the_probe_is_one_line_and_status_2(flags, message, capsys, monkeypatch):
    monkeypatch.setattr(probe, "measure", lambda *_: {})
    with pytest.raises(SystemExit) as stop:
        probe.main(flags)
    assert stop.value.code == 2
    assert message in one_line(capsys)


def test_a_failed_probe_says_why(programs):
    family = dataclasses.replace(SPARSE_MAML, name="unknown")
    with pytest.raises(probe.ProbeError, match="--family unknown: want one of"):
        probe.in_new_process(family, "loop", TINY, cache=programs)


def test_a_program_is_missed_once(tmp_path, programs):
    with probe.keeping_programs(tmp_path), probe._cache_misses() as misses:
        size = 7919  # the size of an array that is unique here
        jax.jit(lambda x: 3 * x)(np.ones(size)).block_until_ready()
        assert len(misses) == 1
        jax.jit(lambda x: 3 * x)(np.ones(size)).block_until_ready()
    assert len(misses) == 1
    assert any((tmp_path / "jax").iterdir())  # here, although another cache was open before


def test_memory_is_measured_again_where_a_program_was_missing(monkeypatch, tmp_path):
    answers = [
        {"cache_misses": 1, "peak_bytes": 900, "base_bytes": 300},
        {"cache_misses": 0, "peak_bytes": 500, "base_bytes": 300, "temp_bytes": 20},
    ]
    monkeypatch.setattr(probe, "in_new_process", lambda *_, **__: answers.pop(0))
    found = curves._memory("jaxsparse", TINY, QUICK, tmp_path)
    assert found == {"peak_bytes": 500, "base_bytes": 300, "own_bytes": 200, "temp_bytes": 20}


# ---- curves


def points(values, **fields):
    return [{"x": x, "form": "jaxsparse", **{k: v[x] for k, v in fields.items()}} for x in values]


def test_verdicts_say_whether_memory_and_time_per_task_are_constant():
    steps = points((1, 5, 100), own_bytes={1: 90.0, 5: 100.0, 100: 104.0}, temp_bytes={
        1: 100, 5: 100, 100: 110})  # fmt: skip
    tasks = points((1, 2, 4), median_s={1: 1.0, 2: 1.8, 4: 4.4})
    context = [{"x": 4, "form": "channels_last", "median_s": 100.0}]
    own, program, per_task = curves.verdicts(
        [{"name": "inner steps", "points": steps}, {"name": "tasks", "points": tasks + context}]
    )
    assert own["holds"] and own["ratio"] == pytest.approx(1.04)
    assert not program["holds"] and program["ratio"] == pytest.approx(1.1)
    assert not per_task["holds"] and per_task["ratio"] == pytest.approx(1.1)
    assert "DOES NOT HOLD" in curves.verdict_line(per_task)


def test_a_curve_varies_one_setting_and_goes_through_the_base_case():
    for curve in curves.curves():
        rows = [dataclasses.asdict(case) for case in curve.cases.values()]
        varied = {name for name in rows[0] if any(row[name] != rows[0][name] for row in rows)}
        assert len(varied) == 1, (curve.name, varied)
        assert curves.BASE in curve.cases.values(), curve.name


def test_curves_are_measured_and_written(
    tmp_path, capsys, monkeypatch, programs, small_products, reference
):
    pytest.importorskip("torch")
    curve = curves.Curve("tasks", "tasks", {2: TINY})
    monkeypatch.setattr(curves, "curves", lambda: (curve,))
    monkeypatch.setattr(probe, "keeping_programs", lambda cache: contextlib.nullcontext())
    forms = ("jaxsparse", "channels_last")
    inner_loop.main(
        ["--curves", "--no-probe", "--device=cpu", "--repeats=2", f"--out={tmp_path}", "--forms",
         *forms]
    )  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"curves.json", "curves.md", "curves.png"}
    (traced,) = json.loads((tmp_path / "curves.json").read_text())["curves"]
    assert [(p["x"], p["form"], len(p["seconds"])) for p in traced["points"]] == [
        (2, form, 2) for form in forms
    ]
    assert "channels_last" in capsys.readouterr().out
