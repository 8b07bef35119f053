"""Which files and folders settings name: what config.toml keeps, and what the app looks at."""

from deepsynth_min.options import change
from deepsynth_min.runs.storage.named_files import named_files, places
from deepsynth_min.settings import Settings


def settings(**values: object) -> Settings:
    return change(Settings(), **values)


def test_what_comes_with_the_package_is_no_file():
    own = {"data": ("embedded", "embedded:needles@500:2"), "val_data": "embedded:notices"}
    own |= {"model": "deepseek-ocr-2", "main_font": "figo", "font": ("notos", "music")}
    assert named_files(settings(**own, vary=("font=figo|notos",))) == []


def test_every_name_is_told_with_its_setting_and_without_what_follows_it():
    found = named_files(
        settings(
            model="owner/name",
            adapter="a",
            data=("rows.jsonl:2", "tiny"),
            val_data="v.csv",
            main_font="f.ttf@wght=700",
            font=("g.ttc#2",),
            vary=("font=h.ttf|figo,invert=0.1",),
            unseen_style=("font=i.ttf",),
        )
    )
    fonts = {("font", name) for name in ("f.ttf", "g.ttc", "h.ttf", "i.ttf")}
    rows = {("data", "rows.jsonl"), ("data", "tiny"), ("val_data", "v.csv")}
    assert set(found) == {("adapter", "a"), ("model", "owner/name")} | rows | fonts


def test_of_names_those_that_are_there_have_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "h.ttf"):
        (tmp_path / name).touch()
    own = settings(data=("rows.jsonl:2", "owner/rows"), vary=("font=h.ttf|figo",))
    found = {name: str(tmp_path / name) for name in ("rows.jsonl", "h.ttf")}
    assert places(own) == found
    kept = {"cache": str(tmp_path / "cache")}  # which the run makes
    assert places(change(own, feature_cache="cache")) == found | kept
