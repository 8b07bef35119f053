"""Damaged settings files: each is refused in one line, or is what tomllib reads in it."""

import json
import random
import tomllib
from dataclasses import fields

from fuzz import DEEP, ODD, TOML, mutate_bytes, outcome

from deepsynth_min import command_line
from deepsynth_min.options import to_toml
from deepsynth_min.runs import recorded
from deepsynth_min.settings import CONCERNS, Settings

DATES = ("nan", "-inf", "1979-05-27", "0x1f")
VALUES = (*map(json.dumps, ODD[2:]), *DATES, DEEP, "{a=1}", "'''", "9" * 5000, "1e400", "true")


def test_what_comes_with_a_model_is_refused_or_sets_what_it_may_set(tmp_path):
    chance, accepted = random.Random(5), 0
    whole = recorded.as_toml(Settings())
    lines = whole.splitlines()
    allowed = {f.name: f for f in (f for c in CONCERNS.values() for f in fields(c))}
    for _ in range(TOML):
        mine, at = list(lines), chance.randrange(len(lines))
        key = mine[at].partition(" =")[0]
        odd = chance.choice((*VALUES, '"/etc/passwd"', '["../a.ttf"]', '"a/b sha256:' + "0" * 64))
        mine[at] = chance.choice([f"{key} = {odd}", f"{key} = 1", "", f"data = {odd}", "[run]"])
        content = "\n".join(mine).encode("utf-8", "surrogatepass")
        content = mutate_bytes(content, chance) if chance.random() < 0.3 else content
        (tmp_path / recorded.FILE).write_bytes(content)
        got = outcome(lambda: recorded.read(tmp_path))
        if got is None:
            continue
        accepted += 1
        assert got.keys() <= set(recorded.NAMES) <= allowed.keys()
        fonts = [font for name in recorded.FONTS for font in recorded.listed(got.get(name, ()))]
        assert not any("/" in font for font in fonts)
    assert TOML * 0.1 < accepted < TOML * 0.9


def test_settings_are_refused_or_are_what_the_file_says(tmp_path):
    chance, path, accepted = random.Random(3), tmp_path / "run.toml", 0
    whole = to_toml(Settings()).encode()
    lines = whole.decode().splitlines()
    for _ in range(TOML):
        if chance.random() < 0.5:
            content = mutate_bytes(whole, chance)
        else:
            mine, at = list(lines), chance.randrange(len(lines))
            odd = chance.choice(VALUES)
            key = mine[at].partition(" =")[0]
            forms = [f"{key} = {odd}", f"{key}.a = {odd}", f"{key} = {odd}\n" + mine[at], ""]
            mine[at] = chance.choice([*forms, f"[{key}]", mine[at].replace("=", "=="), odd])
            content = "\n".join(mine).encode("utf-8", "surrogatepass")
        path.write_bytes(content)
        got = outcome(lambda: command_line.parse(["--config", str(path)]))
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
