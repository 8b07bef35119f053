"""What the tabs of the app show is what the commands say."""

import html
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
from deepsynth_min.check import main as check
from deepsynth_min.errors import UserError
from deepsynth_min.generate import main as generate

pytestmark = pytest.mark.slow  # a server, seconds to start
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
        _, state, log, _, start, stop, go_on = client.ask("training").data
        if isinstance(start, dict) and "interactive" in start:
            client.seen = {"state": state, "log": log, "running": stop["interactive"]}
            client.seen |= {"can_go_on": go_on["interactive"]}
            step = re.search(r"step ([0-9]+) of ([0-9]+)", state)
            client.seen |= {"step": int(step[1]), "of": int(step[2])} if step else {}
        if holds(client.seen):
            return client.seen
        assert time.monotonic() < end, client.seen
        time.sleep(0.2)


def text(shown: str) -> str:
    """What a browser shows of HTML."""
    return html.unescape(re.sub(r"<[^>]*>", "", shown))


def test_a_text_s_pages_come_with_what_they_cost(client):
    shown, _ = client.ask("pages", {"Text": TEXT}).data
    facts = re.findall(r"<dd>(.*?)</dd>", shown)
    assert shown.count("<figure>") == 1 and facts[:2] == ["1 of 256 px", "21"]
    assert facts[2] == f"{len(TEXT) / 21:.2f}"


def test_a_smaller_type_is_in_the_command_to_copy(client):
    command = client.command("pages", {"Text": TEXT, "--font-size": "12"})
    assert command.endswith("generate --model=tiny-reader --font-size=12 paper.txt")


def test_characters_that_no_font_has_are_marked(client):
    shown, _ = client.ask("pages", {"Text": "a\u4e00\u4e00b"}).data
    assert '<p class="note">' in shown and "a<mark>\u4e00\u4e00</mark>b" in shown


def test_the_answer_is_the_command_s(client, root, capsys, monkeypatch):
    (root / "paper.txt").write_text(TEXT)
    generate(words("--model tiny-reader --beams 1 --max-new-tokens 200 {}", root / "paper.txt"))
    told = client.ask("read", {"Text": TEXT})
    assert text(told.data[0]) == capsys.readouterr().out.strip("\n")
    assert told.pieces > 5  # it came in pieces


def test_an_answer_can_be_looked_at(client):
    client.ask("read", {"Text": TEXT, "--max-new-tokens": "5"})
    seen = set()
    for heads in ("guided", "all", "3"):
        _, slider, said, looked = client.ask("look", {"heads": heads}).data
        assert slider["maximum"] == 5 and said.count("<b>") == 1
        assert "token 1 of 5" in looked and looked.count("<img") == 2  # a page and its map
        seen.add(looked)
    assert len(seen) == 3
    for number in (2, 5):
        said, looked = client.ask("step", {"token": number}).data
        assert f"token {number} of 5" in looked and looked not in seen
    assert "choices" in client.error("look", {"heads": "9"})


def test_an_answer_costs_more_without_its_page(client):
    client.ask("read", {"Text": TEXT})
    (table,) = client.ask("costs").data
    rows = [text(row.replace("<td", " | <td")) for row in table.split("<tr>")[2:]]
    found = {name: float(rise) for name, _, rise in (row.split(" | ") for row in rows)}
    assert found["this page"] == 0 and found["an empty page"] > 0 and found["no page"] > 0
    assert found["as many tokens of its text's end"] > 0


def test_ten_readers_see_their_places_and_are_served_in_turn(port):
    """A first one reads for seconds, so that all ten wait."""
    slow = {"Text": TEXT * 3, "--beams": "8", "--max-new-tokens": "200"}
    asked = {"Text": TEXT, "--max-new-tokens": "40"}
    told, clients, first = [], [Client(port) for _ in range(10)], Client(port)
    threads = [threading.Thread(target=first.ask, args=("read", slow))]
    threads[0].start()
    time.sleep(0.3)
    for client in clients:
        assert not client.join("read", asked)  # once it has come back, it stands in the queue
        # noted in the order in which they are done
        thread = threading.Thread(target=lambda client=client: told.append(client.answer()))
        threads.append(thread)
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one.data and not one.error for one in told)
    assert [one.places[0] for one in told] == list(range(10))  # the first to come is the first done
    assert all(one.places == sorted(one.places, reverse=True) for one in told)


