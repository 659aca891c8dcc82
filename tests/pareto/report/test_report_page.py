"""report.html in a real browser: what it shows after its script ran, and what it does when it is used."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import fronts
import pytest
from PIL import Image

from jaxpref.evaluation.bootstrap import Bootstrap
from jaxpref.pareto.front import read_front
from jaxpref.pareto.report.write import write_front
from jaxpref.pareto.thumbnails import thumbnails
from jaxpref.types import Group, Picture

QUICK = Bootstrap(resamples=100)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: `apt-get install chromium`")
VOID = {"meta", "input", "br", "img", "link", "hr"}


@dataclass
class Node:
    tag: str
    attributes: dict = field(default_factory=dict)
    children: list = field(default_factory=list)

    def all(self, tag=None, **attributes):
        """Elements below with this tag and these attributes (`_` stands for `-`), in the order of the page."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        for child in (c for c in self.children if isinstance(c, Node)):
            if tag in (None, child.tag) and wanted.items() <= child.attributes.items():
                yield child
            yield from child.all(tag, **attributes)

    def one(self, tag=None, **attributes):
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self):
        return "".join(c if isinstance(c, str) else c.text for c in self.children)


class Tree(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open = [Node("")]
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        node = Node(tag, dict(attributes))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def opened(page: Path, fragment: str, profile: Path, *options: str) -> tuple[Node, list[str]]:
    """The page after its script ran, and what the console says."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=3000",
        "--enable-logging=stderr",
        "--window-size=1200,900",
        *(options or ["--dump-dom"]),
        f"{page.as_uri()}#{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Tree(done.stdout).open[0], [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Number of objectives -> report.html."""
    found = {}
    for names in (fronts.OBJECTIVES, ("correct", "brief", "polite")):
        directory = tmp_path_factory.mktemp("report")
        write_front(fronts.study(names), directory, bootstrap=QUICK)
        found[len(names)] = directory / "report.html"
    return found


@pytest.fixture(scope="module")
def first_look(pages, tmp_path_factory):
    return opened(pages[2], "", tmp_path_factory.mktemp("profile"))


def driven(page: Path, script: str, to: Path) -> Path:
    """A copy of the page whose policy lets another script run in it."""
    text = page.read_text()
    policy = re.search(r"'sha256-[^']+'", text)[0]
    ran = f"<script>(async () => {{{SAY}{script}}})();</script></body>"
    to.write_text(text.replace(policy, "'unsafe-inline'").replace("</body>", ran))
    return to


SAY = """
const note = (id, textContent) => document.body.append(element("p", { id, textContent }));
const answers = () => ["a", "b"].map((side) => document.querySelector(`#side-${side} pre`).textContent).join(" | ");
"""


def rows_of(dom: Node) -> list[str]:
    return [row.attributes["data-row"] for row in dom.one(id="points").all("tr") if "data-row" in row.attributes]


def drawn_points(dom: Node) -> set[str]:
    return {mark.attributes["data-point"] for mark in dom.one(id="chart").all("g", class_="point")}


@browser
def test_pictures_stand_beside_the_answers(tmp_path):
    """Drawn from the page itself, which may load nothing."""
    Image.new("RGB", (600, 300), "red").save(tmp_path / "red.png")
    prompt = Group("what?", (), 0, "row 0", pictures=(Picture(file=str(tmp_path / "red.png")),))
    [url] = thumbnails(prompt)
    study = fronts.study()
    pictures = [[url], *[[] for _ in study.prompts[1:]]]
    write_front(replace(study, pictures=pictures), tmp_path / "front", bootstrap=QUICK)
    assert read_front(tmp_path / "front").pictures == pictures
    for number, expected in (1, "256 x 128"), (2, "none"):
        look = """const image = document.querySelector("#pictures img");
        if (image) await image.decode();
        note("size", image ? `${image.naturalWidth} x ${image.naturalHeight}` : "none");"""
        page = driven(tmp_path / "front" / "report.html", look, tmp_path / f"{number}.html")
        dom, console = opened(page, f"prompt={number}", tmp_path / f"profile {number}")
        assert (dom.one(id="size").text, console) == (expected, [])


@browser
def test_points_table_answers_and_curves_are_there(first_look):
    dom, console = first_look
    front = fronts.study()
    names = [point.name for point in front.points]
    assert console == []
    assert drawn_points(dom) == set(names) and rows_of(dom) == names
    assert "not run" not in dom.text, "tables hold what was run"
    side_a, side_b = dom.one(id="side-a"), dom.one(id="side-b")
    assert side_a.one("pre").text == "says modpo_0.3, answer 0" and side_b.one("pre").text == "says reference, answer 0"
    for objective, estimate in front.points[3].estimates["reward"].items():
        ends = f"{estimate.value:#.3g} [{estimate.low:#.3g}, {estimate.high:#.3g}]"
        assert f"{objective}: mean reward {ends}" in side_a.text
    assert [button.text for button in dom.one(id="legend").all("button")] == [
        "reference model",
        "DPO on one objective",
        "MODPO",
        "soup of LoRA deltas",
    ]
    assert [figure.one("figcaption").text for figure in dom.one(id="curves").all("figure")] == ["loss", "grad_norm"]
    assert '"beta": 0.1' in dom.one(id="about").text


@browser
def test_no_text_becomes_markup(first_look):
    dom, _ = first_look
    assert dom.one("title").text == dom.one("h1").text == f"A study {fronts.HOSTILE}"
    assert fronts.HOSTILE in dom.one("pre", id="prompt").text
    assert len(list(dom.all("script"))) == 2 and not list(dom.all("img"))


@browser
def test_three_objectives_have_three_sliders_and_an_address(pages, tmp_path):
    dom, console = opened(pages[3], "w=0.8,0.15,0.05&prompt=3", tmp_path)
    assert console == []
    side = dom.one(id="side-a")
    assert side.one("pre").text == "says modpo_0.7, answer 2"
    assert [output.text for output in side.all("output")] == ["0.80", "0.10", "0.10"]  # of the point
    assert len(list(side.all("input", type="range"))) == 3
    assert len(list(dom.one(id="parallel").all("path"))) == len(rows_of(dom)) == 8
    assert {option.text for option in dom.one(id="axes").all("option")} == {"correct", "brief", "polite"}


@browser
def test_sliders_stand_at_the_weights_of_the_point(pages, tmp_path):
    """Also where these are no hundredths, and after one of three sliders was moved."""
    script = """
    const sliders = [...document.querySelectorAll("#side-a input[type=range]")];
    const at = () => `${document.querySelector("#side-a h3").textContent} ${sliders.map((s) => s.value).join(" ")}`;
    note("start", at());
    sliders[0].value = 0.75;
    sliders[0].dispatchEvent(new Event("input", { bubbles: true }));
    note("moved", at());
    """
    page = driven(pages[3], script, tmp_path / "driven.html")
    dom, console = opened(page, "a=modpo@0&w=0.5,0.25,0.25", tmp_path / "profile")
    assert console == []
    weights = {point.name: point.weights for point in fronts.study(("correct", "brief", "polite")).points}
    for noted, name in (("start", "modpo_0.3"), ("moved", "modpo_0.7")):
        *words, x, y, z = dom.one("p", id=noted).text.split()
        assert words == ["A:", name]
        assert [float(x), float(y), float(z)] == pytest.approx(list(weights[name].values()), abs=1e-12)


ADDRESSES = {
    "a=modpo@0&w=0.31": "modpo_0.3, answer 0 | says reference, answer 0",
    "w=0.69&prompt=3": "modpo_0.7, answer 2 | says reference, answer 2",
    "w=1": "dpo_helpful, answer 2 | says reference, answer 2",  # the end of the sweep
    "w=0.45&b=soup_deltas@0&wb=0.8&prompt=1": "modpo_0.3, answer 0 | says soup_deltas_0.7, answer 0",
    "b=modpo@0/dpo_harmless": "modpo_0.3, answer 0 | says dpo_harmless, answer 0",
    "w=2&a=nothing&prompt=99": "modpo_0.3, answer 0 | says dpo_harmless, answer 0",  # nonsense changes nothing
}


@browser
def test_an_address_chooses_weights_points_and_prompt(pages, tmp_path):
    script = """
    for (const [i, address] of Object.keys(ADDRESSES).entries()) {
      const read = new Promise((done) => addEventListener("hashchange", () => setTimeout(done), { once: true }));
      location.hash = address;
      await read;
      note(`address-${i}`, answers());
    }
    """.replace("ADDRESSES", json.dumps(ADDRESSES))
    dom, console = opened(driven(pages[2], script, tmp_path / "driven.html"), "", tmp_path / "profile")
    assert console == []
    assert [dom.one("p", id=f"address-{i}").text for i in range(len(ADDRESSES))] == [
        f"says {expected}" for expected in ADDRESSES.values()
    ]


USED = """
const fire = (node, name) => node.dispatchEvent(new Event(name, { bubbles: true }));
const key = (node, key, shiftKey) => node.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true }));
const slider = document.querySelector("#side-a input[type=range]");
const reached = [slider.value];
for (const name of ["ArrowRight", "ArrowUp", "ArrowRight", "ArrowLeft"]) {
  key(slider, name);
  reached.push(slider.value);
}
note("keys", reached.join(" "));
for (const value of [0.75, 0.2]) {
  slider.value = value;
  fire(slider, "input");
  note(`slider-${value}`, `${answers()} | ${slider.value}`);
}
fire(document.querySelector('[data-point="dpo_helpful"]'), "click");
note("click", answers());
const first = document.querySelector('#chart [tabindex="0"]');
first.focus();
key(first, "ArrowRight");
const second = document.activeElement;
key(second, "Enter", true);
note("arrow", `${first.dataset.point} ${second.dataset.point} ${document.activeElement.dataset.point}`);
note("tip", document.querySelector(".tip").textContent);
note("enter", answers());
const radio = document.querySelector('input[name="b"][value="modpo_0.7"]');
radio.checked = true;
fire(radio, "change");
note("radio", answers());
document.querySelectorAll("#points th button")[3].click();
document.querySelector('#legend [data-method="modpo"]').click();
document.querySelector("#theme").click();
document.querySelector("#prompts button:last-child").click();
note("next", answers());
setTimeout(() => note("address", location.hash), 1000);
"""


@browser
def test_it_answers_to_mouse_and_keyboard(pages, tmp_path):
    page = driven(pages[2], USED, tmp_path / "driven.html")
    dom, console = opened(page, "theme=light", tmp_path / "profile")
    assert console == []
    noted = lambda name: dom.one("p", id=name).text
    assert noted("keys") == "0.3 0.7 1 1 0.7"  # the point's weight, and no further than the last
    assert noted("slider-0.75") == "says modpo_0.7, answer 0 | says reference, answer 0 | 0.7"
    assert noted("slider-0.2") == "says modpo_0.3, answer 0 | says reference, answer 0 | 0.3"
    assert noted("click") == "says dpo_helpful, answer 0 | says reference, answer 0"
    assert noted("arrow") == "reference dpo_harmless dpo_harmless"  # from left to right; the focus stays
    assert "helpful 0.00 · harmless 1.00" in noted("tip")
    assert noted("enter") == "says dpo_helpful, answer 0 | says dpo_harmless, answer 0"
    assert noted("radio") == "says dpo_helpful, answer 0 | says modpo_0.7, answer 0"
    assert noted("next") == "says dpo_helpful, answer 1 | says modpo_0.7, answer 1"
    assert noted("address") == "#a=dpo%400&w=1&b=modpo%400&wb=0.7&prompt=2&theme=dark"
    values = {point.name: point.estimates["reward"]["helpful"].value for point in fronts.study().points}
    assert rows_of(dom) == sorted(values, key=values.get, reverse=True)
    assert drawn_points(dom) == {name for name in values if not name.startswith("modpo")}
    assert dom.one("html").attributes["style"].endswith("color-scheme: dark;")


@browser
def test_the_policy_stops_a_script_that_is_not_the_page_s_own(pages, tmp_path):
    page = tmp_path / "injected.html"
    page.write_text(pages[2].read_text().replace("</body>", "<script>document.title = 'owned'</script></body>"))
    dom, console = opened(page, "", tmp_path / "profile")
    assert len(console) == 1 and "Content Security Policy" in console[0]  # and so the console is heard
    assert dom.one("title").text != "owned"


@browser
def test_a_front_without_answers_curves_or_intervals(tmp_path):
    points = [fronts.point(f"m{w}", (w, 1 - w), (w, 1 - w), measure="accuracy") for w in (0.2, 0.8)]
    write_front(fronts.front(points, measure="accuracy"), tmp_path, bootstrap=QUICK)
    dom, console = opened(tmp_path / "report.html", "", tmp_path / "profile")
    assert console == []
    assert "No answers were recorded." in dom.one(id="prompts").text
    assert "bootstrap" not in dom.one(id="methods-note").text
    assert drawn_points(dom) == {"m0.2", "m0.8"}


@browser
@pytest.mark.parametrize("theme, background", [("light", 255), ("dark", 24)])
def test_it_is_drawn_light_and_dark(pages, tmp_path, theme, background):
    import matplotlib.image

    png = tmp_path / "page.png"
    opened(pages[2], f"theme={theme}", tmp_path / "profile", f"--screenshot={png}", "--hide-scrollbars")
    pixels = (matplotlib.image.imread(png)[..., :3] * 255).round()
    assert abs(pixels[5, 5].max() - background) <= 3
    assert len(set(map(tuple, pixels[::4, ::4].reshape(-1, 3)))) > 50  # not blank


def test_the_page_needs_nothing_beside_itself(pages):
    text = pages[3].read_text()
    page = re.sub(r"<title>.*</title>|<h1>.*</h1>", "", text).split('id="data"')[0]
    assert not re.search(r"\b(src|href|action)=|@import|url\(", page)
    script = text.split("<script>")[1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\bfetch\(|XMLHttpRequest", script)
    assert set(re.findall(r"https?://[^\"'\s]+", script)) == {"http://www.w3.org/2000/svg"}
