"""`skinmm dicomweb`: find images on a DICOMweb server, predict them and store the results there.

QIDO-RS finds the images, WADO-RS reads them, STOW-RS stores reports and heat maps (DICOM PS3.18).
The case store remembers every image, so that each gets one result, also if the program is killed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from time import sleep
from typing import Any, Final, NamedTuple, TypeVar

from skinmm.config.addresses import Token, refuse_redirect, require_private
from skinmm.config.checkpoints import announce_included, find_checkpoints
from skinmm.config.remote_commands import DicomwebConfig
from skinmm.errors import InputError, one_line, print_error, print_line
from skinmm.images.dicom import check_filters
from skinmm.images.source import Source
from skinmm.predict.cases import CasePredictor
from skinmm.predict.dicom_sr import CAPTURE, INVALID, build_results
from skinmm.predict.pipeline import require_single_rows
from skinmm.serve.cases import build_case, register_model
from skinmm.serve.outbox import IGNORED, PARKED, SENT, Outbox
from skinmm.serve.responses import ProblemError
from skinmm.serve.run import silence_libraries
from skinmm.serve.store import Store, StoreError, hide_password

T = TypeVar("T")
TOKEN: Final = Token("SKINMM_DICOMWEB_TOKEN")
USER: Final = "dicomweb"
_FIRST_PAUSE: Final = 0.5  # seconds, doubled after each failure
_LAST_PAUSE: Final = 60.0
_RETRIED: Final = (408, 425, 429, *range(500, 600))  # others are parked
_IMAGE_KEYS: Final = ("0020000D", "0020000E", "00080018")  # study, series, instance


class RefusedError(Exception):
    """Permanent refusal of one image by the server."""


class UnavailableError(Exception):
    """Temporary failure of the server, the network or the token."""


class FailedError(UnavailableError):
    """Failure that the server reports for one image; requests for other images may succeed."""


class Image(NamedTuple):
    """UIDs of study, series and instance."""

    study: str
    series: str
    uid: str


def exchange(config: DicomwebConfig) -> int:
    """Find new images in an archive, predict them, and store the results.

    With `watch`, repeats this until stopped. Returns the exit status: 0, or 3 if some images have
    no stored result.
    """
    try:
        import dicomweb_client  # noqa: F401
        import highdicom  # noqa: F401
    except ImportError as error:
        install = "pip install 'skinmm[dicom,dicomweb,serve]'"
        raise InputError(f"skinmm dicomweb needs {error.name}: {install}") from error
    silence_libraries()
    server = Server(config)
    checkpoints = find_checkpoints(config.checkpoint)
    announce_included(checkpoints)
    predictor = CasePredictor(config, checkpoints)
    require_single_rows(predictor.predictor.ensemble.members, "skinmm dicomweb")
    store = Store.open(config.store)
    outbox = Outbox(store)
    with outbox.lock():
        model = register_model(predictor, store)
        outbox.dismiss(config.dismiss)
        if config.parked:
            outbox.restart_parked()
        worker = _Worker(config, server, predictor, outbox, model)
        counts = None
        while True:
            is_available = worker.run()
            before, counts = counts, outbox.count()
            if counts != before:
                text = ", ".join(f"{count} {state}" for state, count in counts.items())
                print_line(f"images: {text} (in all, store: {hide_password(config.store)})")
            if config.watch is None:
                break
            sleep(config.watch)
    store.close()
    return 0 if is_available and counts == {**counts, PARKED: 0, "ready": 0} else 3


class _Worker:
    """Worker that searches, predicts and delivers, in one process."""

    def __init__(
        self,
        config: DicomwebConfig,
        server: "Server",
        predictor: CasePredictor,
        outbox: Outbox,
        model: str,
    ) -> None:
        self._config, self._server, self._outbox = config, server, outbox
        self._predictor, self._model = predictor, model

    def run(self) -> bool:
        """Send ready results, then predict and send new images; return whether all were tried."""
        try:
            for uid in self._outbox.list_ready():
                self._send(uid)
            is_unread = self._outbox.list_images()
            images = self._retry(lambda: {image.uid: image for image in self._server.find()})
            for image in sorted(images.values(), key=lambda image: image.uid in is_unread):
                if is_unread.get(image.uid, True):  # new ones first
                    self._predict(image, is_again=image.uid in is_unread)
            for uid in self._outbox.list_ready(postponed=True):
                self._send(uid, is_again=True)
        except (UnavailableError, StoreError) as error:
            again = (
                "run the command again" if self._config.watch is None else "the next search does"
            )
            print_error(f"{error}; nothing is lost: {again}")
            return False
        return True

    def _predict(self, image: Image, *, is_again: bool) -> None:
        key = (image.uid, image.study)
        try:
            data, manufacturer = self._retry(lambda: self._server.read(image), is_again=is_again)
            if manufacturer == "skinmm":
                self._outbox.add_without_result(key, IGNORED, "a result of skinmm")
                return
            result = build_results(self._predictor, Source(data), {})
            case = build_case(self._predictor, result.prediction, result.case)
        except FailedError as error:
            self._postpone(*key, error)
            return
        except (RefusedError, ProblemError, OSError, *INVALID) as error:
            self._outbox.add_without_result(key, PARKED, one_line(error))
            print_error(f"{image.uid}: parked ({one_line(error)})")
            return
        objects = [
            _to_bytes(dataset)
            for kind, dataset in result.objects.items()
            if self._config.captures or kind != CAPTURE
        ]
        self._outbox.add(USER, self._model, case, key, objects)
        self._send(image.uid)

    def _postpone(self, uid: str, study: str, error: FailedError) -> None:
        """Continue with the other images, unless the whole server fails."""
        self._retry(lambda: next(self._server.find(), None))
        self._outbox.postpone(uid, study, str(error))
        print_error(f"{uid}: postponed until the others are done ({error})")

    def _send(self, uid: str, *, is_again: bool = False) -> None:
        objects = self._outbox.read_objects(uid)
        try:
            self._retry(lambda: self._server.store(objects), is_again=is_again)
        except FailedError as error:
            self._postpone(uid, "", error)
        except RefusedError as error:
            self._outbox.set_state(uid, PARKED, str(error))
            print_error(f"{uid}: its result is parked ({error})")
        else:
            self._outbox.set_state(uid, SENT)

    def _retry(self, call: Callable[[], T], *, is_again: bool = False) -> T:
        """Call with growing pauses after failures.

        A watcher stops only at failures of one image; a postponed one (`is_again`) has one attempt.
        """
        pause, attempt = _FIRST_PAUSE, 1
        while True:
            try:
                return call()
            except UnavailableError as error:
                is_last = attempt >= self._config.attempts
                if isinstance(error, FailedError):
                    is_last = is_last or is_again
                elif self._config.watch is not None:
                    is_last = False
                if is_last:
                    raise
                print_error(f"attempt {attempt}: {error}; again in {pause:g} s")
            sleep(pause)
            pause, attempt = min(2 * pause, _LAST_PAUSE), attempt + 1


class Server:
    """DICOMweb server; every failure is a `RefusedError` or an `UnavailableError`."""

    def __init__(self, config: DicomwebConfig) -> None:
        from dicomweb_client import DICOMwebClient
        from dicomweb_client.session_utils import create_session

        require_private(config.url, f"url: no user, password or token there; set {TOKEN.name}")
        session = create_session()
        session.trust_env = False  # no passwords of a .netrc
        session.hooks["response"].append(refuse_redirect)
        session.auth = TOKEN
        for path in filter(None, (config.certificate, config.client_certificate)):
            if not Path(path).is_file():
                raise InputError(f"{path}: no such certificate file")
        session.verify = config.certificate or True
        session.cert = config.client_certificate
        self._client = DICOMwebClient(config.url, session, timeout=config.timeout)
        self._client.set_http_retry_params(retry=False)
        self._filters, self._modalities = config.filters or {}, config.modality
        check_filters(self._filters)

    def find(self) -> Iterator[Image]:
        """Find the images of the modalities."""
        for modality in self._modalities:
            filters, start, seen = {**self._filters, "Modality": modality}, 0, set[Image]()
            while images := self._call("search", partial(self._search, filters, start)):
                if seen.issuperset(images):  # the server does not answer page by page
                    break
                named = {image for image in images if all(image)} - seen
                if not all(map(all, images)):
                    print_error("search: images without UID are skipped")
                yield from named
                start, seen = start + len(images), seen.union(images)

    def _search(self, filters: dict[str, Any], start: int) -> list[Image]:
        rows = self._client.search_for_instances(search_filters=filters, offset=start)
        return [
            Image(*(str((row.get(key, {}).get("Value") or [""])[0]) for key in _IMAGE_KEYS))
            for row in rows
        ]

    def read(self, image: Image) -> tuple[bytes, str]:
        """Return the stored file of an image, and its manufacturer."""
        anything = (("application/dicom", "*"),)

        def read() -> tuple[bytes, str]:
            dataset = self._client.retrieve_instance(*image, media_types=anything)
            return _to_bytes(dataset), str(dataset.get("Manufacturer", ""))

        return self._call("read", read)

    def store(self, objects: list[bytes]) -> None:
        """Store the results of an image; the answer must list them, or the server have them."""
        from pydicom import dcmread

        datasets = [dcmread(BytesIO(data)) for data in objects]
        refusal: Exception = FailedError("store: the server does not confirm the result")
        stored: set[str] = set()
        try:
            answer = self._call("store", lambda: self._client.store_instances(datasets))
        except RefusedError as error:
            refusal = error
        else:
            failed = answer.get("FailedSOPSequence") or []
            if reasons := sorted({f"{item.get('FailureReason', 0):#06x}" for item in failed}):
                refusal = RefusedError(f"the server does not store it: {', '.join(reasons)}")
            listed = answer.get("ReferencedSOPSequence") or []
            stored = {str(item.get("ReferencedSOPInstanceUID")) for item in listed}
        if not all(item.SOPInstanceUID in stored or self._has(item) for item in datasets):
            raise refusal

    def _has(self, dataset: Any) -> bool:
        """Return whether an object is stored; its UID depends on its content."""
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        try:
            metadata = self._call("check", lambda: self._client.retrieve_instance_metadata(*uids))
            return bool(metadata["00080018"]["Value"] == [dataset.SOPInstanceUID])
        except (RefusedError, LookupError, TypeError):
            return False

    def _call(self, action: str, call: Callable[[], T]) -> T:
        import requests

        is_search = action == "search"  # which concerns no single image
        failure = UnavailableError if is_search else FailedError
        try:
            return call()
        except requests.HTTPError as error:
            kind, text = _explain_status(error.response, failure)
        except requests.TooManyRedirects:
            kind, text = failure, "the server redirects; set url to the final address"
        except requests.JSONDecodeError:
            kind, text = failure, "the answer is not JSON; check url"
        except requests.RequestException as error:  # its text has UIDs
            kind, text = failure, f"no answer ({type(error).__name__})"
        except OSError as error:
            kind, text = UnavailableError, f"cannot read {TOKEN.file} ({type(error).__name__})"
        except Exception:  # a damaged file, for which pydicom has no base class
            text = "the answer is not DICOM"
            kind, text = (failure, f"{text}; check url") if is_search else (RefusedError, text)
        raise kind(f"{action}: {text}")


def _explain_status(response: Any, failure: type[Exception]) -> tuple[type[Exception], str]:
    """Return the kind of failure of a HTTP status, and its message."""
    status = response.status_code
    text = f"HTTP {status} {response.reason}"
    if status == 401:  # noqa: PLR2004
        return UnavailableError, f"{text}, {TOKEN.advise()}"
    if status == 403:  # noqa: PLR2004  perhaps of one study
        return failure, f"{text}: no access, or {TOKEN.advise()}"
    if status in _RETRIED:
        return failure, text
    if failure is UnavailableError:
        return failure, f"{text}; check url"
    return RefusedError, text


def _to_bytes(dataset: Any) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
