"""The HTML report: everything is in it, nothing in it can run or ask for anything, and a real browser agrees.

Structure and text are read with Python's own HTML parser. The browser is Debian's chromium, driven over the WebDriver
protocol (plain JSON over HTTP); where there is none, its tests are skipped with the reason.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from analysis import drawing, report
from analysis.runs import Inputs
from bench.records import read_run

EVIL = "<script>alert(1)</script>\"'&"
HEADINGS = [
    "Headline", "Accuracy", "Throughput", "Latency of one image", "Figures", "The paper's claims",
    "The paper's tables, published and measured", "Where the papers contradict themselves", "Unreadable images",
    "What was not measured, and why", "Environment",
]  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, the text, and each table as rows of cell texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.tables, self.headings = [], [], [], []
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.texts.append(data)
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data
        if self._open and self._open[-1] == "h2":
            self.headings[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def table(self, *headings):
        """The first table whose headings begin with these, as a list of dicts."""
        for head, *rows in self.tables:
            if tuple(head[: len(headings)]) == headings:
                return [dict(zip(head, row, strict=True)) for row in rows]
        raise AssertionError(f"no table has the headings {headings}")


def png(width=3, height=2):
    """A whole PNG of grey pixels, written out by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x80" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.fixture
def run(maker):
    """A demo run with accuracies, answers, rates, an unreadable image and a level that is absent."""
    setting = maker.setting(model="resnet:demo", weights="demo", published_in=None, is_demo=True, S=110, K=96)
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    top1 = {policy: np.where(rng.random(40) < 0.8, labels, 5) for policy in ("CC", "1RC", "2RC", "10RC", "20RC")}
    absent = maker.absent(setting, "accuracy at level feature", "it classifies before it pools")
    made = maker.run("demo-run", [*maker.records_of(setting, labels, top1), *maker.speed(setting), absent])
    names = [f"{i:02d}.jpg" for i in range(40)]
    maker.predictions(made, "resnet-demo", names, labels, top1, np.zeros((40, 2)))
    with (made.folder / "unreadable.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        file.write("name,stage,reason\nbroken-\udcff.jpg,decode,the file ends early\n")
    return made


# ---- content


def test_every_section_is_there_and_linked(run):
    page = Page(report.html([run]))
    assert page.headings == HEADINGS
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {f"#{name}" for name in ids} and len(ids) == len(HEADINGS)


def test_numbers_stand_in_the_tables(run):
    page = Page(report.html([run]))
    right = {r.policy: r.top1_correct for r in run.accuracies}
    rows = page.table("Policy", "Crops", "Level", "Top-1 %")
    assert {row["Policy"]: row["Top-1 %"] for row in rows} == {p: f"{100 * n / 40:.2f}" for p, n in right.items()}
    (head,) = page.table("Network", "Images", "Centre crop, top-1 %")
    assert head["Network"] == "resnet:demo" and head["Centre crop, top-1 %"] == f"{100 * right['CC'] / 40:.2f}"
    assert (head["Crops"], head["Images/s"], head["At one crop, images/s"]) == ("10", "75.0", "200.0")
    # P 400 images/s, M 1,000 crops/s on shared cores: 1 / (1/400 + 10/1000) = 80.
    row = page.table("Crops", "Images/s", "Crops/s")[1]
    assert (row["Crops"], row["Ceiling, images/s"], row["Reached %"]) == ("10", "80.0", "94")
    assert tuple(re.search(r"(decode) (\d+)", page.text).groups()) == ("decode", "600")


def test_an_adaptive_policy_shows_its_mean_number_of_crops(maker):
    setting = maker.setting()
    records = [
        maker.accuracy(setting, "CC", 700, 0, 0),
        replace(maker.accuracy(setting, "20ARC", 720, 30, 10), mean_views=7.25),
    ]
    rows = Page(report.html([maker.run("a", records)])).table("Policy", "Crops")
    assert [row["Crops"] for row in rows] == ["1", "7.2"]


def test_claims_contradictions_and_what_is_missing(run):
    page = Page(report.html([run], not_drawn={"gallery": "needs the images"}))
    claims = page.table("Claim", "Verdict")
    assert len(claims) == len(report.claims.CLAIMS)
    assert any("two random crops beat the centre crop" in row["Claim"] for row in claims)
    assert {row["Verdict"] for row in claims} <= {"holds", "does not hold", "undecided", "not measured"}
    missing = page.table("Network", "What", "Reason")
    assert {"Network": "", "What": "figure gallery", "Reason": "needs the images"} in missing
    assert any(row["Reason"] == "it classifies before it pools" for row in missing)
    assert (
        "83.77 (+0.53)" in page.text
    )  # dm_nfnet_f0, one of the six printed gains that differ from the exact difference
    assert len(page.table("Place", "Of", "Printed", "Difference")) == 6


def test_all_of_the_papers_tables_are_there_and_the_demo_apart(run):
    page = Page(report.html([run]))
    overview = page.table("Table", "Numbers measured")
    assert [row["Numbers measured"].split()[0] for row in overview] == ["0"] * 8
    assert (
        "MID Table VIII: Top-1 on ImageNet, ResNet family: fixed and random crops mixed: nothing measured" in page.text
    )
    assert [row["Policy"] for row in page.table("Policy", "Level", "resnet:demo")][:2] == ["CC", "1RC"]
    assert "DEMO DATA: says nothing about ImageNet (resnet:demo)" in page.text


def test_an_imagenet_run_is_compared_and_not_called_a_demo(maker):
    run = maker.run("a", [maker.accuracy(maker.setting(), "20RC", 35_900, 0, 0, images=50_000)])
    page = Page(report.html([run]))
    first = page.table("Table", "Numbers measured")[0]
    assert first["Numbers measured"] == "1 of 85" and first["Largest difference, points"] == "-0.03"
    assert "ResNet-34, ResNet-50, ResNet-101, ResNet-152: no run" in first["Not measured because"]
    assert "DEMO" not in page.text


def test_a_run_without_any_figure_number_or_image_still_makes_a_page(maker):
    run = maker.run("bare", [maker.absent(maker.setting(), "accuracy", "no image could be read")])
    page = Page(report.html([run]))
    assert page.headings == HEADINGS
    assert "No accuracy was measured" in page.text and "No figure could be drawn" in page.text
    assert "Every image could be read." in page.text


# ---- figures


def test_figures_are_embedded_with_their_size(run, tmp_path):
    drawn = tmp_path / "accuracy_vs_crops-resnet-demo.png"
    drawn.write_bytes(png())
    (run.folder / "accuracy_vs_crops.png").write_bytes(png(1, 1))  # the same kind: drawn anew, so left out
    (run.folder / "gallery.png").write_bytes(png(4, 5))
    images = [attributes for tag, attributes in Page(report.html([run], [drawn])).tags if tag == "img"]
    assert [(one["width"], one["height"]) for one in images] == [("3", "2"), ("4", "5")]
    assert base64.b64decode(images[0]["src"].removeprefix("data:image/png;base64,")) == png()
    assert [one["alt"] for one in images] == ["Accuracy vs crops: resnet-demo", "Gallery (demo-run)"]


def test_a_figure_that_is_no_png_is_named(run):
    (run.folder / "gallery.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"gallery\.png is not a PNG file"):
        report.html([run])


def test_a_figure_that_fails_costs_itself_only(run, tmp_path, monkeypatch):
    from analysis.figures import accuracy_vs_crops

    monkeypatch.setattr(accuracy_vs_crops, "pictures", lambda inputs: 1 / 0)
    names = ["accuracy_vs_crops", "crop_ratio"]
    drawn = drawing.draw(Inputs((run,)), names, tmp_path, keep_going=True)
    assert drawn.paths == [] and drawn.failed == {"accuracy_vs_crops": "ZeroDivisionError: division by zero"}
    assert "needs one network at several S" in drawn.not_drawn["crop_ratio"]
    with pytest.raises(ZeroDivisionError):
        drawing.draw(Inputs((run,)), names, tmp_path)


# ---- safety


@pytest.fixture
def evil_page(maker):
    """Every text that a user or a file can choose says EVIL."""
    setting = maker.setting(model=EVIL, family=EVIL, weights=EVIL, data=EVIL, device=EVIL, machine_id=EVIL)
    records = [maker.accuracy(setting, "CC", 700, 0, 0), maker.absent(setting, EVIL, EVIL)]
    run = maker.run("evil", records)
    info = {"command": [EVIL], "environment": {EVIL: EVIL}, "data": EVIL}
    info["models"] = [{"model": EVIL, "notes": [EVIL], "label_rule": EVIL}]
    (run.folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    with (run.folder / "unreadable.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(f"name,stage,reason\n{EVIL.replace(chr(34), '')},{EVIL.replace(chr(34), '')},x\n")
    (run.folder / "gallery-<script>.png").write_bytes(png())
    return report.html([read_run(run.folder)], not_drawn={EVIL: EVIL})


def test_names_cannot_become_tags(evil_page):
    page = Page(evil_page)
    assert evil_page.lower().count("<script") == 1 and "alert(1)" in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    allowed = (
        "html head meta link title style body h1 h2 h3 p code br nav a div table thead tbody tr th td ul li strong"
    )
    allowed += " span figure img figcaption details summary script"
    assert {tag for tag, _ in page.tags} <= set(allowed.split())


def test_the_page_asks_for_nothing(run, evil_page):
    for text in (report.html([run]), evil_page):
        page = Page(text)
        targets = [
            value for _, a in page.tags for key, value in a.items() if key in ("src", "href", "srcset", "action")
        ]
        assert targets and all(target.startswith(("#", "data:")) for target in targets)
        assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text


def test_only_the_pages_own_script_may_run(run):
    text = report.html([run])
    (policy,) = [a["content"] for tag, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy"]
    script = text[text.index("<script>") + len("<script>") : text.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_a_file_name_that_is_no_utf8_is_shown_all_the_same(run):
    text = report.html([run])
    text.encode("utf-8")
    assert "broken-\\udcff.jpg" in Page(text).text


# ---- the program


def test_the_program_writes_one_file(run, monkeypatch, capsys, tmp_path):
    drawn = drawing.Drawn(not_drawn={"gallery": "not in this test"})
    monkeypatch.setattr(report, "draw", lambda inputs, names, folder, keep_going: drawn)
    out = tmp_path / "new" / "page.html"
    assert report.main([str(run.folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert report.main([str(run.folder)]) == 0 and (run.folder / "report.html").is_file()


def test_the_program_names_what_is_no_run(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "no run.json" in capsys.readouterr().err


def test_the_program_names_a_run_without_results(maker, capsys):
    assert report.main([str(maker.run("empty", []).folder)]) == 2
    assert "empty holds no results" in capsys.readouterr().err


# ---- in a browser

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1366,768",
]  # fmt: skip


class Browser:
    """A headless chromium that logs its console and every request."""

    def __init__(self, profile):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = self.url.rpartition(":")[2]
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait()
            options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
            session = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session = f"/session/{session['sessionId']}"
        except BaseException:
            self.driver.kill()
            raise

    def _wait(self):
        for _ in range(150):
            try:
                if self.ask("GET", "/status")["ready"]:
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("chromedriver did not start")

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path):
        self.ask("POST", f"{self.session}/url", {"url": path.as_uri()})

    def run(self, script):
        return self.ask("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def log(self, kind):
        return self.ask("POST", f"{self.session}/se/log", {"type": kind})

    def requests(self):
        """The address of every request since the last call, but for data in the page and the browser's start page."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
        return {url for url in asked if not url.startswith(("data:", "chrome:"))}

    def close(self):
        try:
            self.ask("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait(20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if missing := [name for name in ("chromium", "chromedriver") if not shutil.which(name)]:
        pytest.skip(f"no {' and no '.join(missing)} here: apt-get install chromium chromium-driver")
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


COLUMN = """
const table = [...document.querySelectorAll("table")].find((t) => t.rows[0].comparisons[0].textContent === "Policy");
const place = [...table.rows[0].comparisons].findIndex((c) => c.textContent === "%s");
const heading = table.rows[0].comparisons[place];
if (%s) heading.%s;
return [heading.getAttribute("aria-sort"), [...table.tBodies[0].rows].map((r) => r.comparisons[place].textContent)];
"""
PRESS_ENTER = 'dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}))'


def test_a_browser_loads_it_without_error_or_request_and_sorts(browser, run, tmp_path):
    path = tmp_path / "page.html"
    drawn = tmp_path / "accuracy_vs_crops.png"
    drawn.write_bytes(png())
    path.write_text(report.html([run], [drawn]), encoding="utf-8")
    browser.requests()
    browser.open(path)
    assert browser.log("browser") == []
    assert browser.requests() == {path.as_uri()}
    assert browser.run("return [...document.images].map((i) => i.complete && i.naturalWidth)") == [3]

    def column(heading, action=None):
        return browser.run(COLUMN % (heading, "true" if action else "false", action or "id"))

    order, before = column("Top-1 %")
    assert order is None
    numbers = sorted(before, key=float)
    assert before != numbers  # or sorting would show nothing
    assert column("Top-1 %", "click()") == ["ascending", numbers]
    assert column("Top-1 %", "click()") == ["descending", numbers[::-1]]
    assert column("Policy", "click()") == ["ascending", ["1RC", "2RC", "10RC", "20RC", "CC"]]  # 2 before 10
    assert column("Top-1 %")[0] is None
    gains = column("Gain", PRESS_ENTER)[1]
    filled = [float(gain) for gain in gains if gain]
    assert filled == sorted(filled) and gains[-1] == ""  # the centre crop has no gain: last, whatever the order
    assert column("Gain", "click()")[1][-1] == ""
    assert browser.log("browser") == []


def test_a_browser_runs_nothing_that_a_name_says(browser, evil_page, tmp_path):
    path = tmp_path / "evil.html"
    path.write_text(evil_page, encoding="utf-8")
    browser.requests()
    browser.open(path)
    assert browser.log("browser") == []  # an alert would be an error of the next call
    assert browser.run("return document.scripts.length") == 1
    assert browser.requests() == {path.as_uri()}


def test_a_browser_refuses_a_script_that_is_not_the_pages(browser, run, tmp_path):
    path = tmp_path / "changed.html"
    text = report.html([run]).replace("</body>", "<script>document.title = 'hit'</script></body>")
    path.write_text(text, encoding="utf-8")
    browser.open(path)
    assert browser.run("return document.title") == "multicrop-bench: resnet:demo"
    assert any("Content Security Policy" in entry["message"] for entry in browser.log("browser"))


def test_the_page_fits_a_laptop_and_paper(browser, run, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(report.html([run]), encoding="utf-8")
    browser.open(path)
    # Wide tables scroll in their own box; the page itself never does.
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
    pdf = base64.b64decode(browser.ask("POST", f"{browser.session}/print", {"orientation": "landscape"}))
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
