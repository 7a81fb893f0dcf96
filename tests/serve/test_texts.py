"""A translated file of words replaces all English on the pages, or is refused by name."""

import copy
import json
import re
import subprocess
import sys
import tomllib
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from exported_page import ENGINE, ZOO, Server, in_browser
from exported_page import Page as Tab
from quick_runs import best
from served import jpeg_of, service

pytest.importorskip("fastapi")

from skinmm.cli.main import main
from skinmm.config.commands import ExportConfig
from skinmm.errors import InputError
from skinmm.predict.cases import NOTICE, Case, CasePredictor
from skinmm.predict.loading import CaseImage
from skinmm.serve.browser import export_browser
from skinmm.serve.rendering import AUDIENCES, ENGLISH, Result, load_texts, render, render_result
from skinmm.vocabulary import SEXES, SITES

__all__ = ["service"]
ROOM = Path(str(files("skinmm.serve")))
WORDS: dict[str, Any] = tomllib.loads((ROOM / "texts.toml").read_text(encoding="utf-8"))
FORM = """
import sys
from pathlib import Path
from skinmm.config.remote_commands import ServeConfig
from skinmm.predict.cases import CasePredictor
from skinmm.serve.app import RequestQueue
from skinmm.serve.cases import CaseRecorder
from skinmm.serve.page import Page, _build_page
from skinmm.serve.rendering import AUDIENCES, load_texts
predictor = CasePredictor(ServeConfig(accelerator="cpu"), [Path(sys.argv[1])])
parts = predictor, RequestQueue(4, 60), CaseRecorder(predictor, None), AUDIENCES
for part in _build_page(Page(*parts, load_texts(sys.argv[2]))).get_config_file()["components"]:
    options = part["props"]
    if part["type"] not in ("html", "row", "column"):
        print(options.get("label") or "", options.get("placeholder") or "")
    if part["type"] == "button":
        print(options["value"])
    print(*[label for label, _ in options.get("choices") or []])
"""
LATIN = re.compile(r"(\{\w+\})|[A-Za-z]")


def translate(words: Any) -> Any:
    """A Cyrillic letter for each Latin one, outside braces."""
    if isinstance(words, dict):
        return {name: translate(part) for name, part in words.items()}
    if isinstance(words, list):
        return [translate(part) for part in words]
    return LATIN.sub(lambda match: match[1] or "ж", words)


def write(path: Path, words: dict[str, Any], section: str = "") -> Path:
    """Writes a file of words."""
    parts = {name: part for name, part in words.items() if isinstance(part, dict)}
    lines = [f"{json.dumps(n)} = {json.dumps(p)}" for n, p in words.items() if n not in parts]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join([f"[{section}]" if section else "", *lines, ""]))
    for name, part in parts.items():
        write(path, part, f"{section}.{name}" if section else name)
    return path


@pytest.fixture(scope="module")
def russian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    return write(folder / "russian.toml", translate(WORDS) | {"language": "ru"})


def latin_words(html: str) -> set[str]:
    """The words of the visible text, and those that a screen reader speaks."""
    spoken = " ".join(re.findall(r'(?:alt|aria-label|placeholder)="([^"]*)"', html))
    visible = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL)
    return set(re.findall(r"[A-Za-z]{2,}", unescape(f"{visible} {spoken}")))


