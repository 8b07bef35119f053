"""What the tabs of the app show is what the commands say."""

import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from app_page import Client, folder_of_rows, started, ticks
from commands import words

from deepsynth_min import command_line
from deepsynth_min.app import parser
from deepsynth_min.app_parts.reading import Document, instead
from deepsynth_min.check import main as check
from deepsynth_min.data.row import Row
from deepsynth_min.data.tokenizer import encode
from deepsynth_min.errors import UserError
from deepsynth_min.generate import main as generate
from deepsynth_min.runs.open_model import open_model

TEXT = "The mayor of Hull, Ada Kern, met 45 bakers."
SHORT = {"data": "rows.jsonl", "val_fraction": "0.2", "batch_size": "2", "threads": "1"}
SHORT |= {"val_samples": "2", "answer_samples": "0", "ablation_samples": "0", "log_every": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return folder_of_rows(tmp_path_factory.mktemp("below") / "root")


@pytest.fixture(scope="module")
def app(root):
    with started(root) as found:
        yield found


@pytest.fixture
def port(app):
    return app[0]


@pytest.fixture
def client(port):
    return Client(port)


def until(client: Client, holds, seconds: float = 300) -> dict:
    """The state of the newest training once it is as it should be."""
    end = time.monotonic() + seconds
    while True:
        (found,) = client.ask("training")
        if holds(found):
            return found
        assert time.monotonic() < end, found
        time.sleep(0.2)


def test_a_text_s_pages_come_with_what_they_cost(client):
    (found,) = client.ask("pages", {"text": TEXT})
    assert len(found["pages"]) == 1 and found["facts"][:2] == ["1 of 256 px", "21"]
    assert found["facts"][2] == f"{len(TEXT) / 21:.2f}"


def test_a_smaller_type_is_in_the_command_to_copy(client):
    (found,) = client.ask("pages", {"text": TEXT, "settings": {"font_size": "12"}})
    assert found["command"].endswith("generate --model=tiny-reader --font-size=12 paper.txt")


def test_characters_that_no_font_has_are_marked(client):
    (found,) = client.ask("pages", {"text": "a\u4e00b"})
    assert found["marks"] == [["a", False], ["\u4e00", True], ["b", False]]
    assert found["complaints"]


def test_the_answer_is_the_command_s(client, root, capsys, monkeypatch):
    (root / "paper.txt").write_text(TEXT)
    generate(words("--model tiny-reader --beams 1 --max-new-tokens 200 {}", root / "paper.txt"))
    told = client.ask("read", {"text": TEXT})
    answer = "".join(line.get("text", "") for line in told)
    assert answer == capsys.readouterr().out.strip("\n")
    assert "".join(told[-1]["tokens"]) == answer and len(told) > 5  # it came in pieces


def test_an_answer_can_be_looked_at(client):
    client.ask("read", {"text": TEXT, "settings": {"max_new_tokens": "5"}})
    for heads in ("guided", "all", "4"):
        (view,) = client.ask("look", {"heads": heads})[-1]["views"]
        assert len(view["maps"]) == 5
        assert all(0 < sum(map(sum, of_token)) <= 1.001 for of_token in view["maps"])
    assert "none of guided, all" in client.error("look", {"heads": "9"})


def test_an_answer_costs_more_without_its_page(client):
    client.ask("read", {"text": TEXT})
    found = {line["cost"]: line["rise"] for line in client.ask("costs")}
    assert found["this page"] == 0 and found["an empty page"] > 0 and found["no page"] > 0


def test_the_text_s_end_stands_in_the_page_s_place_token_for_token():
    opened = open_model(parser().parse_args(["--model=tiny-reader"]), {})
    row = Row("the text", "Hull.", TEXT * 3)
    sample, text = opened.builder(row), encode(opened.builder.tokenizer, row.text)
    assert len(text) > sample.visual > 0
    changed = instead(Document(row, sample, opened, answered=True), "tail")
    assert changed.ids == [sample.ids[0], *text[-sample.visual :], *sample.ids[1 + sample.visual :]]


def test_ten_readers_see_their_places_and_are_served_in_turn(port):
    """A first one reads for seconds, so that all ten wait."""
    slow = {"text": TEXT * 3, "settings": {"beams": "8", "max_new_tokens": "200"}}
    told, clients, first = [], [Client(port) for _ in range(10)], Client(port)

    def read(client: Client):
        asked = {"text": TEXT, "settings": {"max_new_tokens": "40"}}
        told.append(client.ask("read", asked))  # in the order in which they are done

    threads = [threading.Thread(target=first.ask, args=("read", slow))]
    threads += [threading.Thread(target=read, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert all(lines[-1].get("tokens") for lines in told)
    waits = [[line["progress"] for line in lines if "waiting" in str(line)] for lines in told]
    places = [[int(re.search(r"(\d+) request", text)[1]) for text in texts] for texts in waits]
    assert [one[0] for one in places] == list(range(1, 11))  # the first to come is the first done
    assert all(one == sorted(one, reverse=True) and one[-1] == 1 for one in places)


def test_a_bad_file_is_told_in_the_words_of_check(client, root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert check(["--data=bad.jsonl", "--html=none"]) == 2
    said = capsys.readouterr().err.strip().split("\r")[-1]  # after the bar
    told = client.ask("check", {"settings": {"data": "bad.jsonl"}})
    assert said in [line.get("line") for line in told] and {"code": 2} in told
    assert "Training would stop" in told[-1]["html"]


def test_a_file_that_is_sent_is_checked(client, root):
    key = client.send("rows.jsonl", (root / "rows.jsonl").read_bytes())
    told = client.ask("check", {"file": key})
    assert {"line": "training would start"} in told and "<h2>Rows</h2>" in told[-1]["html"]


def test_pages_are_written_as_a_table(client, root):
    told = client.ask("table", {"settings": {"data": "rows.jsonl"}, "to": "pages.parquet"})
    assert told[-1] == {"code": 0} and (root / "pages.parquet").is_file()


def test_a_check_that_nobody_waits_for_ends(app, client):
    port, pid = app
    link = http.client.HTTPConnection("127.0.0.1", port)
    head = {"Cookie": client.cookie, "Host": "localhost"}
    link.request("POST", "/check", json.dumps({"settings": {"data": "rows.jsonl"}}), head)
    answer = link.getresponse()
    answer.readline()  # it has begun
    assert children(pid)
    answer.close()
    link.close()
    end = time.monotonic() + 60
    while children(pid):
        assert time.monotonic() < end
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    """What a process has started and is not done."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


@pytest.mark.parametrize("wrong", [{"lr": "x"}, {"tune": "no"}, {"accumulate": "0"}])
def test_a_training_is_refused_in_the_words_of_the_command_line(client, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError) as refused:
        command_line.parse([f"--{name.replace('_', '-')}={value}"])
    assert client.error("train", {"settings": wrong}) == str(refused.value)


def test_a_recipe_is_planned_as_the_command_line_has_it_and_stays_below_the_root(client):
    (planned,) = client.ask("plan", {"settings": {"recipe": "arms-study", "max_steps": "3"}})
    assert planned["command"].endswith("deepsynth_min.train --recipe=arms-study --max-steps=3")
    for name, said in (("list", "no such recipe"), ("ocr-lora-24gb", "--model deepseek-ai/")):
        assert said in client.error("plan", {"settings": {"recipe": name}})


@pytest.mark.slow
def test_a_training_is_watched_stopped_and_goes_on(port, client):
    asked = {"settings": SHORT | {"max_steps": "400", "out": "runs/one", "eval_every": "0"}}
    client.ask("train", asked)
    assert "a training is running" in client.error("train", asked)
    other = Client(port)  # the page was closed and is opened again
    running = until(other, lambda found: found.get("step", 0) >= 2)
    assert running["running"] and running["of"] == 400
    other.ask("stop")
    stopped = until(other, lambda found: not found["running"])
    assert stopped["status"] == "stopped" and stopped["can_go_on"] and 2 <= stopped["step"] < 400
    assert "no training" in other.error("stop")
    other.ask("train", {"resume": "runs/one"})
    further = until(other, lambda found: found["step"] > stopped["step"])
    assert "--resume=auto" in further["command"]
    other.ask("stop")
    until(other, lambda found: not found["running"])
    (listed,) = other.ask("runs")
    assert [run["run"] for run in listed["runs"]] == ["runs/one"]
    assert "runs/one" not in other.ask("report", {"runs": ["runs/one"]})[0].get("error", "")


@pytest.mark.slow
def test_a_training_outlives_the_app(root):
    with started(root) as (port, _):
        Client(port).ask(
            "train",
            {"settings": SHORT | {"max_steps": "400", "out": "runs/two", "eval_every": "0"}},
        )
    with started(root) as (port, _):
        client = Client(port)
        found = until(client, lambda found: found.get("step", 0) >= 1)
        assert found["running"] and found["out"] == "runs/two"
        client.ask("stop")
        assert until(client, lambda found: not found["running"])["status"] == "stopped"


def test_idle_it_takes_no_processor(root):
    with started(root) as (port, pid):
        Client(port).ask("pages", {"text": TEXT})
        before = ticks(pid)
        time.sleep(3)
        assert ticks(pid) - before <= 1  # a hundredth of a second


def test_ctrl_c_ends_it(root):
    with started(root) as (port, pid):
        Client(port)
        os.kill(pid, signal.SIGINT)
        end = time.monotonic() + 60
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z":  # has ended
            assert time.monotonic() < end
            time.sleep(0.05)
