"""Web page: a Gradio application that analyses one lesion and renders the result from templates."""

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
from fastapi import FastAPI

from skinmm.data.lesions import VIEW_WORDS
from skinmm.images.decode import decode_within
from skinmm.images.measure import measure_sharpness
from skinmm.predict.cases import Case, CasePredictor
from skinmm.predict.explain import Explanation
from skinmm.predict.loading import CaseImage
from skinmm.report.blocks import to_data_url
from skinmm.serve.app import RequestQueue
from skinmm.serve.cases import PATIENT, CaseRecorder, read_case, set_verdict
from skinmm.serve.forms import MAX_IMAGE, check_image, delete_upload, read_upload
from skinmm.serve.middleware import get_user
from skinmm.serve.rendering import (
    QUALITY,
    TITLE,
    list_groups,
    read_prevalence,
    read_test,
    render,
)
from skinmm.serve.responses import ProblemError
from skinmm.vocabulary import MAX_AGE, SEXES, SITES

AUDIENCES: Final = ("clinician", "patient")
NOT_STATED: Final = "not stated"
MIN_SHARPNESS: Final = 5.0
"""An image below is reported as blurred. Of 350 images of the included cohort and 22 camera files
none is below (minimum 7.5 and 10.5), of 400 of HAM10000 fewer than 1 %; blurred with a standard
deviation of 2 pixels, more than 90 % of the first are."""
_DISPLAY_SIDE: Final = 480  # pixels of the longer side of an image on the page
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  uploads stay in memory where this folder exists
_CACHE: Final = (60, 300)  # seconds between deletions of uploads, and their age when deleted
_CHOICES: Final = {"sex": SEXES, "site": SITES}
_SCROLL: Final = """() => {
  const answer = document.querySelector(".result, .refusal");
  const top = answer ? answer.getBoundingClientRect().top : 0;
  if (top < 0 || top > 0.6 * innerHeight) answer.scrollIntoView();
}"""
"""Script that shows the answer: on a phone it is below the form, on a desktop above the button."""
_TEMPLATES: Final = Path(__file__).with_name("templates")


class Result(NamedTuple):
    """Prediction of a case, with everything that the page displays."""

    case: Case
    row: dict[str, Any]
    explanation: Explanation
    card: Mapping[str, Any]
    min_side: int = 0  # side of the network's input in pixels if the image is smaller
    blurred: bool = False

    @property
    def similar(self) -> dict[str, float]:
        """Test rows of similar probability; empty if unknown."""
        groups = list_groups(self.card)
        index = int(np.searchsorted([group["last"] for group in groups], self.row["malignancy"]))
        return groups[min(index, len(groups) - 1)] if groups else {}


def render_result(result: Result, audience: str = AUDIENCES[0]) -> str:
    """Return a result as HTML."""
    changes = [*result.explanation.contributions.largest().items()]
    explanation = result.explanation
    images = [
        {
            "name": f"{image.name} ({image.view})" if image.view else image.name,
            "original": to_data_url(decode_within(image.data, _DISPLAY_SIDE, image.frame), QUALITY),
            "heat_map": to_data_url(drawing, QUALITY),
        }
        for image, drawing in zip(
            explanation.images, explanation.draw(_DISPLAY_SIDE), strict=bool(explanation.heats)
        )
    ]
    facts = {"test": read_test(result.card), "prevalence": read_prevalence(result.card)}
    choices = {"audience": audience, "images": images, "changes": changes}
    return render("result.html", result=result, **facts, **choices)


@dataclass(frozen=True)
class Page:
    """Actions of the page's buttons; results are worded for the chosen audience."""

    predictor: CasePredictor
    queue: RequestQueue
    recorder: CaseRecorder
    audiences: Sequence[str] = AUDIENCES[:1]

    def save_verdict(self, user: str, number: str, verdict: str | None) -> str:
        """Store the confirmed diagnosis of a case, and return a confirmation or error as HTML."""
        try:
            if self.recorder.store is None:
                raise ProblemError.unusable("This service does not store cases.")
            if not re.fullmatch(r"\d{1,10}", number.strip()):
                raise ProblemError.unusable("Enter the number of the case, in digits.")
            if verdict is None:
                raise ProblemError.unusable("Choose the diagnosis.")
            before = read_case(self.recorder.store, user, int(number))["verdict"]
            case = set_verdict(self.recorder.store, user, int(number), verdict)
        except ProblemError as error:
            return render("refusal.html", reason=error.detail)
        patient = f", patient {escape(case['patient'])}" if case["patient"] else ""
        before = f" (before: {before})" if before not in (None, verdict) else ""
        text = f"Case {case['number']}{patient}: {verdict}{before}. Thank you."
        return f'<p role="status">{text}</p>'

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
        return render_result(result, audience), True

    def _predict(self, images: Sequence[CaseImage], cells: Sequence[Any]) -> Result:
        record = {
            name: str(cell)
            for name, cell in zip(self.recorder.columns, cells, strict=True)
            if cell not in (None, "", NOT_STATED)
        }
        case, side, limit = Case(images, record), self.predictor.side, self.predictor.max_images
        if not images and self.predictor.needs_image:
            raise ProblemError.unusable("This model needs an image: choose one first.")
        if len(images) > limit:
            raise ProblemError.unusable(
                f"There are {len(images)} images, and this model takes {limit}: remove some."
            )
        infos = [check_image(image.data) for image in images]
        is_small = any(min(info.width, info.height) < side for info in infos)
        row, explanation = self.predictor.predict_and_explain(case)
        if explanation is None:
            raise ProblemError.unusable(row["error"])
        layouts = (m.encoder.layout for m in self.predictor.predictor.ensemble.members)
        numbers = {c.name for layout in layouts for c in layout if c.kind == "numeric"}
        if words := [name for name in row["unknown"] if name in numbers]:
            raise ProblemError.unusable(
                f"{words[0]}: {record[words[0]][:50]!r} is not a number"
                f"{f' from 0 to {MAX_AGE:.0f}' if words[0] == 'age' else ''}; "
                "enter a number, or leave the field empty."
            )
        pictures = (decode_within(image.data, _DISPLAY_SIDE) for image in explanation.images)
        is_blurred = any(measure_sharpness(picture) < MIN_SHARPNESS for picture in pictures)
        card = self.predictor.card
        return Result(case, row, explanation, card, side if is_small else 0, is_blurred)


