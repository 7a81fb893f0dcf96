"""Is a picture sharp enough to be judged?"""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from fastapi import FastAPI
from jaxtyping import UInt8
from PIL import Image

from skinmm.predict.explain import decode_for_display
from skinmm.predict.single_case import NOTICE, Case, CasePredictor
from skinmm.serve.body import JAVASCRIPT, body_html
from skinmm.serve.cases import PATIENT, Book, find_case, judge
from skinmm.serve.education import about_html, learn_html
from skinmm.serve.forms import MAX_IMAGE, check_image
from skinmm.serve.keys import who_asked
from skinmm.serve.problems import ProblemError
from skinmm.serve.queue import Desk
from skinmm.serve.view import AUDIENCES, SIDE, Judged, refusal, result
from skinmm.vocabulary import SEXES, SITES

SHORTEST: Final = 224  # pixels that the shorter side is brought to
BLURRED: Final = 5.0
"""Below, a picture is called blurred. Of 350 pictures of the embedded cohort and 22 camera files
none is (the least are 7.5 and 10.5), of 400 of HAM10000 fewer than 1 in 100; blurred with a
standard deviation of 2 pixels, more than 90 in 100 of the first are."""


def sharpness(pixels: UInt8[np.ndarray, "_ _ 3"]) -> float:
    """The variance of the Laplacian (Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548)."""
    grey = Image.fromarray(pixels).convert("L")
    scale = min(1.0, SHORTEST / min(grey.size))
    size = (max(3, round(scale * grey.width)), max(3, round(scale * grey.height)))
    light = np.asarray(grey.resize(size, Image.Resampling.BILINEAR), np.float64)
    around = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:]
    return float((around - 4 * light[1:-1, 1:-1]).var())


TITLE: Final = "skinmm: a lesion's probability of malignancy"
NOT_STATED: Final = "not stated"
MEMORY: Final = Path("/dev/shm")  # noqa: S108  uploads stay in memory, if there is such a folder
STALE: Final = (60, 300)  # seconds: how often is looked for what nobody sent off, and how old it is
SITE: Final = "site"
_WORDS: Final = {"sex": SEXES, SITE: SITES}
_CSS: Final = Path(__file__).with_name("page.css")


class Page:
    """What the page's buttons do."""

    def __init__(self, service: CasePredictor, desk: Desk, book: Book) -> None:
        """Takes what answers, its queue, and where cases are kept."""
        self._service, self._desk, self.book = service, desk, book

    def found(self, who: str, number: Any, verdict: str | None) -> str:
        """Writes a verdict down, and says so or why not."""
        store = self.book.store
        try:
            if store is None:
                raise ProblemError.unusable("No cases are kept here.")
            if not isinstance(number, int | float) or number < 1:
                raise ProblemError.unusable("Say the number of the case.")
            if verdict is None:
                raise ProblemError.unusable("Say what it was.")
            case = find_case(store, who, int(number))
            judge(store, who, case, verdict)
        except ProblemError as error:
            return refusal(error.detail)
        return f'<p role="status">Case {case["number"]}: {verdict}. Thank you.</p>'

    async def judge(
        self, who: str, upload: str | None, audience: str, *cells: Any
    ) -> tuple[str, None]:
        """A result as HTML, and nothing in the upload's place: the file is gone.

        Args:
            who: asks.
            upload: where Gradio put the file.
            audience: for whom.
            cells: the fields of the form, in the order of the book's columns.
        """
        try:
            data = taken(upload)
            async with self._desk.place() as place:
                judged = await place.run(lambda: self._judged(who, data, cells))
        except ProblemError as error:
            return refusal(error.detail), None
        return result(judged, audience), None

    def _judged(self, who: str, data: bytes | None, cells: Sequence[Any]) -> Judged:
        record = {
            name: str(cell)
            for name, cell in zip(self.book.columns, cells, strict=True)
            if cell not in (None, "", NOT_STATED)
        }
        case = Case(data, record)
        small = 0
        if data is not None:
            info = check_image(data)
            small = self._service.side if min(info.width, info.height) < self._service.side else 0
        elif self._service.needs_image:
            raise ProblemError.unusable("This model needs an image: choose one first.")
        row, reasons = self._service.predict_and_explain(case)
        if reasons is None:
            raise ProblemError.unusable(row["error"])
        self.book.keep(who, [row], [case])
        blurred = data is not None and sharpness(decode_for_display(data, None, SIDE)) < BLURRED
        return Judged(case, row, reasons, self._service.card, small, blurred)


