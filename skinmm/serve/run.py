"""`skinmm serve`: load the model, check who may connect, and run until stopped."""

import logging
import socket
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from skinmm.config.addresses import is_loopback
from skinmm.config.remote_commands import ServeConfig
from skinmm.errors import InputError, print_line


def serve(config: ServeConfig) -> int:
    """Serve until Ctrl-C or SIGTERM; return exit status 1 if the service cannot start."""
    try:
        import uvicorn

        from skinmm.serve.middleware import KEY_HELP, Keys

        keys = None if config.keys is None else Keys.read(Path(config.keys))
        if keys is None and not is_loopback(config.host):
            raise InputError(
                f"host={config.host}: other machines can reach this address, so it needs "
                f"keys=FILE; {KEY_HELP}"
            )
        _require_free_port(config.host, config.port)
        if config.page and find_spec("gradio") is None:  # before torch, which takes seconds
            install = "pip install 'skinmm[serve,page]'"
            raise InputError(f"page=true needs gradio: {install}, or page=false")
        app = _build_app(config, keys)
    except ModuleNotFoundError as error:
        install = "pip install 'skinmm[serve]'"
        raise InputError(f"skinmm serve needs {error.name}: {install}") from error
    print_line(f"skinmm: http://{config.host}:{config.port}/ (research use only)")
    silence_libraries()
    options = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,  # a query could name a patient
        server_header=False,
        ws="none",  # the page gets its events over HTTP
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,  # seconds for the answers to requests that have arrived
    )
    server = uvicorn.Server(options)
    server.run()  # raises on Ctrl-C and SIGTERM, after it has stopped
    return int(not server.started)


def _require_free_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        text = f"host={host} port={port}: {reason}; choose another port or host"
        raise InputError(text) from error


def _build_app(config: ServeConfig, keys: Any) -> Any:
    from skinmm.config.checkpoints import announce_included, find_checkpoints
    from skinmm.predict.cases import CasePredictor
    from skinmm.serve.app import RequestQueue, create_app
    from skinmm.serve.cases import CaseRecorder
    from skinmm.serve.rendering import load_texts
    from skinmm.serve.store import Store, StoreError, hide_password

    texts = load_texts(config.texts)
    checkpoints = find_checkpoints(config.checkpoint)
    announce_included(checkpoints)
    predictor = CasePredictor(config, checkpoints)
    queue = RequestQueue(config.queue, config.timeout, predictor.concurrency)
    store = Store.open(config.store) if config.store else None
    try:
        recorder = CaseRecorder(predictor, store, images=config.store_images)
    except StoreError as error:
        raise InputError(f"store={hide_password(config.store or '')}: {error}") from error
    hosts = {"localhost", "127.0.0.1", "::1", config.host} if keys is None else None
    app = create_app(
        predictor, queue, keys=keys, hosts=hosts, batch=config.batch, recorder=recorder
    )
    if not config.page:
        return app
    from skinmm.serve.page import mount_page

    return mount_page(app, patient_view=config.patient_view, texts=texts)


def silence_libraries() -> None:
    """Disable messages of libraries about files, because file names may contain patients' names."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "python_multipart", "PIL", "retrying"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
