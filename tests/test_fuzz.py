"""Two thousand damaged inputs: each is refused in one line, or means exactly what it says.

Seeded, in one process. What a success must mean comes from an independent reading: json, tomllib,
pyarrow's and safetensors' own readers, the bytes of the files. tests/fuzz.py makes the damage.
"""

import io
import json
import os
import random
import tomllib
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzz import DEEP, ODD, fresh, mutate_bytes, mutate_file, mutate_json, mutate_value, outcome
from safetensors.torch import load_file
from small_model import SMALL

from deepsynth_min import settings as settings_
from deepsynth_min.data.rows import open_files
from deepsynth_min.data.tokenizer import EMBEDDED, check_tokenizer, load_tokenizer, special_ids
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.weights import official_views
from deepsynth_min.options import to_toml
from deepsynth_min.settings import DataSettings, Settings
from deepsynth_min.training import checkpoint
from deepsynth_min.training.optim import LossScaler, make_adamw, prepare_state
from deepsynth_min.training.run_directory import RunDirectory
from deepsynth_min.tuning.adapter import load_adapter, read_config
from deepsynth_min.tuning.lora import Base, LoraConfig, adapter_views, attach, choose

JSONL, PARQUET, TABLES, TOML, RUNS, CHECKPOINTS, WEIGHTS, TOKENIZERS, ADAPTERS = (
    600,
    300,
    100,
    400,
    200,
    200,
    150,
    40,
    200,
)
assert (
    JSONL + PARQUET + TABLES + TOML + RUNS + CHECKPOINTS + WEIGHTS + TOKENIZERS + ADAPTERS >= 2000
)

ROWS = [
    {"text": "A document of some words.", "summary": "Words."},
    {"text": "ä € 🙂\nsecond line", "summary": "x", "instruction": "Say it. "},
    {"image": "a.png", "summary": "A picture."},
    {"images": ["a.png", "b/b.png"], "summary": "Two.", "instruction": None},
]


