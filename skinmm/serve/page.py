"""Web page: a Gradio application that analyses one lesion and renders the result from templates."""

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from fastapi import FastAPI

from skinmm.data.lesions import VIEW_WORDS
from skinmm.images.decode import decode_within
from skinmm.images.measure import measure_sharpness
from skinmm.predict.cases import Case, CasePredictor
from skinmm.predict.loading import CaseImage
from skinmm.serve.app import RequestQueue
from skinmm.serve.cases import PATIENT, CaseRecorder, read_case, set_verdict
from skinmm.serve.forms import MAX_IMAGE, check_image, delete_upload, read_upload
from skinmm.serve.middleware import get_user
from skinmm.serve.rendering import (
    AUDIENCES,
    DISPLAY_SIDE,
    ENGLISH,
    Result,
    Texts,
    render,
    render_result,
)
from skinmm.serve.responses import ProblemError
from skinmm.vocabulary import MAX_AGE, SEXES, SITES

MIN_SHARPNESS: Final = 5.0
"""An image below is reported as blurred. Of 350 images of the included cohort and 22 camera files
none is below (minimum 7.5 and 10.5), of 400 of HAM10000 fewer than 1 %; blurred with a standard
deviation of 2 pixels, more than 90 % of the first are."""
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  uploads stay in memory where this folder exists
_CACHE: Final = (60, 300)  # seconds between deletions of uploads, and their age when deleted
_CHOICES: Final = {"sex": SEXES, "site": SITES}
_IN_SCRIPT: Final = {ord(sign): f"&#{ord(sign)};" for sign in "`$\\"}
_SCROLL: Final = """() => {
  const answer = document.querySelector(".result, .refusal");
  const top = answer ? answer.getBoundingClientRect().top : 0;
  if (top < 0 || top > 0.6 * innerHeight) answer.scrollIntoView();
}"""
"""Script that shows the answer: on a phone it is below the form, on a desktop above the button."""
_TEMPLATES: Final = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Page:
    """Actions of the page's buttons; results are worded for the chosen audience."""

    predictor: CasePredictor
    queue: RequestQueue
    recorder: CaseRecorder
    audiences: Sequence[str] = AUDIENCES[:1]
    texts: Texts = field(default_factory=lambda: ENGLISH)

    def save_verdict(self, user: str, number: str, verdict: str | None) -> str:
        """Store the confirmed diagnosis of a case, and return a confirmation or error as HTML."""
        messages = self.texts["messages"]
        try:
            if self.recorder.store is None:
                raise ProblemError.unusable(messages["not_stored"])
            if not re.fullmatch(r"\d{1,10}", number.strip()):
                raise ProblemError.unusable(messages["case_number"])
            if verdict is None:
                raise ProblemError.unusable(messages["choose_diagnosis"])
            before = read_case(self.recorder.store, user, int(number))["verdict"]
            case = set_verdict(self.recorder.store, user, int(number), verdict)
        except ProblemError as error:
            return render("refusal.html", reason=error.detail)
        is_changed = before not in (None, verdict)
        patient = messages["saved_patient"].format(**case) if case["patient"] else ""
        before = messages["saved_before"].format(before=before) if is_changed else ""
        parts = {"number": case["number"], "patient": patient, "before": before}
        text = messages["saved"].format(diagnosis=verdict, **parts)
        return f'<p role="status">{escape(text)}</p>'

    async def analyse(
        self, user: str, uploads: Mapping[str, Sequence[str]], audience: str, *cells: Any
    ) -> tuple[str, bool]:
        """Return a result or an error as HTML, and whether the uploads remain.

        They stay, so that the record can be changed, until they are replaced or `_CACHE` ends;
        images of which one cannot be used are deleted at once.

        Args:
            user: name of the API key.
            uploads: paths where Gradio stored the files, by view; "" if not stated.
            audience: one of the page's `audiences`; any other gets the wording for clinicians.
            cells: values of the recorder's columns.
        """
        files = [(path, view) for view, paths in uploads.items() for path in paths]
        try:
            images = [CaseImage(read_upload(path), view=view) for path, view in files]
            for image in images:
                check_image(image.data)
        except ProblemError as error:
            for path, _ in files:
                delete_upload(path)
            return render("refusal.html", reason=error.detail), False
        try:
            read = partial(asyncio.sleep, 0, images)  # nothing is left to wait for
            result = await self.queue.run(
                read,
                lambda _: self._predict(images, cells),
                lambda _, result: self.recorder.record(user, [result.row], [result.case]),
            )
        except ProblemError as error:
            return render("refusal.html", reason=error.detail), True
        audience = audience if audience in self.audiences else AUDIENCES[0]
        return render_result(result, audience, self.texts), True

    def _predict(self, images: Sequence[CaseImage], cells: Sequence[Any]) -> Result:
        record = {
            name: str(cell)
            for name, cell in zip(self.recorder.columns, cells, strict=True)
            if cell not in (None, "")
        }
        messages = self.texts["messages"]
        case, side, limit = Case(images, record), self.predictor.side, self.predictor.max_images
        if not images and self.predictor.needs_image:
            raise ProblemError.unusable(messages["needs_image"])
        if len(images) > limit:
            text = messages["too_many_images"].format(images=len(images), limit=limit)
            raise ProblemError.unusable(text)
        infos = [check_image(image.data) for image in images]
        is_small = any(min(info.width, info.height) < side for info in infos)
        row, explanation = self.predictor.predict_and_explain(case)
        if explanation is None:
            raise ProblemError.unusable(row["error"])
        layouts = (m.encoder.layout for m in self.predictor.predictor.ensemble.members)
        numbers = {c.name for layout in layouts for c in layout if c.kind == "numeric"}
        if words := [name for name in row["unknown"] if name in numbers]:
            text = messages["not_an_age" if words[0] == "age" else "not_a_number"]
            values = {
                "name": self.texts["choices"].get(words[0], words[0]),
                "value": record[words[0]][:50],
                "high": f"{MAX_AGE:.0f}",
            }
            raise ProblemError.unusable(text.format(**values))
        pictures = (decode_within(image.data, DISPLAY_SIDE) for image in explanation.images)
        is_blurred = any(measure_sharpness(picture) < MIN_SHARPNESS for picture in pictures)
        card = self.predictor.card
        return Result(case, row, explanation, card, side if is_small else 0, is_blurred)


