"""The account of a compiled GPU program: counts that are known by hand, and the command.

The programs in tests/gpu_programs are what XLA 0.10.2 compiled for a described H200, without
metadata and without parts of the configurations.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.cases_fewshot import FewShotCase
from benchmarks.gpu_program import cases, command, figure, hlo, measure, tables, target, whole_run
from benchmarks.gpu_program.account import Totals, account

PROGRAMS = Path(__file__).parent / "gpu_programs"
NOT_HERE = target.missing()
compiles = pytest.mark.skipif(NOT_HERE is not None, reason=f"no GPU compiler: {NOT_HERE}")


def program(name):
    return (PROGRAMS / f"{name}.txt").read_text()


def counts(name, **options):
    """Kernels, bytes and operations of a stored program."""
    return account(program(name), **options).entry.once()[:3]


def floats(*shape):
    return 4 * math.prod(shape)


# ---- products

PRODUCT = 2 * 8 * 16 * 4
OPERANDS = floats(8, 16) + floats(16, 4) + floats(8, 4)


def test_a_product_in_a_fusion():
    assert counts("product") == (1, OPERANDS, PRODUCT)


def test_the_workspace_of_cublas_is_not_counted():
    # Three products in one call, which also returns 4 MiB.
    assert counts("product_cublas") == (1, 3 * OPERANDS, 3 * PRODUCT)


def test_an_algorithm_with_three_products_fixes_the_rate():
    once = account(program("product_x3")).entry.once()
    assert once.operations == 3 * PRODUCT
    assert once.float32_operations == once.tensorfloat32_operations == 3 * PRODUCT / 400e12


def test_the_rate_is_that_of_the_precision():
    once = account(program("product")).entry.once()
    assert once.float32_operations == PRODUCT / 67e12
    assert once.tensorfloat32_operations == PRODUCT / 400e12


def test_bfloat16_factors_have_their_own_rate():
    text = program("product").replace("f32[", "bf16[")
    once = account(text).entry.once()
    assert once.bytes == OPERANDS / 2
    assert once.float32_operations == once.tensorfloat32_operations == PRODUCT / 800e12


# ---- convolutions: 2 images of 6x6 with 4 channels, a 3x3 kernel, 8 channels of the output

IMAGES, OUTPUTS, KERNEL = floats(2, 6, 6, 4), floats(2, 6, 6, 8), floats(3, 3, 4, 8)
CONVOLUTION = 2 * (2 * 6 * 6) * (3 * 3 * 4 * 8)


def test_a_convolution():
    # The kernel is transposed before.
    assert counts("conv") == (2, 2 * KERNEL + IMAGES + KERNEL + OUTPUTS, CONVOLUTION)


def test_both_backward_convolutions():
    # Each reads two of the arrays and writes the third; two transpositions of a kernel.
    each = IMAGES + KERNEL + OUTPUTS
    assert counts("conv_backward") == (4, 4 * KERNEL + 2 * each, 2 * CONVOLUTION)


def test_a_grouped_convolution():
    # vmap over three kernels: one call with three groups, and a transposition of each array.
    moved = 3 * (2 * (IMAGES + KERNEL + OUTPUTS) + IMAGES + KERNEL + OUTPUTS)
    assert counts("conv_grouped") == (4, moved, 3 * CONVOLUTION)


def test_the_gradient_of_a_grouped_convolution():
    # Both gradients are forward calls; five transpositions of six, the outputs' for each gradient.
    calls = 2 * (IMAGES + KERNEL + OUTPUTS)
    copies = 2 * (2 * OUTPUTS + 2 * KERNEL + 2 * IMAGES)
    assert counts("conv_grouped_backward") == (8, 3 * (calls + copies), 2 * 3 * CONVOLUTION)


def test_two_groups_of_channels_halve_the_operations():
    # The gradient of the kernel is a backward call with groups, that of the images a forward one.
    kernel = KERNEL // 2
    moved = 2 * (IMAGES + kernel + OUTPUTS) + 2 * 2 * kernel
    assert counts("conv_group_backward") == (4, moved, 2 * CONVOLUTION // 2)


# ---- loops

SQUARE, ROWS = floats(16, 16), floats(8, 16)
# A product, a copy of its result, and the counter.
BODY = np.array([3, 2 * ROWS + SQUARE + 2 * ROWS + 8, 2 * 8 * 16 * 16])
BEFORE = np.array([2, 8 + 2 * ROWS, 0])  # copies of the counter's start and of an argument


def test_a_loop_counts_as_often_as_it_runs():
    found = account(program("loop")).entry
    assert found.once()[:3] == pytest.approx(7 * BODY + BEFORE)
    assert [(part.trips, part.known) for part in found.all()] == [(1, True), (7, True)]
    assert found.inner_step(7)[:3] == pytest.approx(BODY)
    assert found.inner_step(6) == Totals()


def test_nested_loops_multiply():
    # The outer body also has a sine, its counter, and a copy of the inner counter's start.
    outer = 7 * BODY + np.array([3, 2 * ROWS + 8 + 8, 0])
    found = account(program("nested")).entry
    assert found.once()[:3] == pytest.approx(3 * outer + BEFORE)
    assert found.inner_step(7)[:3] == pytest.approx(BODY)
    assert found.inner_step(3)[:3] == pytest.approx(outer)


def test_an_inner_step_is_of_the_outermost_loops():
    # As if both loops had seven trips.
    text = program("nested").replace('"n":"3"', '"n":"7"')
    outer = 7 * BODY + np.array([3, 2 * ROWS + 8 + 8, 0])
    assert account(text).entry.inner_step(7)[:3] == pytest.approx(outer)


@pytest.mark.parametrize("trips", [0, 4])
def test_a_loop_of_unknown_length_has_the_trips_that_are_given(trips):
    # Its condition is a kernel, too: two integers and a bool.
    condition = np.array([1, 9, 0])
    found = account(program("unknown"), trips=trips)
    assert found.entry.once()[:3] == pytest.approx(trips * (BODY + condition) + BEFORE)
    assert len(found.unknown_loops) == 1
    assert account(program("loop")).unknown_loops == ()


def test_the_bound_is_the_sum_over_kernels():
    once = account(program("nested")).entry.once()
    assert once.float32 == pytest.approx(once.kernels * 2.5e-6 + once.bytes / 4.8e12)


def test_the_operations_bound_a_large_product():
    text = program("product")
    for small, large in (("8,16", "4000,8000"), ("16,4", "8000,2000"), ("8,4", "4000,2000")):
        text = text.replace(f"[{small}]", f"[{large}]")
    once = account(text).entry.once()
    assert once.operations == 2 * 4000 * 8000 * 2000
    assert once.float32 == pytest.approx(2.5e-6 + once.operations / 67e12)
    assert once.tensorfloat32 == pytest.approx(2.5e-6 + once.operations / 400e12)


# ---- fusions


def test_a_fusion_reads_its_operands_once_and_writes_its_result():
    assert counts("fusion") == (1, 3 * floats(10, 100), 0)


def test_of_an_array_only_the_slice_is_read():
    assert counts("slices") == (1, 2 * floats(10, 3), 0)


def test_a_slice_of_a_reshaped_array_counts_as_a_slice():
    # A product [48, 8], then a sum of every second row and column of its [6, 4] places.
    product = floats(48, 16) + floats(16, 8) + floats(48, 8)
    assert counts("places") == (2, product + 2 * floats(2, 3, 2, 8), 2 * 48 * 16 * 8)


def test_of_a_table_only_the_gathered_rows_are_read():
    assert counts("gather") == (1, floats(20) + 2 * floats(20, 30), 0)


def test_an_update_in_place_moves_the_updates():
    # A copy of the array; then indices, and the entries that are read and written.
    assert counts("scatter") == (2, 2 * floats(1000) + 3 * floats(20), 0)


def test_a_scan_reads_and_writes_a_row_at_a_time():
    # Each trip: two kernels that read the carry, the row and its index, and write a row.
    trip = np.array([3, 2 * (3 * floats(100) + 4) + 8, 0])
    before = np.array([3, 8 + 2 * floats(100) + floats(9, 100), 0])
    assert counts("scan") == pytest.approx(9 * trip + before)


# ---- branches, and what runs beside


@pytest.mark.parametrize(
    ("name", "clamp"), [("cond", (0, 0, 0)), ("switch", (1, 8, 0))], ids=["two", "three"]
)
def test_a_conditional_counts_one_branch(name, clamp):
    # The number of the branch is clamped before if there are three.
    least, most = (1, 2 * SQUARE, 0), (1, 3 * SQUARE, 2 * 16**3)
    assert counts(name) == pytest.approx(np.add(least, clamp))
    assert counts(name, branches="most") == pytest.approx(np.add(most, clamp))


def test_a_call_on_another_stream_counts_once():
    # A product, then a sum with a sine.
    assert counts("stream") == (2, 2 * 3 * SQUARE, 2 * 16**3)


def test_an_asynchronous_copy_counts_once():
    # A sine, then a copy to the host.
    assert counts("host") == (2, 4 * SQUARE, 0)


def test_a_custom_call_of_unknown_work_is_named():
    text = program("product_cublas").replace("__cublas$lt$matmul", "cusolver_potrf_ffi")
    assert account(text).uncounted == ("cusolver_potrf_ffi",)
    assert account(program("conv_backward")).uncounted == ()


def test_the_kernels_in_pallas_of_the_first_block():
    # Of two tasks: all patches with a kernel of 64 channels, and with the gradient of the output.
    patches, out = 2 * 4 * 9800 * 10, 2 * 9800 * 64
    moved = 2 * 4 * patches + 4 * 2 * 10 * 64 + 2 * 5 * out + 4 * 19 * 2 * 10 * 64
    assert counts("patch_pool") == (2, moved, 2 * 2 * patches * 64)
    assert account(program("patch_pool")).uncounted == ()
    other = program("patch_pool").replace('name = "patch', 'name = "other')
    assert account(other).uncounted == ("__gpu$xla.gpu.triton",)


def test_the_kernels_with_the_most_time_over_all_trips():
    found = account(program("nested")).entry.largest(4)
    assert [(times, kernel.name.split(".")[0]) for times, kernel in found] == [
        (21, "gemm_fusion_dot_general"), (21, "copy"), (21, "loop_add_fusion"), (3, "wrapped_sine"),
    ]  # fmt: skip


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        account("HloModule nothing")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("pred[]", 1),
        ("s4[8]{0}", 4),
        ("f8e4m3fn[10]{0:S(5)}", 10),
        ("(bf16[4]{0}, ((c64[2]{0}, u64[]), token[]))", 32),
    ],
)
def test_sizes_of_shapes(shape, size):
    assert hlo.size(shape) == size


# ---- compiled here

TINY = {"width": 4, "inner_steps": 3, "test_inner_steps": 2, "meta_batch_size": 2}


@pytest.mark.gpu_compile
@compiles
def test_a_product_is_compiled_for_a_gpu():
    compiled = target.compile_for_gpu(jnp.matmul, jnp.zeros((8, 16)), jnp.zeros((16, 4)))
    assert account(compiled.as_text()).entry.once()[:3] == (1, OPERANDS, PRODUCT)


@pytest.mark.gpu_compile
@compiles
def test_convolutions_are_compiled_for_cudnn():
    def convolve(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=layout
        )

    def gradients(images, kernel, gradient):
        return jax.vjp(convolve, images, kernel)[1](gradient)

    arrays = [jnp.zeros(shape) for shape in ((3, 2, 6, 6, 4), (3, 3, 3, 4, 8), (3, 2, 6, 6, 8))]
    compiled = target.compile_for_gpu(jax.vmap(gradients), *arrays)
    found = account(compiled.as_text())
    assert found.entry.once().operations == 2 * 3 * CONVOLUTION
    assert any("__cudnn$conv" in kernel.op for kernel in found.entry.kernels)


@pytest.mark.gpu_compile
@compiles
def test_a_meta_step_has_the_operations_of_its_layers():
    config = cases.few_shot_config((16, 16, 1), 1, **TINY)
    made = cases.meta_step(config, (16, 16, 1))
    found = account(target.compile_for_gpu(made.function, *made.shapes()).as_text()).entry
    known = FewShotCase(tasks=2, shots=1, image=(16, 16, 1), width=4, inner_steps=3)
    assert found.once().operations == pytest.approx(known.flops(), rel=0.2)
    # A trip of the only loop is of both tasks.
    assert [part.trips for part in found.all()] == [1, 3]


@pytest.mark.gpu_compile
@compiles
def test_the_command_writes_every_number(tmp_path, capsys, monkeypatch):
    config = cases.few_shot_config((16, 16, 1), 1, **TINY)
    case = cases.Case(
        "tiny", "evaluation", "batch", 2,
        lambda loop: cases.evaluation(config, (16, 16, 1), loop), over_tasks=True,
    )  # fmt: skip
    monkeypatch.setattr(cases, "all_cases", lambda: {"tiny": case})
    command.main(["--cases", "tiny", "--kernels=2", "--task-loop=scan", f"--out={tmp_path}"])
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "table.md", "roofline.png"}
    (entry,) = json.loads((tmp_path / "result.json").read_text())["cases"].values()
    assert entry["inner_step"]["kernels"] > 0 and entry["temp_bytes"] > 0
    assert (entry["task_loop"], len(entry["largest"])) == ("scan", 12)
    # Twenty tasks in turn, in each two inner steps.
    assert entry["kernels"] > 20 * 2 * entry["inner_step"]["kernels"] > 0
    assert entry["versions"]["jax-cuda13-plugin"] == entry["versions"]["jaxlib"]
    for text in (printed, (tmp_path / "table.md").read_text()):
        assert "tiny, scan" in text
    assert sum(" MB " in line and " us " in line for line in printed.splitlines()) == 2


@pytest.mark.gpu_compile
@compiles
def test_the_parts_of_a_whole_run(monkeypatch):
    monkeypatch.setattr(whole_run, "MINI_IMAGENET", (16, 16, 3))
    small = dataclasses.replace(cases.few_shot_config((84, 84, 3), 5), **TINY)
    monkeypatch.setattr(whole_run, "few_shot_config", lambda *_, **__: small)
    run = whole_run.measure("float32")
    parts = {part["name"]: part for part in run["parts"]}
    # 40,000 meta-steps; 300 tasks in batches of 20, after each of 400 epochs and at the end.
    assert [part["times"] for part in run["parts"]] == [40_000] * 2 + [6_000] * 3 + [15] * 3 + [1]
    for name in ("sampling of tasks", "inner loops", "the rest"):
        whole, once = parts[f"validation: {name}"], parts[f"test: {name}"]
        assert whole["kernels"] == 400 * once["kernels"] > 0
    sums = sum(part["ms"]["float32"] for part in run["parts"][:-1])
    assert parts["all"]["ms"]["float32"] == pytest.approx(sums)
    per_task = parts["training: inner loops"]["GFLOP"] / (40_000 * 2 * 3)
    assert per_task == pytest.approx(parts["test: inner loops"]["GFLOP"] / (15 * 20 * 2), rel=0.01)


# ---- the command


def an_entry(name="a case", **changes):
    once = Totals(10, 2e9, 4e12, 0.5, 0.25, 0.125, 0.0625)
    return {
        "name": name, "group": "glance", "unit": "glance", "task_loop": "auto",
        "precision": "float32", "inner_steps": 5, **once.as_entry(),
        "inner_step": Totals(7, 1e9).as_entry(), "temp_bytes": 3e6, "uncounted": [],
        "largest": [], "versions": {"jax": "0"}, "date": "2026-01-02T03:04:05",
    } | changes  # fmt: skip


def test_the_table_shows_what_was_counted():
    entries = [an_entry(), an_entry("other", precision="tensorfloat32", uncounted=["fft"])]
    results = {"cases": {measure.label(entry): entry for entry in entries}, "whole_runs": {}}
    table = tables.markdown(results)
    assert "| a case | 7 | 1 | 10 | 2 | 4,000 | 500 (125) | 250 (62.5) | 3 |" in table
    assert "| other, tensorfloat32 | 7 |" in table
    assert "other, tensorfloat32: the operations of fft are not counted." in table


def test_the_figure_has_a_point_for_each_case_and_precision():
    axis = figure.draw([an_entry(), an_entry("other", group="cmaml")]).axes[0]
    points = [line for line in axis.get_lines() if len(line.get_xdata()) == 1]
    assert [line.get_ydata()[0] for line in points] == pytest.approx([8e12, 16e12] * 2)
    assert {line.get_xdata()[0] for line in points} == {2000.0}


def test_every_case_has_its_own_name_and_a_group_of_the_help():
    known = cases.all_cases()
    assert len(known) == 32 + 2 + 1 + 6 + 2
    groups = {case.group for case in known.values()}
    assert groups == {"first-order", "second-order", "evaluation", "resnet12", "glance", "cmaml"}
    assert [case.name for case in cases.choose(["cmaml", "glance-mlp-1-seed"])] == [
        "glance-mlp-1-seed", "cmaml-timestep", "cmaml-update",
    ]  # fmt: skip


def test_results_of_other_cases_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(target, "missing", lambda: None)
    monkeypatch.setattr(measure, "measure", lambda case, *_: an_entry(case.name, date="new"))
    stored = {name: an_entry(name, date="old") for name in ("cmaml-update", "cmaml-timestep")}
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"cases": stored, "whole_runs": {}}))
    command.main(["--cases", "glance-mlp-1-seed", "cmaml-timestep", f"--out={tmp_path}"])
    dates = {name: e["date"] for name, e in json.loads(path.read_text())["cases"].items()}
    assert list(dates.items()) == [
        ("glance-mlp-1-seed", "new"), ("cmaml-timestep", "new"), ("cmaml-update", "old"),
    ]  # fmt: skip


def one_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("  ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cases", "conv5"], "--cases conv5: the groups are first-order, second-order"),
        (["--cases", "glance-mlp-2-seeds"], "similar cases: glance-mlp-"),
        (["--precision=half"], "--precision"),
        (["--task-loop=pmap"], "--task-loop"),
        (["--kernels=-1"], "--kernels must be at least 0"),
    ],
)
def test_a_bad_flag_is_one_line_and_status_2(flags, message, capsys, monkeypatch):
    monkeypatch.setattr(command, "_run", lambda *_: pytest.fail("the flags were taken"))
    with pytest.raises(SystemExit) as stop:
        command.main(flags)
    assert stop.value.code == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize("module", sorted(target.PLUGINS.values()))
def test_without_a_plugin_the_error_says_what_to_install(module, capsys, monkeypatch):
    find = target.importlib.util.find_spec
    absent = lambda name: None if name == module else find("json")  # noqa: E731
    monkeypatch.setattr(target.importlib.util, "find_spec", absent)
    monkeypatch.setattr(command, "_run", lambda *_: pytest.fail("it was compiled"))
    with pytest.raises(SystemExit) as stop:
        command.main(["--cases", "cmaml"])
    assert stop.value.code == 2
    assert "pip install --no-deps jax-cuda13-plugin==" in one_line(capsys)


def test_plugins_of_another_version_are_refused(monkeypatch):
    versions = {"jaxlib": "0.10.2"}
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(
        target.importlib.metadata, "version", lambda name: versions.get(name, "0.9.2")
    )
    assert "jax-cuda13-plugin 0.9.2 and jax-cuda13-pjrt 0.9.2 do not fit jaxlib 0.10.2" in (
        target.missing() or ""
    )


def test_a_file_of_something_else_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(target, "missing", lambda: None)
    (tmp_path / "result.json").write_text('{"rows": []}')
    with pytest.raises(SystemExit) as stop:
        command.main(["--cases", "cmaml", f"--out={tmp_path}"])
    assert stop.value.code == 1
    assert "has no results of this command" in one_line(capsys)