def solid(value) -> bool:
    """A text with something in it that can be written down."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any(0xD800 <= ord(c) < 0xE000 for c in value)


def meaning(values, folder) -> tuple | None:
    """(text, summary, instruction, real image paths) of a row, None if it may not be used: a
    second, plain reading of what the README says."""
    if not isinstance(values, dict) or not solid(values.get("summary")):
        return None
    given = {
        name: values[name] for name in ("text", "image", "images") if values.get(name) is not None
    }
    instruction = values.get("instruction")
    if len(given) != 1 or not (instruction is None or solid(instruction)):
        return None
    ((name, value),) = given.items()
    if name == "text":
        return (value, values["summary"], instruction, []) if solid(value) else None
    names = value if isinstance(value, list) else [value]
    found = [n if isinstance(n, bytes) and n else real_path(n, folder) for n in names]
    return None if not found or None in found else (None, values["summary"], instruction, found)


def real_path(name, folder) -> str | None:
    """Of a file in `folder`; None for anything else."""
    if not solid(name) or "\0" in name:
        return None
    path = os.path.realpath(os.path.join(folder, name))
    return (
        path if path.startswith(f"{os.path.realpath(folder)}/") and os.path.isfile(path) else None
    )


def shown(row) -> tuple:
    images = [p if isinstance(p, bytes) else os.path.realpath(p) for p in row.images]
    return row.text, row.summary, row.instruction, images


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "b").mkdir(parents=True)
    for name in ("data/a.png", "data/b/b.png", "a.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "data"


def read_all(path):
    rows = open_files(str(path), DataSettings())
    return [rows[i] for i in reversed(range(len(rows)))][::-1]


def test_json_lines_are_refused_or_read_as_json_reads_them(folder):
    chance, path, accepted = random.Random(0), folder / "rows.jsonl", 0
    for _ in range(JSONL):
        rows = [dict(chance.choice(ROWS)) for _ in range(chance.randrange(1, 4))]
        lines = [json.dumps(row, ensure_ascii=chance.random() < 0.5).encode() for row in rows]
        at, kind = chance.randrange(len(lines)), chance.randrange(10)
        if kind < 4:
            lines[at] = mutate_bytes(lines[at], chance)
        elif kind < 9:
            lines[at] = json.dumps(mutate_value(rows[at], chance)).encode()
        else:
            lines[at] = chance.choice((DEEP.encode(), b"", b"\xef\xbb\xbf" + lines[at], b"null"))
        content = b"\n".join(lines)
        path.write_bytes(content)
        try:
            reference = [
                meaning(json.loads(line.decode("utf-8-sig")), folder)
                for line in content.split(b"\n")
                if line.strip()
            ]
        except (ValueError, RecursionError):
            reference = []
        got = outcome(lambda: read_all(path))
        accepted += got is not None
        expected = None if not reference or None in reference else reference
        assert (got and list(map(shown, got))) == expected, content
    assert JSONL * 0.1 < accepted < JSONL * 0.6


def parquet_file(chance: random.Random) -> bytes:
    n = chance.randrange(3, 40)
    table = pa.table(
        {
            "text": [f"text {i} " * 5 for i in range(n)],
            "summary": [f"s{i % 5}" for i in range(n)],
            "instruction": [None if i % 2 else "Do." for i in range(n)],
        }
    )
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        row_group_size=chance.choice((2, 7, 100)),
        compression=chance.choice(("none", "snappy", "zstd")),
        use_dictionary=chance.random() < 0.5,
    )
    return out.getvalue()


def test_parquet_files_are_refused_or_read_as_pyarrow_reads_them(folder):
    chance, path, accepted = random.Random(1), folder / "rows.parquet", 0
    for _ in range(PARQUET):
        good = parquet_file(chance)
        footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
        cut = chance.choice((0, footer))  # anywhere, or in what tells where everything is
        content = good[:cut] + mutate_bytes(good[cut:], chance)
        path.write_bytes(content)
        got = outcome(lambda: read_all(path))
        if got is not None:
            accepted += 1
            names = ["text", "summary", "instruction"]  # a column of another name may be damaged
            reference = (
                pq.ParquetFile(io.BytesIO(content)).read(names, use_threads=False).to_pylist()
            )
            assert list(map(shown, got)) == [meaning(values, folder) for values in reference]
    assert 0 < accepted < PARQUET * 0.8


def column(chance: random.Random, n: int):
    """n cells of some type or other, some of them odd."""
    kinds = (
        (pa.string(), lambda: chance.choice(("a", "b c", "", " ", None, "ä", "a.png", "x" * 2000))),
        (pa.large_string(), lambda: "large"),
        (pa.dictionary(pa.int8(), pa.string()), lambda: "d"),
        (pa.binary(), lambda: chance.choice((b"", b"\xff", None))),
        (pa.int64(), lambda: 7),
        (pa.list_(pa.string()), lambda: chance.choice(([], ["a.png"], [None], None))),
        (pa.null(), lambda: None),
        (pa.float16(), lambda: 1.0),
        (pa.bool_(), lambda: True),
        (pa.struct([("path", pa.string())]), lambda: chance.choice(({"path": "a.png"}, None))),
        (pa.timestamp("us"), lambda: 0),
        (pa.string(), lambda: "plain text"),
    )
    kind, cell = chance.choice(kinds[:1] * 12 + kinds[-1:] * 8 + kinds)
    return pa.array([cell() for _ in range(n)], kind)


def test_parquet_tables_of_any_columns_are_refused_or_read_as_they_are(folder):
    chance, path, accepted = random.Random(2), folder / "rows.parquet", 0
    for _ in range(TABLES):
        n = chance.randrange(0, 4)
        names = chance.sample(("text", "summary", "instruction", "image", "images", "x"), 4)
        names = chance.choice((["text", "summary"], names, ["image", "summary", "x"]))
        table = pa.table({name: column(chance, n) for name in names})
        pq.write_table(table, path)
        reference = []
        for values in table.to_pylist():
            texts = [values.get(name) for name in ("text", "summary", "instruction")]
            values |= {
                k: v["path"] for k, v in values.items() if isinstance(v, dict) and k[0] == "i"
            }
            fits = all(value is None or isinstance(value, str) for value in texts)
            reference.append(meaning(values, folder) if fits else None)
        got = outcome(lambda: read_all(path))
        accepted += got is not None
        if got is not None:
            assert list(map(shown, got)) == reference
    assert 0 < accepted < TABLES * 0.8


def test_settings_are_refused_or_are_what_the_file_says(tmp_path):
    chance, path, accepted = random.Random(3), tmp_path / "run.toml", 0
    whole = to_toml(Settings()).encode()
    lines = whole.decode().splitlines()
    for _ in range(TOML):
        if chance.random() < 0.5:
            content = mutate_bytes(whole, chance)
        else:
            mine, at = list(lines), chance.randrange(len(lines))
            odd = chance.choice(
                (
                    *map(json.dumps, ODD[2:]),
                    "nan",
                    "-inf",
                    "1979-05-27",
                    "0x1f",
                    DEEP,
                    "{a=1}",
                    "'''",
                    "9" * 5000,
                    "1e400",
                    "true",
                )
            )
            key = mine[at].partition(" =")[0]
            mine[at] = chance.choice(
                (
                    f"{key} = {odd}",
                    f"{key}.a = {odd}",
                    f"{key} = {odd}\n" + mine[at],
                    "",
                    f"[{key}]",
                    mine[at].replace("=", "=="),
                    odd,
                )
            )
            content = "\n".join(mine).encode("utf-8", "surrogatepass")
        path.write_bytes(content)
        got = outcome(lambda: settings_.parse(["--config", str(path)]))
        if got is None:
            continue
        accepted += 1
        said = tomllib.loads(content.decode())
        for f in fields(Settings):
            part, default = getattr(got, f.name), getattr(Settings(), f.name)
            for g in fields(part):
                value = said.get(f.name, {}).get(g.name, getattr(default, g.name))
                value = tuple(value) if isinstance(value, list) else value
                assert getattr(part, g.name) == value, (f.name, g.name)
        assert not said.keys() - {f.name for f in fields(Settings)}
    assert TOML * 0.1 < accepted < TOML * 0.9


# -- directories ----------------------------------------------------------------------------------

BASE = Base("b", None, "d")


class Trainee:
    """A small model with an adapter and its optimizer, and what they hold as bytes."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = DeepseekOCR(SMALL)
        attach(self.model, LoraConfig(2, 4.0, base=BASE), choose(self.model, ("attention",)))
        self.optimizer = make_adamw(self.model, (0.9, 0.95), 0.0)
        self.scaler = LossScaler(False, torch.device("cpu"))
        prepare_state(self.optimizer)
        self.parts = self.model, self.optimizer, self.scaler

    def state(self) -> dict[str, torch.Tensor]:
        tensors = adapter_views(self.model) | checkpoint.optimizer_tensors(*self.parts)
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def disturb(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in (
                *adapter_views(self.model).values(),
                *checkpoint.optimizer_tensors(*self.parts).values(),
            ):
                tensor.uniform_(0.5, 1.5, generator=generator)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture(scope="module")
def trainee():
    return Trainee()


@pytest.fixture(scope="module")
def run(tmp_path_factory, trainee):
    """(run directory with two checkpoints, {name: state})."""
    path, states = tmp_path_factory.mktemp("run") / "r", {}
    directory = RunDirectory(str(path), "none")
    directory.create(Settings())
    for step in (1, 2):
        trainee.disturb(step)
        facts = {
            "step": step,
            "best": 1.5,
            "best_metric": "loss",
            "stale": 0,
            "score": 2.0 - step,
            "unlogged": [[1.0, 2.0]],
        }
        checkpoint.save(
            path / "checkpoints", checkpoint.take(*trainee.parts, facts), trainee.model, EMBEDDED
        )
        states[f"step-{step:06}"] = trainee.state()
    (path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n'
    )
    directory.go_on_after(2)
    directory.release()
    return path, states


def resumed(path, trainee, steps) -> str | None:
    """Goes on in a run as the trainer does; returns the checkpoint it went on from, or ''."""
    directory = RunDirectory(str(path), "auto")
    try:
        found = directory.resume_from("auto")
        if found:
            trainee.disturb(99)
            steps.append(checkpoint.load(found, *trainee.parts, {})["step"])
        directory.go_on_after(steps[-1] if found else -1)
        return found.name if found else ""
    finally:
        directory.release()


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_run_goes_on_from_exactly_what_was_saved_or_not_at_all(
    tmp_path, run, trainee, capsys
):
    chance, (source, states) = random.Random(4), run
    went_on = {name: 0 for name in (*states, "", None)}
    for _ in range(RUNS):
        path = fresh(source, tmp_path / "r")
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        newest = [file for file in files if file.parent.name == "step-000002"]
        among = newest if chance.random() < 0.7 else files
        done = [mutate_file(file, chance) for file in chance.sample(among, chance.choice((1, 2)))]
        steps = []
        name = outcome(lambda: resumed(path, trainee, steps))
        went_on[name] += 1
        if name:
            assert equal(trainee.state(), states[name]), done
            assert steps == [int(name[-6:])], done
    assert all(went_on[name] for name in (*states, None)), went_on
    assert "Traceback" not in capsys.readouterr().err


def test_a_forged_checkpoint_is_refused_or_read_as_its_files_say(tmp_path, run, trainee):
    """The manifest is made to fit, so that the readers behind it are on their own."""
    chance, (source, _), accepted = random.Random(5), run, 0
    for _ in range(CHECKPOINTS):
        path = fresh(source / "checkpoints" / "step-000002", tmp_path / "c")
        names = [name for name in sorted(os.listdir(path)) if name != "manifest.json"]
        done = mutate_file(path / chance.choice(names), chance)
        trainee.disturb(98)
        if outcome(lambda: checkpoint.load(path, *trainee.parts, {})) is not None:
            accepted += 1
            said = load_file(path / "adapter_model.safetensors")
            said |= load_file(path / "optimizer.safetensors")
            assert equal(
                {n: t.float() for n, t in trainee.state().items()},
                {n: t.float() for n, t in said.items()},
            ), done
    assert 0 < accepted < CHECKPOINTS


def test_a_damaged_model_directory_is_refused_or_read_as_its_files_say(tmp_path):
    chance, source, accepted = random.Random(6), tmp_path / "m", 0
    source.mkdir()
    torch.manual_seed(0)
    model = DeepseekOCR(SMALL)
    checkpoint.save_model(model, source, EMBEDDED)
    for _ in range(WEIGHTS):
        path = fresh(source, tmp_path / "c")
        file = path / chance.choice(("config.json", "model.safetensors"))
        if file.suffix == ".json" and chance.random() < 0.5:
            file.write_bytes(mutate_json(file.read_bytes(), chance))
        elif file.suffix != ".json" and chance.random() < 0.5:  # in its header
            data = file.read_bytes()
            file.write_bytes(mutate_bytes(data[:3000], chance) + data[3000:])
        else:
            mutate_file(file, chance)
        read = outcome(lambda: DeepseekOCR.from_pretrained(path))
        if read is not None:
            accepted += 1
            said = load_file(path / "model.safetensors")
            assert equal(
                {n: t.float() for n, t in official_views(read).items()},
                {n: t.float() for n, t in said.items()},
            )
    assert 0 < accepted < WEIGHTS


def test_a_damaged_tokenizer_is_refused_or_spells_every_text(tmp_path):
    chance, accepted, text = random.Random(7), 0, "Zwölf 日本 <image> 12\n"

    def read(path):
        tokenizer = load_tokenizer(path)
        special_ids(tokenizer)
        check_tokenizer(tokenizer, 4096)
        return tokenizer

    for _ in range(TOKENIZERS):
        path = fresh(EMBEDDED, tmp_path / "t")
        mutate_file(
            path
            / chance.choice(
                (
                    "tokenizer.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                )
            ),
            chance,
        )
        tokenizer = outcome(lambda: read(path))
        if tokenizer is not None:
            accepted += 1
            assert max(tokenizer.backend_tokenizer.encode(text).ids) < 4096
    assert 0 < accepted < TOKENIZERS


def test_a_damaged_adapter_is_refused_and_leaves_the_model_or_is_read_as_its_files_say(
    tmp_path, run
):
    chance, accepted = random.Random(8), 0
    source, plain = run[0] / "checkpoints" / "step-000002", DeepseekOCR(SMALL)
    for _ in range(ADAPTERS):
        path = fresh(source, tmp_path / "a")
        mutate_file(
            path / chance.choice(("adapter_config.json", "adapter_model.safetensors")), chance
        )
        names = list(dict(plain.named_parameters()))
        if outcome(lambda: load_adapter(plain, path, BASE) or True):
            accepted += 1
            assert equal(dict(adapter_views(plain)), load_file(path / "adapter_model.safetensors"))
            assert plain.adapter.scale == read_config(path).scale
            plain = DeepseekOCR(SMALL)
        else:
            assert list(dict(plain.named_parameters())) == names and plain.adapter is None
    assert 0 < accepted < ADAPTERS
