"""What is read from the text of compiled programs, and the command that compiles them."""

import importlib.util
import json
import subprocess
import sys

import pytest

import compiled as command
from lma_jax.errors import UserError
from measurements import accelerators, compiled, compiled_tables
from measurements.accelerators import Accelerator
from measurements.compiled import Compiled, Setting
from measurements.hlo import Kernel, Program, array_bytes
from measurements.overlap import collectives
from tests.helpers.commands import ROOT

# Of LMA-ResNet-50's inference over plain ResNet-50's on an H100: 1.078, and 1.213 without gates from profiles.
MOST_TRAFFIC = 1.09
DEVICE = Accelerator("test", "cuda", bandwidth=1e9, peak=1e12)
SUM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}
"""


def moved(text: str) -> list[tuple[str, int, int]]:
    """The name, bytes read and bytes written of each kernel."""
    return [(kernel.name, kernel.read, kernel.written) for kernel in Program(text).kernels]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("bf16[8]{0}", 16),
        ("pred[5]", 5),
        ("s4[6]", 3),
        ("f32[]", 4),
        ("u8[0]{0}", 0),
        ("token[]", 0),
        ("(f32[2]{0}, /*index=1*/s32[3]{0})", 20),
        ("f32[2,3]{1,0:T(8,128)}", 8 * 128 * 4),
        ("bf16[128,7,7,64]{0,3,2,1:T(8,128)(2,1)}", 128 * 7 * 7 * 64 * 2),
        ("bf16[3,5]{0,1:T(8,128)(2,1)}", 8 * 128 * 2),  # the first axis is the minor one
        ("f32[5]{0:T(128)}", 128 * 4),
        ("f32[2,3]{1,0:T(8,128)S(1)}", 0),
    ],
)
def test_arrays_take_their_padded_bytes_and_none_on_the_chip(shape, size):
    assert array_bytes(shape) == size


def test_an_operand_counts_once_and_a_tuple_is_written_as_a_whole():
    text = """
HloModule m, is_scheduled=true
%fused (p0: f32[4], p1: f32[4]) -> (f32[4], f32[2]) {
  %p0 = f32[4]{0} parameter(0)
  %p1 = f32[4]{0} parameter(1)
  %product = f32[4]{0} multiply(%p0, %p1)
  %half = f32[2]{0} slice(%product), slice={[0:2]}
  ROOT %both = (f32[4]{0}, f32[2]{0}) tuple(%product, %half)
}
ENTRY %main (x: f32[4]) -> (f32[4], f32[2]) {
  %x = f32[4]{0} parameter(0)
  %same = f32[4]{0} bitcast(%x)
  ROOT %fusion = (f32[4]{0}, f32[2]{0}) fusion(%x, %x), kind=kLoop, calls=%fused
}
"""
    assert moved(text) == [("fusion", 16, 24)]


def test_a_fusion_reads_of_a_sliced_operand_only_the_slices():
    text = """
%fused (p0: f32[100,4], p1: f32[100,4]) -> f32[10,4] {
  %p0 = f32[100,4]{1,0} parameter(0)
  %wide = f32[100,4]{1,0} convert(%p0)
  %first = f32[10,4]{1,0} slice(%wide), slice={[0:10], [0:4]}
  %second = f32[10,4]{1,0} slice(%wide), slice={[10:20], [0:4]}
  %p1 = f32[100,4]{1,0} parameter(1)
  %third = f32[10,4]{1,0} slice(%p1), slice={[0:10], [0:4]}
  %all = f32[4]{0} reduce(%p1), dimensions={0}
  ROOT %sum = f32[10,4]{1,0} add(%first, %second)
}
ENTRY %main (x: f32[100,4], y: f32[100,4]) -> f32[10,4] {
  %x = f32[100,4]{1,0} parameter(0)
  %y = f32[100,4]{1,0} parameter(1)
  ROOT %fusion = f32[10,4]{1,0} fusion(%x, %y), kind=kLoop, calls=%fused
}
"""
    assert moved(text) == [("fusion", 2 * 160 + 1600, 160)]


def test_a_loop_of_known_length_counts_as_often_as_it_runs():
    text = """