def mount_page(app: FastAPI, *, patient_view: bool = False, texts: Texts = ENGLISH) -> FastAPI:
    """Add the page at `/` to an application of `create_app`; `patient_view` adds its wording."""
    folder = TemporaryDirectory(prefix="skinmm-page-", dir=_MEMORY if _MEMORY.is_dir() else None)
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which reports as well
    import gradio as gr

    app.state.uploads = folder  # deleted when the application ends
    # Fonts of the system and a button with enough contrast.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="teal", **fonts).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    audiences = AUDIENCES if patient_view else AUDIENCES[:1]
    page = Page(app.state.predictor, app.state.queue, app.state.recorder, audiences, texts)
    return gr.mount_gradio_app(
        app,
        _build_page(page),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=MAX_IMAGE,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme,
        css_paths=_TEMPLATES / "page.css",
        js=f"() => {{ document.documentElement.lang = {json.dumps(texts['language'])}; }}",
    )


class Form(NamedTuple):
    """Gradio components of the form; an upload for each view."""

    uploads: list[Any]
    fields: list[Any]
    audience: Any
    button: Any


def _build_page(page: Page) -> Any:
    import gradio as gr

    texts, tabs = page.texts, page.texts["tabs"]
    has_store = page.recorder.store is not None
    with gr.Blocks(title=texts["title"], analytics_enabled=False, delete_cache=_CACHE) as blocks:
        gr.HTML(render("header.html", texts))
        with gr.Tab(tabs["lesion"]), gr.Row():
            with gr.Column(scale=2, min_width=300):
                form = _add_form(gr, page)
            with gr.Column(scale=3, min_width=300):
                output = gr.HTML(render("waiting.html", texts, has_store=has_store))
        if has_store:
            _add_verdicts(page)
        with gr.Tab(tabs["learn"]):
            gr.HTML(render("learn.html", texts))
        with gr.Tab(tabs["model"]):
            gr.HTML(render("model.html", texts, card=page.predictor.card))
        _connect(page, form, output)
    return blocks