def taken(upload: str | None) -> bytes | None:
    """An upload's bytes; the file and its folder are deleted.

    Raises:
        ProblemError: it is gone.
    """
    if upload is None:
        return None
    path = Path(upload)
    try:
        data = path.read_bytes()
        path.unlink()
        path.parent.rmdir()
    except FileNotFoundError:
        raise ProblemError.unusable("The file was deleted here; choose it again.") from None
    except OSError:  # another upload is in the same folder
        pass
    return data


def mount_page(
    app: FastAPI, service: CasePredictor, desk: Desk, book: Book | None = None
) -> FastAPI:
    """The application with the page at `/`; `book` says where cases are kept, if anywhere."""
    folder = TemporaryDirectory(prefix="skinmm-page-", dir=MEMORY if MEMORY.is_dir() else None)
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # also while it is imported
    import gradio as gr

    app.state.uploads = folder  # deleted when the application ends
    return gr.mount_gradio_app(
        app,
        build_page(Page(service, desk, book or Book(service, None)), service),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=MAX_IMAGE,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=_theme(gr),
        css_paths=_CSS,
    )


def build_page(page: Page, service: CasePredictor) -> Any:
    """The page as Gradio's Blocks."""
    import gradio as gr

    async def pressed(
        request: gr.Request, upload: str | None, audience: str, *cells: Any
    ) -> tuple[str, None]:
        return await page.judge(_who(request), upload, audience, *cells)

    stored = page.book.store is not None
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=STALE) as blocks:
        gr.HTML(f'<header><h1>{TITLE}</h1><p class="notice">{NOTICE}</p></header>')
        with gr.Tab("Lesion"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = gr.File(label="Image", type="filepath", height=150)
                gr.HTML('<p class="small">JPEG, PNG or DICOM, up to 20 MB.</p>')
                fields = [_field(gr, name) for name in page.book.columns]
                if SITE in page.book.columns:
                    _body(gr, fields[page.book.columns.index(SITE)])
                audience = gr.Radio(list(AUDIENCES), value=AUDIENCES[0], label="Explain it to the")
                button = gr.Button("Judge this lesion", variant="primary")
            with gr.Column(scale=3, min_width=300):
                said = gr.HTML(_WAITING.format(_KEPT if stored else ""), elem_id="said")
        if stored:
            _verdicts(page, service.predictor.classes)
        with gr.Tab("Learn"):
            gr.HTML(learn_html())
        with gr.Tab("Model"):
            gr.HTML(about_html(service.card))
        button.click(
            pressed,
            [upload, audience, *fields],
            [said, upload],
            api_visibility="private",
            concurrency_limit=None,  # the desk counts
        )
    return blocks


def _theme(gr: Any) -> Any:
    """Gradio's own, with fonts that need not be fetched and a button that is easy to read."""
    theme = gr.themes.Default(
        primary_hue="teal",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    dark = {f"button_primary_background_fill{mode}": "*primary_700" for mode in ("", "_dark")}
    dark |= {
        f"button_primary_background_fill_hover{mode}": "*primary_800" for mode in ("", "_dark")
    }
    return theme.set(**dark)


_WAITING: Final = (
    '<p class="waiting">The result comes here. The image is deleted as soon as it is there.{}</p>'
)
_KEPT: Final = " Record and result are kept as a case."


def _who(request: Any) -> str:
    return who_asked(request.request.scope)


def _verdicts(page: Page, classes: Sequence[str]) -> None:
    """Where clinicians say what a lesion was in the end."""
    import gradio as gr

    def pressed(request: gr.Request, number: float | None, verdict: str | None) -> str:
        return page.found(_who(request), number, verdict)

    with gr.Tab("Verdict"):
        gr.HTML("<p>What was it in the end? Verdicts show how well the model does here.</p>")
        number = gr.Number(label="Case", precision=0, value=None)
        verdict = gr.Radio([*classes], label="It was")
        button = gr.Button("Keep this verdict", variant="primary")
        said = gr.HTML()
    button.click(pressed, [number, verdict], said, api_visibility="private")


def _body(gr: Any, sites: Any) -> None:
    """A body that chooses in the list of sites, and shows what is chosen there."""
    same = "(site) => site"
    body = gr.HTML(NOT_STATED, html_template=body_html(), js_on_load=JAVASCRIPT)
    body.input(None, body, sites, js=same, api_visibility="private")
    sites.change(None, sites, body, js=same, api_visibility="private")


def _field(gr: Any, name: str) -> Any:
    if name == "age":
        # Text: Gradio's field of numbers shows, and sends, 0 where nobody typed anything.
        return gr.Textbox(label="Age, years", placeholder=NOT_STATED, max_length=5)
    if name in _WORDS:
        choices = [NOT_STATED, *_WORDS[name]]
        return gr.Dropdown(choices, value=NOT_STATED, label=name.capitalize())
    return gr.Textbox(label="Patient" if name == PATIENT else name)