%body (c: (f32[8])) -> (f32[8]) {
  %c = (f32[8]{0}) parameter(0)
  %value = f32[8]{0} get-tuple-element(%c), index=0
  %next = f32[8]{0} negate(%value)
  ROOT %out = (f32[8]{0}) tuple(%next)
}
%cond (c: (f32[8])) -> pred[] {
  %c = (f32[8]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}
ENTRY %main (x: f32[8]) -> (f32[8]) {
  %x = f32[8]{0} parameter(0)
  %start = (f32[8]{0}) tuple(%x)
  ROOT %loop = (f32[8]{0}) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""
    assert moved(text) == [("next", 32, 32)] * 3


def test_transfers_between_memories_move_what_lies_in_device_memory():
    text = """
ENTRY %main (x: f32[1024], y: f32[2048]) -> f32[1024] {
  %x = f32[1024]{0:T(1024)} parameter(0)
  %y = f32[2048]{0:T(1024)} parameter(1)
  %copy-start = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[1024]{0:T(1024)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[2048]{0:T(1024)}), f32[1024]{0:T(1024)S(1)}, s32[1]{0:T(128)}) slice-start(%y), slice={[0:1024]}
  %slice-done = f32[1024]{0:T(1024)S(1)} slice-done(%slice-start)
  ROOT %sum = f32[1024]{0:T(1024)} add(%copy-done, %slice-done)
}
"""
    assert moved(text) == [("copy-start", 4096, 0), ("slice-start", 4096, 0), ("sum", 0, 4096)]


@pytest.mark.parametrize(
    ("instruction", "flops"),
    [
        # No padding: 6 x 6 places for 3 x 3 taps, 4 channels in, 16 out, 2 images.
        ("f32[2,6,6,16] convolution(%x, %k), window={size=3x3}, dim_labels=b01f_01io->b01f", 2 * 2 * 16 * 4 * 18**2),
        # Padding: each axis of 8 places misses a tap at both ends.
        (
            "f32[2,8,8,16] convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            2 * 2 * 16 * 4 * 22**2,
        ),
        ("f32[2,8,16] dot(%x, %m), lhs_contracting_dims={2,3}, rhs_contracting_dims={0,1}", 2 * 2 * 8 * 16 * 32),
        ("f32[2,8,8,4] add(%x, %x)", 0),
    ],
)
def test_flops_of_convolutions_and_products(instruction, flops):
    text = f"""
ENTRY %main (x: f32[2,8,8,4], k: f32[3,3,4,16], m: f32[8,4,16]) -> f32[1] {{
  %x = f32[2,8,8,4] parameter(0)
  %k = f32[3,3,4,16] parameter(1)
  %m = f32[8,4,16] parameter(2)
  ROOT %y = {instruction}
}}
"""
    assert [kernel.flops for kernel in Program(text).kernels] == [flops]


def test_the_gradients_of_a_strided_convolution_have_its_flops():
    calls = {
        "convForward": "(f32[2,4,4,16], u8[0]) custom-call(%x, %k)",
        "convBackwardInput": "(f32[2,8,8,4], u8[0]) custom-call(%y, %k)",
        "convBackwardFilter": "(f32[16,3,3,4], u8[0]) custom-call(%x, %y)",
    }
    for target, call in calls.items():
        text = f"""
ENTRY %main (x: f32[2,8,8,4], k: f32[16,3,3,4], y: f32[2,4,4,16]) -> f32[1] {{
  %x = f32[2,8,8,4] parameter(0)
  %k = f32[16,3,3,4] parameter(1)
  %y = f32[2,4,4,16] parameter(2)
  ROOT %z = {call}, window={{size=3x3 stride=2x2 pad=0_1x0_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn${target}"
}}
"""  # noqa: E501 (as XLA writes it)
        (kernel,) = Program(text).kernels
        assert (kernel.kind, kernel.flops) == (f"__cudnn${target}", 2 * 2 * 16 * 4 * 11**2)


def test_collectives_tell_what_runs_between_start_and_end():
    text = f"""{SUM}
ENTRY %main (x: f32[1000], y: f32[10,10]) -> f32[1000] {{
  %x = f32[1000]{{0}} parameter(0)
  %y = f32[10,10]{{1,0}} parameter(1)
  %now = f32[1000]{{0}} all-reduce(%x), to_apply=%sum
  %all-reduce-start = f32[1000]{{0}} all-reduce-start(%now), to_apply=%sum
  %dot.1 = f32[10,10]{{1,0}} dot(%y, %y), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %other-start = f32[10,10]{{1,0}} all-reduce-start(%y), to_apply=%sum
  %negate.1 = f32[10,10]{{1,0}} negate(%dot.1)
  %all-reduce-done = f32[1000]{{0}} all-reduce-done(%all-reduce-start)
  %other-done = f32[10,10]{{1,0}} all-reduce-done(%other-start)
  ROOT %out = f32[1000]{{0}} add(%all-reduce-done, %now)
}}
"""
    first, second, third = collectives(Program(text), DEVICE)
    assert (first.bytes, first.asynchronous, first.kernels) == (4000, False, 0)
    assert (second.bytes, second.asynchronous, second.kernels, second.products) == (4000, True, 2, 1)
    assert second.seconds == pytest.approx(2 * 800 / DEVICE.bandwidth)
    assert (third.bytes, third.kernels, third.products) == (400, 1, 0)


def test_a_tpu_sends_within_fusions():
    text = f"""{SUM}
%starts (p: f32[10,10]) -> (f32[10,10], u32[]) {{
  %p = f32[10,10]{{1,0}} parameter(0)
  %reduced = f32[10,10]{{1,0:T(8,128)S(1)}} all-reduce(%p), to_apply=%sum
  ROOT %out = (f32[10,10]{{1,0}}, u32[]) tuple(%reduced, %p)
}}
%sends (q: f32[10,10], r: f32[10,10]) -> (f32[10,10], f32[10,10]) {{
  %q = f32[10,10]{{1,0}} parameter(0)
  %r = f32[10,10]{{1,0}} parameter(1)
  %more = f32[10,10]{{1,0}} all-reduce(%q), to_apply=%sum
  %dot.1 = f32[10,10]{{1,0}} dot(%r, %r), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %both = (f32[10,10]{{1,0}}, f32[10,10]{{1,0}}) tuple(%more, %dot.1)
}}
%ends (s: f32[10,10]) -> f32[10,10] {{
  %s = f32[10,10]{{1,0}} parameter(0)
  ROOT %last = f32[10,10]{{1,0}} all-reduce(%s), to_apply=%sum
}}
ENTRY %main (x: f32[10,10]) -> f32[10,10] {{
  %x = f32[10,10]{{1,0}} parameter(0)
  %async-collective-start = (f32[10,10]{{1,0}}, u32[]) fusion(%x), kind=kCustom, calls=%starts
  %handle = f32[10,10]{{1,0}} get-tuple-element(%async-collective-start), index=0
  %fusion.7 = (f32[10,10]{{1,0}}, f32[10,10]{{1,0}}) fusion(%handle, %x), kind=kOutput, calls=%sends
  %sent = f32[10,10]{{1,0}} get-tuple-element(%fusion.7), index=0
  ROOT %async-collective-done = f32[10,10]{{1,0}} fusion(%sent), kind=kCustom, calls=%ends
}}
"""
    (found,) = collectives(Program(text), DEVICE)
    assert (found.kind, found.bytes, found.asynchronous) == ("all-reduce", 400, True)
    assert (found.kernels, found.products) == (1, 1)


def test_a_roofline_takes_the_longer_of_bytes_and_flops():
    assert DEVICE.seconds(2_000, 1_000) == pytest.approx(2e-6)
    assert DEVICE.seconds(2_000, 5_000_000) == pytest.approx(5e-6)


def program_of(model: str, moved: int, *, devices: int = 1) -> Compiled:
    """A program of one kernel."""
    kernel = Kernel("fusion.1", "fusion", moved - 10, 10, 0)
    memory = dict.fromkeys(("temporary", "arguments", "outputs", "peak"), 2**30)
    return Compiled("h100", devices, model, "training", [kernel], [], memory, moved / 1e9, 1.0)


def test_networks_are_compared_with_their_backbone_on_as_many_devices():
    programs = [program_of("resnet18", 800), program_of("resnet18_lma", 1000), program_of("resnet18", 1, devices=2)]
    assert compiled.ratios(programs) == {
        ("h100", 1, "training", "resnet18_lma"): {"bytes": pytest.approx(0.8), "roofline": pytest.approx(0.8)}
    }
    report = compiled_tables.report(programs, Setting(), top=1)
    row = next(line for line in report.splitlines() if line.startswith("| resnet18_lma "))
    assert row.count("| 0.800 |") == 2
    assert "h100, 2 devices, each 128 images of 224 x 224, bfloat16" in report
    assert "| h100 | resnet18_lma | training | fusion.1 | fusion | 0.0 MB | 0.0 MB |" in report
    content = compiled_tables.as_json(programs, top=1)
    assert [one["plain_over_model"] is None for one in content] == [True, False, True]
    assert json.loads(json.dumps(content))[1]["largest"][0]["read"] == 990


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h10", "unknown target 'h10', did you mean 'h100'?"),
        ("v9:2x2", "unknown target"),
        ("missing.textproto", "cannot read missing.textproto"),
    ],
)
def test_unknown_targets_are_refused(name, message):
    with pytest.raises(UserError, match="^" + message.replace("?", r"\?")):
        accelerators.find(name)


