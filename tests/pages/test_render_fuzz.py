"""csrc/ under AddressSanitizer and UndefinedBehaviorSanitizer, and the binding against nonsense."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from deepsynth_min._raster import FLAGS, KINDS, UNITS, Atlas, Frame, Plan
from hypothesis import given, settings, strategies as st

HERE = Path(__file__).parent
HELPERS = HERE.parent / "helpers"
CSRC = HERE.parents[1] / "csrc"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CHECKED = ["test_render_hard.py", "test_render_coverage.py"]


def compile_command(*arguments):
    return ["g++", "-std=c++17", "-g1", "-pthread", *SANITIZE, f"-I{CSRC}", *map(str, arguments)]


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """The fuzz target as built for this machine and with portable loops, and the extension."""
    folder, target = tmp_path_factory.mktemp("sanitized"), HELPERS / "raster_fuzz.cpp"
    commands = {
        "fast": compile_command("-O1", "-DRASTER_MAIN", target, "-o", folder / "fast"),
        "portable": compile_command(
            "-O1", "-DRASTER_MAIN", "-DDEEPSYNTH_PORTABLE", target, "-o", folder / "portable"
        ),
    }
    try:
        import pybind11
    except ImportError:  # only its own test needs it
        pass
    else:
        commands["extension"] = compile_command(
            "-O0",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            f"-I{pybind11.get_include()}",
            f"-I{sysconfig.get_paths()['include']}",
            CSRC / "bindings.cpp",
            "-o",
            folder / "_raster.so",
        )
    running = [subprocess.Popen(command) for command in commands.values()]
    assert [process.wait() for process in running] == [0] * len(running)
    return folder


@pytest.mark.slow
def test_random_fonts_styles_and_texts_draw_as_a_pixel_loop_does_without_a_finding(builds):
    """Seeds anew each run; the vector and the portable loops must agree on every byte."""
    seed = int.from_bytes(os.urandom(3))
    sums = []
    for name in ("fast", "portable"):
        command = [str(builds / name), str(seed), "150"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
        sums.append(done.stdout)
    assert sums[0] == sums[1] != "", f"seed {seed}"


@pytest.mark.slow
def test_the_extension_draws_hard_texts_without_a_finding(builds):
    pytest.importorskip("pybind11")
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
        for name in ("libasan.so", "libstdc++.so")
    ]
    # Leaks are Python's own: the interpreter frees little at exit.
    env = os.environ | {
        "LD_PRELOAD": " ".join(done.stdout.strip() for done in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [
        sys.executable,
        HELPERS / "sanitized.py",
        builds / "_raster.so",
        "--noconftest",
        "-q",
        "-p",
        "no:cacheprovider",
        *(HERE / name for name in CHECKED),
    ]
    done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout


numbers = st.one_of(st.integers(-3, 40), st.integers(-(2**31), 2**31 - 1))
FIELDS = (
    "width",
    "height",
    "left",
    "baseline",
    "step",
    "lines_per_column",
    "columns",
    "column_step",
    "align",
    "ink",
    "paper",
    "spaced",
    "limit",
    "tab",
    "gap",
    "hyphen",
    "spacing",
    "first",
    "hanging",
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_binding_refuses_or_draws_whatever_it_is_given(data):
    """Numbers out of any range are ValueErrors; all else draws inside the page."""
    atlas = Atlas(10, 14)
    for unit in range(0x20, 0x30):
        atlas.add(unit, KINDS["plain"], 0, 320, 255, 0, 0, 5, np.full((6, 5), 255, np.uint8))
    ink = data.draw(st.tuples(st.integers(0, 40), st.integers(0, 40)))
    odd = [data.draw(numbers) for _ in range(8)]
    try:
        atlas.add(odd[0] % (2 * UNITS), *odd[1:], np.full(ink, 200, np.uint8))
    except (ValueError, TypeError):
        pass
    values = {name: data.draw(st.integers(0, 60)) for name in FIELDS}
    values[data.draw(st.sampled_from(FIELDS))] = data.draw(numbers)
    try:
        plan = Plan(atlas, Frame(**values), data.draw(st.integers(-2, 3)))
    except ValueError:
        return
    if values["width"] * values["height"] > 10**7:
        return
    text = data.draw(st.text(st.sampled_from("".join(map(chr, range(0x20, 0x30)))), max_size=60))
    assert plan.layout([text, ""], 2) == []
    units = np.array([data.draw(st.integers(0, 2**32 - 1)) for _ in text], np.uint32)
    try:
        plan.replace(0, units)
    except ValueError:
        assert (units >= UNITS).any()
    pages = plan.number_pages()
    guarded = np.full((pages + 2, values["height"], values["width"]), 7, np.uint8)
    plan.draw(guarded[1:-1], 2)
    assert (guarded[0] == 7).all() and (guarded[-1] == 7).all()
    with pytest.raises(ValueError):
        plan.draw(guarded[1:-2][:0], 1)


@pytest.mark.parametrize("index", [2, 99, 2**40])
def test_a_text_that_is_not_there_is_an_index_error(index):
    frame = Frame(**(dict.fromkeys(FIELDS, 1)))
    plan = Plan(Atlas(10, 14), frame, 0)
    plan.layout(["", ""], 1)
    for call in (plan.result, plan.pages, plan.lines):
        with pytest.raises(IndexError):
            call(index)
    with pytest.raises(IndexError):
        plan.from_right(0, index)


def test_a_text_that_is_not_laid_out_has_no_result():
    plan = Plan(Atlas(10, 14), Frame(**(dict.fromkeys(FIELDS, 1))), 0)
    assert plan.layout(["x"], 1) == [(0, 1)]
    with pytest.raises(ValueError):
        plan.result(0)


def test_the_numbers_of_kinds_and_flags_are_distinct():
    assert len(set(KINDS.values())) == len(KINDS)
    assert sum(FLAGS.values()) == 2 ** len(FLAGS) - 1
