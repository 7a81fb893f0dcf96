"""`skinmm fhir`: cases of a case store as FHIR R4 resources, in a file or sent to a server.

A case is a DiagnosticReport with a RiskAssessment (probabilities and decision); an image that came
from a DICOM archive is a Media of its ImagingStudy. A model is a Device. A server creates each
resource once, because it recognises the resources of an earlier transaction by their identifiers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

from skinmm.config.addresses import Token, refuse_redirect, require_private
from skinmm.config.remote_commands import FhirConfig
from skinmm.errors import InputError, print_line, require_new_output
from skinmm.files import atomic_write
from skinmm.predict.cases import NOTICE
from skinmm.serve.outbox import Outbox
from skinmm.serve.store import Store, StoreError, hide_password

TOKEN: Final = Token("SKINMM_FHIR_TOKEN")
SYSTEM: Final = "urn:skinmm:"
SNOMED: Final = "http://snomed.info/sct"
CODES: Final = {
    "bcc": ("254701007", "Basal cell carcinoma of skin"),
    "mel": ("93655004", "Malignant melanoma of skin"),
    "nv": ("400096001", "Melanocytic nevus"),
    "scc": ("254651007", "Squamous cell carcinoma of skin"),
}
"""SNOMED CT codes of the classes that are one concept; the others combine several diagnoses."""
PROCEDURE: Final = ("446078004", "Dermoscopic photography")
CODE_OF_RECORD: Final = {"text": "assessment of a skin lesion without an image"}
USER: Final = "fhir"
TIMEOUT: Final = 60
_BATCH: Final = 100  # cases of a transaction
_ADVICE: Final = {
    **dict.fromkeys((404, 405), "; check url"),
    **dict.fromkeys((408, 429, 502, 503, 504), "; try again later, no case is stored twice"),
}


def export_cases(config: FhirConfig) -> int:
    """Write the cases of a store as Bundles, one transaction per line, or send them."""
    try:
        import fhir.resources  # noqa: F401
    except ImportError as error:
        raise InputError(
            "FHIR resources need fhir.resources: pip install 'skinmm[fhir]'"
        ) from error
    if (config.output is None) == (config.url is None):
        raise InputError("give output=FILE or url=SERVER")
    output = None if config.output is None else _check_output(config)
    bundles, count, last = _build_bundles(config)
    if output is not None:
        with atomic_write(output) as partial:
            partial.write_text("".join(f"{json.dumps(bundle)}\n" for bundle in bundles), "utf-8")
    if config.url is not None:
        for bundle in bundles:
            send(config.url, bundle)
    done = "sent" if output is None else f"in {output}"
    print_line(f"cases: {count} {done}, the last has the number {last}")
    return 0


def _check_output(config: FhirConfig) -> Path:
    output = Path(config.output or "")
    if output.suffix.lower() != ".ndjson":
        raise InputError(f"output={output}: the name must end in .ndjson (one Bundle per line)")
    require_new_output("output", output, overwrite=config.overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    return output


def _build_bundles(config: FhirConfig) -> tuple[list[dict[str, Any]], int, int]:
    """Return the Bundles of the chosen cases, their count and the number of the last."""
    store = Store.open(config.store, create=False)
    try:
        images, models = Outbox(store).list_studies(), store.models()
        bundles, count, last = [], 0, config.after
        while cases := store.find(USER, after=last, patient=config.patient, limit=_BATCH):
            bundles.append(build_bundle(cases, models, images))
            count, last = count + len(cases), cases[-1]["number"]
    except StoreError as error:
        raise InputError(str(error)) from error
    finally:
        store.close()
    if not count:
        whose = f" of patient {config.patient}" if config.patient else ""
        raise InputError(
            f"store={hide_password(config.store)}: no case{whose} after number {config.after}"
        )
    return bundles, count, last


def build_bundle(
    cases: Sequence[Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    images: Mapping[int, tuple[str, str]],
) -> dict[str, Any]:
    """Return the transaction of cases, validated against FHIR R4.

    `images` maps the number of a case to the Study and SOP Instance UID of its image.
    """
    from fhir.resources.R4B.bundle import Bundle

    entries: dict[str, dict[str, Any]] = {}
    for case in cases:
        device = _add(entries, build_device(case["model"], models.get(case["model"], {})))
        subject = {"display": f"case {case['number']}"}
        if case["patient"]:
            subject = _add(entries, _resource("Patient", "patient", case["patient"]))
        evidence: list[dict[str, str]] = []
        if case["number"] in images:
            study, image = images[case["number"]]
            archived = _add(entries, build_study(study, subject))
            evidence = [archived, _add(entries, build_media(image, archived, subject))]
        risk = _add(entries, build_risk(case, device, subject, evidence))
        _add(entries, build_report(case, device, subject, risk, evidence))
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [*entries.values()]}
    return json.loads(Bundle.model_validate(bundle).model_dump_json())


def _add(entries: dict[str, dict[str, Any]], resource: dict[str, Any]) -> dict[str, str]:
    """Add a resource to a transaction unless it is present, and return a reference to it."""
    (identifier,) = resource["identifier"]
    key = f"{identifier['system']}|{identifier['value']}"
    kind, address = resource["resourceType"], f"urn:uuid:{uuid5(NAMESPACE_URL, key)}"
    value = quote(re.sub(r"([\\$,|])", r"\\\1", identifier["value"]), safe=":")  # as in a search
    search = f"identifier={identifier['system']}|{value}"
    request = {"method": "POST", "url": kind, "ifNoneExist": search}
    entries.setdefault(key, {"fullUrl": address, "resource": resource, "request": request})
    return {"reference": address, "type": kind}


def _resource(kind: str, name: str, value: str, **elements: Any) -> dict[str, Any]:
    identifier = {"system": f"{SYSTEM}{name}", "value": value}
    if not name:  # a UID of DICOM
        identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{value}"}
    return {"resourceType": kind, "identifier": [identifier], **elements}


def code_class(name: str) -> dict[str, Any]:
    """Return a class as a CodeableConcept, with a SNOMED CT code if it is a single concept."""
    concept: dict[str, Any] = {"text": name}
    if name in CODES:
        concept["coding"] = [_code(*CODES[name])]
    return concept


def _code(code: str, display: str) -> dict[str, str]:
    return {"system": SNOMED, "code": code, "display": display}


def build_device(model: str, card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Device of a model: version, digests of its checkpoints and its card."""
    members = card.get("members", [])
    facts = {
        "training data": ", ".join(sorted({str(item["trained_on"]) for item in members})),
        "networks": ", ".join(str(item["model"]) for item in members),
        "classes": ", ".join(card.get("classes", [])),
        "malignant": ", ".join(card.get("positive", [])),
        "decision threshold": str(card.get("threshold")),
    }
    notes = [NOTICE, *(f"{name}: {text}" for name, text in facts.items() if members)]
    return _resource(
        "Device",
        "model",
        sha256(model.encode()).hexdigest(),
        status="active",
        manufacturer="skinmm",
        deviceName=[{"name": "skinmm", "type": "model-name"}],
        version=[{"value": str(card.get("skinmm", "unknown"))}],
        note=[{"text": text} for text in [*notes, f"checkpoints, SHA-256: {model}"]],
    )