def test_a_bad_file_is_told_in_the_words_of_check(client, root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert check(["--data=bad.jsonl", "--html=none"]) == 2
    said = capsys.readouterr().err.strip().split("\r")[-1]  # after the bar
    told = client.ask("check", {"--data": "bad.jsonl"})
    lines = told.data[0].split("\n")
    assert said in lines and lines[-1] == "(exit code 2)" and told.pieces > 1
    assert "Training would stop" in html.unescape(told.data[1])


def test_a_file_that_is_sent_is_checked(client, root):
    file = client.sent("rows.jsonl", (root / "rows.jsonl").read_bytes())
    said, shown = client.ask("check", {"a file of rows": file}).data
    assert "training would start" in said and "<h2>Rows</h2>" in html.unescape(shown)
    assert "sandbox" in shown and "deepsynth-app-" not in said.replace(file["path"], "")


def test_pages_are_written_as_a_table(client, root):
    asked = {"--data": "rows.jsonl", "write pages": "pages.parquet"}
    said, _ = client.ask("table", asked).data
    assert "exit code" not in said and (root / "pages.parquet").is_file()
    said, _ = client.ask("table", {"--data": "rows.jsonl", "write pages": None}).data
    assert "(exit code 2)" in said and not (root / "None").exists()


def test_a_check_that_nobody_waits_for_ends(app, client):
    port, pid = app
    assert not client.join("check", {"--data": "rows.jsonl"})
    link, answer = client.open("GET", f"/gradio_api/queue/data?session_hash={client.session}")
    while b"process_generating" not in answer.readline():  # until it has begun
        pass
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


@pytest.mark.parametrize("wrong", [{"lr": "x"}, {"accumulate": "0"}])
def test_a_training_is_refused_in_the_words_of_the_command_line(client, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError) as refused:
        command_line.parse([f"--{name.replace('_', '-')}={value}"])
    assert html.unescape(client.settings("train", wrong).error) == str(refused.value)
    assert html.unescape(client.settings("plan", wrong).error) == str(refused.value)


def test_a_recipe_is_planned_as_the_command_line_has_it_and_stays_below_the_root(client):
    asked = {"--recipe": "arms-study", "--max-steps": "3"}
    planned = client.command("plan", asked)
    assert planned.endswith("deepsynth_min.train --recipe=arms-study --max-steps=3")
    assert "--model deepseek-ai/" in client.error("plan", {"--recipe": "ocr-lora-24gb"})
    for wrong in ({"--recipe": "list"}, {"--tune": "no"}):
        assert "is not in the list of choices" in client.error("plan", wrong)


def test_a_training_is_watched_stopped_and_goes_on(port, client):
    asked = SHORT | {"max_steps": "4000", "out": "runs/one", "eval_every": "0"}
    assert client.settings("train", asked).error == ""
    assert "a training is running" in client.settings("train", asked).error
    other = Client(port)  # the page was closed and is opened again
    running = until(other, lambda found: found.get("step", 0) >= 2)
    assert running["running"] and running["of"] == 4000
    assert other.ask("stop").error == ""
    stopped = until(other, lambda found: not found["running"])
    assert "runs/one: stopped" in stopped["state"] and 2 <= stopped["step"] < 4000
    assert stopped["can_go_on"] and "no training" in other.error("stop")
    assert other.ask("go_on").error == ""
    until(other, lambda found: found["step"] > stopped["step"])
    other.ask("stop")
    until(other, lambda found: not found["running"])
    chooses, _, _ = other.ask("runs", {"Runs": []}).data
    ((line, name),) = chooses["choices"]
    assert name == "runs/one" and line.startswith("runs/one: stopped")
    assert "Loss, nats per token" in html.unescape(other.ask("runs", {"Runs": [name]}).data[1])


def test_a_training_outlives_the_app(root):
    with started(root) as (port, _):
        asked = SHORT | {"max_steps": "4000", "out": "runs/two", "eval_every": "0"}
        assert Client(port).settings("train", asked).error == ""
    with started(root) as (port, _):
        client = Client(port)
        found = until(client, lambda found: found.get("step", 0) >= 1)
        assert found["running"] and "runs/two" in found["state"]
        client.ask("stop")
        assert "stopped" in until(client, lambda found: not found["running"])["state"]


@pytest.fixture(scope="module")
def idle(root):
    """(port, process number) of a page that two tests share, the last of which ends it."""
    with started(root) as found:
        yield found


def test_idle_it_takes_little_of_a_processor(idle):
    """Gradio looks for work at intervals, of which serve() makes longer ones."""
    port, pid = idle
    Client(port).ask("pages", {"Text": TEXT})
    time.sleep(1)  # in which it ends what it does after an answer: up to 2 of these 3
    before = ticks(pid)
    time.sleep(3)
    assert ticks(pid) - before <= 3  # hundredths of a second: 1 % of a core


def test_ctrl_c_ends_it(idle):
    os.kill(idle[1], signal.SIGINT)
    end = time.monotonic() + 60
    while Path(f"/proc/{idle[1]}/stat").read_text().rpartition(") ")[2][0] != "Z":  # has ended
        assert time.monotonic() < end
        time.sleep(0.05)