def test_english_is_complete_and_every_sentence_is_used() -> None:
    assert ENGLISH["notice"] == NOTICE
    assert {*SEXES, *SITES, *AUDIENCES} < {*ENGLISH["choices"]}
    sources = [*ROOM.glob("*.py"), *ROOM.glob("templates/*.*"), *ROOM.glob("templates/browser/*")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    names = {name for part in WORDS.values() if isinstance(part, dict) for name in part}
    unused = {name for name in names - {*ENGLISH["choices"]} if not re.search(rf"\b{name}\b", code)}
    assert unused == set()


@pytest.mark.parametrize("audience", AUDIENCES)
@pytest.mark.parametrize("decision", ["malignant", "benign", "refer"])
def test_a_result_is_in_the_language_of_the_file(
    service: CasePredictor, pictures: Path, russian: Path, audience: str, decision: str
) -> None:
    texts = load_texts(str(russian))
    case = Case([CaseImage(jpeg_of(pictures))], {"age": "old", "site": "torso"})
    row, explanation = service.predict_and_explain(case)
    assert explanation is not None
    row = row | {"decision": decision, "ood": 2.0, "case": 3}
    result = Result(case, row, explanation, service.card, 32, blurred=True)
    html = render_result(result, audience, texts)
    from_model = {*service.card["classes"]}
    assert latin_words(html) <= from_model
    assert "ж" in html


def test_the_other_parts_are_in_the_language_of_the_file(russian: Path) -> None:
    texts = load_texts(str(russian))
    for template in ("header.html", "learn.html", "waiting.html", "body_map.html"):
        words = latin_words(render(template, texts, has_store=True))
        assert words <= {"ISIC"}, template


def test_the_form_is_in_the_language_of_the_file(both: Path, russian: Path) -> None:
    """In a process of its own, as Gradio leaves an event loop behind."""
    pytest.importorskip("gradio")
    run = subprocess.run(
        [sys.executable, "-c", FORM, str(best(both)), str(russian)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ж" in run.stdout
    assert re.findall("[A-Za-z]{2,}", run.stdout) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: words["result"].pop("outside"), "lacks result.outside"),
        (lambda words: words["learn"]["border"].pop(), "lacks learn.border.3"),
        (lambda words: words["form"].update(colour="x"), "has unknown form.colour"),
        (lambda words: words["result"].update(chance="x"), "result.chance needs the values of"),
        (lambda words: words["result"].update(small="{size}"), "result.small needs the values"),
        (lambda words: words["result"].update(small="{side"), "result.small needs the values"),
        (lambda words: words["result"].update(small="{side:>9}"), "result.small needs the values"),
        (lambda words: words["result"].update(small="{{side}}"), "result.small needs the values"),
        (lambda words: words["result"].update(small=3), "result.small must be a text"),
        (lambda words: words["result"].update(note="{}"), "result.note needs the values"),
        (lambda words: words["learn"].update(border={"1": "a"}), "learn.border must be a list"),
        (lambda words: words.update(tabs="x"), "tabs must be a section"),
        (lambda words: words.update(language='de" x="'), "must be a code such as de"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, change: Any, message: str
) -> None:
    words = copy.deepcopy(WORDS)
    change(words)
    path = tmp_path / "words.toml"
    path.write_text("", encoding="utf-8")
    lines = json.dumps(words)  # written below, as numbers are allowed here
    write(path, json.loads(lines))
    with pytest.raises(InputError, match=re.escape(message)):
        load_texts(str(path))


def test_a_file_that_is_no_toml_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "words.toml"
    path.write_text("title = ", encoding="utf-8")
    with pytest.raises(InputError, match=r"words\.toml: Invalid value"):
        load_texts(str(path))
    with pytest.raises(InputError, match="No such file"):
        load_texts(str(tmp_path / "none.toml"))
    assert main(["serve", f"texts={path}", "page=false", "port=18765"]) == 2
    assert "texts=" in capsys.readouterr().err


@in_browser
def test_the_exported_page_is_in_the_language_of_the_file(
    browser: Any, russian: Path, tmp_path: Path
) -> None:
    config = ExportConfig(
        checkpoint=str(ZOO),
        target="browser",
        output=str(tmp_path / "page"),
        runtime=ENGINE,
        rows=2,
        texts=str(russian),
    )
    server = Server(export_browser(config))
    tab = Tab(browser, server.address)
    assert tab.run("document.documentElement.lang") == "ru"
    tab.tab.fill("input[name=age]", "50")
    tab.tab.select_option("select[name=sex]", "male")
    tab.tab.click("#analyse")
    tab.tab.wait_for_selector(".result")
    visible = tab.tab.inner_text("body")
    assert "ж" in visible
    assert set(re.findall("[A-Za-z]{2,}", visible)) <= {"benign", "malignant"}
    tab.tab.fill("input[name=age]", "fifty")
    tab.tab.click("#analyse")
    tab.tab.wait_for_selector(".refusal")
    assert tab.tab.inner_text(".refusal").startswith("жжж: 'fifty' жж")
    tab.context.close()
    server.stop()