def build_study(study: str, subject: dict[str, str]) -> dict[str, Any]:
    """Return the ImagingStudy of a study of a DICOM archive."""
    elements = {"status": "available", "subject": subject}
    return _resource("ImagingStudy", "", study, **elements)


def build_media(image: str, study: dict[str, str], subject: dict[str, str]) -> dict[str, Any]:
    """Return the Media of an image of a DICOM archive."""
    elements = {"status": "completed", "subject": subject, "partOf": [study]}
    return _resource("Media", "", image, content={"contentType": "application/dicom"}, **elements)


def build_risk(
    case: Mapping[str, Any],
    device: dict[str, str],
    subject: dict[str, str],
    evidence: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Return the RiskAssessment of a case: the percentage of malignancy and of each class."""
    result = case["result"]
    outcomes = {"malignant lesion of the skin": result["malignancy"], **result["probabilities"]}
    outcomes.pop("malignant", None)  # of two classes: the same outcome
    risk = _resource(
        "RiskAssessment",
        "risk",
        _name(case),
        status="final" if case["verdict"] else "preliminary",
        subject=subject,
        performer=device,
        occurrenceDateTime=case["at"],
        method={"text": "calibrated probabilities of a neural network, in percent"},
        prediction=[
            {"outcome": code_class(name), "probabilityDecimal": round(100 * value, 7)}
            for name, value in outcomes.items()
        ],
        mitigation=f"decision: {result['decision']}",
        note=[{"text": NOTICE}],
    )
    return risk | ({"basis": [*evidence]} if evidence else {})


def build_report(
    case: Mapping[str, Any],
    device: dict[str, str],
    subject: dict[str, str],
    risk: dict[str, str],
    evidence: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """Return the DiagnosticReport of a case."""
    result, verdict = case["result"], case["verdict"]
    parts = [
        f"Decision: {result['decision']}.",
        f"Probability of malignancy: {result['malignancy']:.1%}.",
        f"Predicted without: {', '.join(result['missing'])}." if result.get("missing") else "",
        f"Confirmed diagnosis: {verdict}." if verdict else "",
        NOTICE,
    ]
    report = _resource(
        "DiagnosticReport",
        "case",
        _name(case),
        status="final" if verdict else "preliminary",
        code=CODE_OF_RECORD
        if "image" in result.get("missing", ())
        else {"coding": [_code(*PROCEDURE)]},
        subject=subject,
        effectiveDateTime=case["at"],
        issued=case["at"],
        conclusion=" ".join(filter(None, parts)),
        extension=[
            {"url": f"{SYSTEM}device", "valueReference": device},
            {"url": f"{SYSTEM}risk-assessment", "valueReference": risk},
        ],
    )
    if verdict:
        report["conclusionCode"] = [code_class(verdict)]
    if evidence:
        study, media = evidence
        report |= {"imagingStudy": [study], "media": [{"link": media}]}
    return report


def _name(case: Mapping[str, Any]) -> str:
    """Return an identifier of a case that is unique across stores."""
    content = json.dumps([case["at"], case["model"], case["patient"]])
    return f"{case['number']}-{sha256(content.encode()).hexdigest()[:16]}"


def send(url: str, bundle: dict[str, Any]) -> None:
    """Send a transaction, which the server stores as a whole or not at all."""
    import requests

    require_private(url, f"url: an address of https:// without user and token; set {TOKEN.name}")
    headers = dict.fromkeys(("Content-Type", "Accept"), "application/fhir+json")
    try:
        answer = requests.post(
            url,
            json.dumps(bundle),
            headers=headers,
            timeout=TIMEOUT,
            auth=TOKEN,
            hooks={"response": refuse_redirect},
        )
    except requests.TooManyRedirects as error:
        raise InputError("the server redirects; set url to the final address") from error
    except requests.RequestException as error:
        raise InputError(f"the server does not answer ({type(error).__name__})") from error
    if not answer.ok:
        advice = _ADVICE.get(answer.status_code, "")
        advice = f"; {TOKEN.advise()}" if answer.status_code in (401, 403) else advice
        raise InputError(f"the server refuses the cases: HTTP {answer.status_code}{advice}")
    try:
        content = answer.json()
        kind = content["type"]
        statuses = [entry["response"]["status"][0] for entry in content["entry"]]
    except (ValueError, LookupError, TypeError):
        kind, statuses = "", []
    if kind != "transaction-response" or statuses != ["2"] * len(bundle["entry"]):
        raise InputError(
            "the server does not confirm that it stored the cases: its answer is no "
            "transaction-response with a status 2xx for each entry; check url"
        )