def mount_page(app: FastAPI, *, patient_view: bool = False) -> FastAPI:
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
    page = Page(app.state.predictor, app.state.queue, app.state.recorder, audiences)
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
    )


def _build_page(page: Page) -> Any:
    import gradio as gr

    async def analyse(request: gr.Request, audience: str, *cells: Any) -> Any:
        files = [[one] if isinstance(one, str) else one or [] for one in cells[: len(uploads)]]
        named = dict(zip(views, files, strict=True))
        user, record = get_user(request.request), cells[len(uploads) :]
        html, is_kept = await page.analyse(user, named, audience, *record)
        return html, *(cells[: len(uploads)] if is_kept else [None] * len(uploads))

    views = ("", *VIEW_WORDS) if page.predictor.has_views else ("",)
    columns, has_store = page.recorder.columns, page.recorder.store is not None
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_CACHE) as blocks:
        gr.HTML(render("header.html", title=TITLE))
        with gr.Tab("Lesion"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                uploads = [_add_upload(gr, view, len(views) > 1) for view in views]
                gr.HTML('<p class="small">JPEG, PNG, DICOM and others, up to 20 MB.</p>')
                fields = [_add_field(gr, name) for name in columns]
                if "site" in columns:
                    # A body map that chooses in the list of sites and marks the chosen one.
                    sites, identity = fields[columns.index("site")], "(site) => site"
                    script = (_TEMPLATES / "body_map.js").read_text(encoding="utf-8")
                    template = render("body_map.html")
                    body = gr.HTML(NOT_STATED, html_template=template, js_on_load=script)
                    body.input(None, body, sites, js=identity, api_visibility="private")
                    sites.change(None, sites, body, js=identity, api_visibility="private")
                names, offered = [*page.audiences], len(page.audiences) > 1
                audience = gr.Radio(names, value=names[0], label="Wording for", visible=offered)
                button = gr.Button("Analyse this lesion", variant="primary")
            with gr.Column(scale=3, min_width=300):
                output = gr.HTML(render("waiting.html", has_store=has_store))
                waiting = json.dumps(output.value)
        if has_store:
            _add_verdicts(page)
        with gr.Tab("Learn"):
            gr.HTML(render("learn.html"))
        with gr.Tab("Model"):
            gr.HTML(render("model.html", card=page.predictor.card))
        analysis = button.click(
            analyse,
            [audience, *uploads, *fields],
            [output, *uploads],
            api_visibility="private",
            concurrency_limit=None,  # the request queue has its own limit
        )
        analysis.then(None, js=_SCROLL, api_visibility="private")
        # A result belongs to the images and the record that it was computed from.
        changes = [field.change for field in fields]
        changes += [event for one in uploads for event in (one.upload, one.clear, one.delete)]
        gr.on(
            changes,
            None,
            None,
            output,
            js=f"() => {waiting}",
            api_visibility="private",
            cancels=[analysis],
        )
    return blocks


def _add_upload(gr: Any, view: str, has_views: bool) -> Any:
    """Add a field for an image, or for the images of one view of a lesion."""
    if not has_views:
        return gr.File(label="Image", type="filepath", height=150)
    label = f"{view.capitalize()} images" if view else "Images of any view, not stated"
    return gr.File(label=label, type="filepath", file_count="multiple", height=90)


def _add_verdicts(page: Page) -> None:
    import gradio as gr

    def save(request: gr.Request, number: str, verdict: str | None) -> str:
        return page.save_verdict(get_user(request.request), number, verdict)

    with gr.Tab("Diagnosis"):
        gr.HTML("<p>Confirmed diagnosis (histology or follow-up).</p>")
        number = gr.Textbox(label="Case", max_length=10)  # a number field reads 2,9 as 29
        verdict = gr.Radio([*page.predictor.predictor.classes], label="Diagnosis")
        button = gr.Button("Save", variant="primary")
        output = gr.HTML()
    button.click(save, [number, verdict], output, api_visibility="private")


def _add_field(gr: Any, name: str) -> Any:
    if name == "age":
        # Text, because Gradio's number field shows and sends 0 when it is empty.
        return gr.Textbox(label="Age, years", placeholder=NOT_STATED, max_length=5)
    if name in _CHOICES:
        choices = [NOT_STATED, *_CHOICES[name]]
        return gr.Dropdown(choices, value=NOT_STATED, label=name.capitalize())
    return gr.Textbox(label="Patient" if name == PATIENT else name)