def _connect(page: Page, form: Form, output: Any) -> None:
    """Analyse when the button is pressed; clear the result when an input changes."""
    import gradio as gr

    uploads = form.uploads

    async def analyse(request: gr.Request, audience: str, *cells: Any) -> Any:
        files = [[one] if isinstance(one, str) else one or [] for one in cells[: len(uploads)]]
        named = dict(zip(_list_views(page), files, strict=True))
        user, record = get_user(request.request), cells[len(uploads) :]
        html, is_kept = await page.analyse(user, named, audience, *record)
        return html, *(cells[: len(uploads)] if is_kept else [None] * len(uploads))

    analysis = form.button.click(
        analyse,
        [form.audience, *uploads, *form.fields],
        [output, *uploads],
        api_visibility="private",
        concurrency_limit=None,  # the request queue has its own limit
    )
    analysis.then(None, js=_SCROLL, api_visibility="private")
    # A result belongs to the images and the record that it was computed from.
    changes = [field.change for field in form.fields]
    changes += [event for one in uploads for event in (one.upload, one.clear, one.delete)]
    options = {"js": f"() => {json.dumps(output.value)}", "cancels": [analysis]}
    gr.on(changes, None, None, output, api_visibility="private", **options)


def _list_views(page: Page) -> tuple[str, ...]:
    return ("", *VIEW_WORDS) if page.predictor.has_views else ("",)


def _add_form(gr: Any, page: Page) -> Form:
    texts, words, columns = page.texts, page.texts["form"], page.recorder.columns
    views = _list_views(page)
    uploads = [_add_upload(gr, view, texts, len(views) > 1) for view in views]
    gr.HTML(f'<p class="small">{escape(words["formats"])}</p>')
    fields = [_add_field(gr, name, texts) for name in columns]
    if "site" in columns:
        # A body map that chooses in the list of sites and marks the chosen one.
        sites, identity = fields[columns.index("site")], "(site) => site"
        script = (_TEMPLATES / "body_map.js").read_text(encoding="utf-8")
        # Gradio makes a JavaScript template of the HTML.
        template = render("body_map.html", texts).translate(_IN_SCRIPT)
        body = gr.HTML("", html_template=template, js_on_load=script)
        body.input(None, body, sites, js=identity, api_visibility="private")
        sites.change(None, sites, body, js=identity, api_visibility="private")
    names = [(texts["choices"][name], name) for name in page.audiences]
    options = {"label": words["wording"], "visible": len(names) > 1}
    audience = gr.Radio(names, value=page.audiences[0], **options)
    return Form(uploads, fields, audience, gr.Button(words["analyse"], variant="primary"))


def _add_upload(gr: Any, view: str, texts: Texts, has_views: bool) -> Any:
    """Add a field for an image, or for the images of one view of a lesion."""
    form = texts["form"]
    if not has_views:
        return gr.File(label=form["image"], type="filepath", height=150)
    word = texts["choices"].get(view, "")
    label = form["images_of_view"].format(view=word) if view else form["images_of_any_view"]
    label = label[:1].upper() + label[1:]
    return gr.File(label=label, type="filepath", file_count="multiple", height=90)


def _add_verdicts(page: Page) -> None:
    import gradio as gr

    def save(request: gr.Request, number: str, verdict: str | None) -> str:
        return page.save_verdict(get_user(request.request), number, verdict)

    form = page.texts["form"]
    with gr.Tab(page.texts["tabs"]["diagnosis"]):
        gr.HTML(f"<p>{escape(form['confirmed'])}</p>")
        number = gr.Textbox(label=form["case"], max_length=10)  # a number field reads 2,9 as 29
        verdict = gr.Radio([*page.predictor.predictor.classes], label=form["diagnosis"])
        button = gr.Button(form["save"], variant="primary")
        output = gr.HTML()
    button.click(save, [number, verdict], output, api_visibility="private")


def _add_field(gr: Any, name: str, texts: Texts) -> Any:
    form = texts["form"]
    if name == "age":
        # Text, because Gradio's number field shows and sends 0 when it is empty.
        return gr.Textbox(label=form["age"], placeholder=form["not_stated"], max_length=5)
    if name in _CHOICES:
        choices = [(form["not_stated"], ""), *((texts["choices"][c], c) for c in _CHOICES[name])]
        return gr.Dropdown(choices, value="", label=form[name])
    return gr.Textbox(label=form["patient_id"] if name == PATIENT else name)