def test_targets_are_found(tmp_path):
    assert [accelerators.find(name).bandwidth for name in accelerators.TARGETS] == [3352.32e9, 2039e9, 819e9]
    assert accelerators.find("v5p:2x2x1").topologies == ("v5p:2x2x1",)
    h100 = accelerators.find("h100").description
    file = tmp_path / "mine.textproto"
    file.write_text(h100)
    mine = accelerators.find(str(file))
    assert (mine.name, mine.bandwidth, mine.peak) == ("mine", 3352.32e9, None)
    file.write_text(h100.replace("memory_bandwidth", "memory"))
    with pytest.raises(UserError, match=r"has no memory_bandwidth; "):
        accelerators.find(str(file))


def test_a_missing_compiler_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, command_ in {
        "h100": "pip install --no-deps jax-cuda13-plugin==",
        "v5e": 'pip install "jax\\[tpu]==',
    }.items():
        with pytest.raises(UserError, match=command_):
            accelerators.require_compiler(accelerators.find(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "resnet50_lam"], "did you mean 'resnet50_lma'?"),
        (["--program", "trainig"], "did you mean 'training'?"),
        (["--target", "h10"], "did you mean 'h100'?"),
        (["--devices", "1,9"], "whole numbers up to 8, not 9"),
        (["--flags", "fast"], "takes name=value,..., not 'fast'"),
        (["--top", "-1"], "takes a whole number above 0, not '-1'"),
    ],
)
def test_bad_options_end_with_code_2_and_what_is_allowed(options, message, monkeypatch, capsys):
    monkeypatch.setattr(accelerators, "set_environment", lambda: None)
    monkeypatch.setattr(sys, "argv", ["compiled.py", *options])
    with pytest.raises(SystemExit) as exit:
        command.main()
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_what_xla_refuses_is_reported_after_the_rest(monkeypatch):
    def compile_program(model, program, target, devices, setting):
        if model == "resnet18":
            raise UserError("out of memory")
        return program_of(model, 1000)

    monkeypatch.setattr(compiled, "compile_program", compile_program)
    said: list[str] = []
    target = accelerators.find("v5e")
    found, failed = compiled.compile_all([target], ["resnet18_lma"], ["training"], [1], Setting(), say=said.append)
    assert [one.model for one in found] == ["resnet18_lma"]
    assert failed == ["out of memory"]
    assert said[0] == "compiling resnet18 training for v5e (minutes on TPU)"


@pytest.mark.process
def test_the_command_needs_neither_torch_nor_the_extras():
    code = "import sys, compiled; from measurements import compiled_tables; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    )
    modules = {module.partition(".")[0] for module in process.stdout.split()}
    assert {"jax", "flax", "optax"} <= modules
    assert modules & {"torch", "grain", "ptflops", "ml_collections", "safetensors"} == set()


@pytest.mark.process
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="XLA's compiler for GPUs is not installed"
)
def test_lma_moves_little_more_than_the_plain_network_on_a_gpu(tmp_path):
    file = tmp_path / "compiled.json"
    command_ = [sys.executable, "benchmarks/compiled.py", "--model", "resnet50_lma", "--json", str(file)]
    subprocess.run(command_, cwd=ROOT, check=True)
    plain, lma = json.loads(file.read_text())["programs"]
    assert plain["bytes"] < lma["bytes"] < MOST_TRAFFIC * plain["bytes"]
