"""`skinmm serve`: loads, checks who may listen, and runs until it is stopped."""

import logging
import warnings
from pathlib import Path
from typing import Any, Final

from skinmm.config import ServeConfig
from skinmm.errors import InputError
from skinmm.serve.keys import HOW, Keys, is_loopback

INSTALL: Final = "pip install 'skinmm[serve]'"
INSTALL_PAGE: Final = "pip install 'skinmm[serve,page]'"


def serve(config: ServeConfig) -> int:
    """Serves until Ctrl-C.

    Returns:
        The exit status.

    Raises:
        InputError: a checkpoint, key file or store that cannot be used, an address that others can
            reach without keys, or packages that are not installed.
    """
    local = is_loopback(config.host)
    keys = None if config.keys is None else Keys.read(Path(config.keys))
    if keys is None and not local:
        raise InputError(
            f"host={config.host}: others can reach this address, so it needs keys=FILE; {HOW}"
        )
    try:
        import uvicorn

        app = _application(config, keys)
    except ModuleNotFoundError as error:
        raise InputError(f"skinmm serve needs {error.name}: {INSTALL}") from error
    print(f"skinmm: http://{config.host}:{config.port}/ (research use only)")  # noqa: T201
    hush()
    uvicorn.run(
        app,
        host=config.host,
        port=config.port,
        log_level="warning",
        access_log=False,  # a query could name a patient
        server_header=False,
        timeout_keep_alive=5,
    )
    return 0


def _application(config: ServeConfig, keys: Keys | None) -> Any:
    """The API, and the page if it is wished for.

    Raises:
        InputError: a checkpoint or store that cannot be used.
        ModuleNotFoundError: a package that is not installed.
    """
    from skinmm.predict.job import find_checkpoints
    from skinmm.predict.single_case import CasePredictor
    from skinmm.serve.app import create_app
    from skinmm.serve.cases import Book
    from skinmm.serve.queue import Desk
    from skinmm.serve.store import Store, StoreError, shown

    service = CasePredictor(
        find_checkpoints(config.checkpoint),
        config.accelerator,
        referral=config.referral,
        backend=config.backend,
    )
    desk = Desk(config.queue, config.timeout, service.lanes)
    store = Store.open(config.store) if config.store else None
    try:
        book = Book(service, store, images=config.store_images)
    except StoreError as error:
        raise InputError(f"store={shown(config.store or '')}: {error}") from error
    names = {"localhost", "127.0.0.1", "::1", config.host}
    hosts = names if keys is None else None
    app = create_app(service, desk, keys=keys, hosts=hosts, batch=config.batch, book=book)
    return _with_page(app, service, desk, book) if config.page else app


def _with_page(app: Any, service: Any, desk: Any, book: Any) -> Any:
    from skinmm.serve.page import mount_page

    try:
        return mount_page(app, service, desk, book)
    except ModuleNotFoundError as error:
        raise InputError(f"page=true needs {error.name}: {INSTALL_PAGE}, or page=false") from error


def hush() -> None:
    """Lets no library say what it finds in a file: it could be a patient's name."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "python_multipart", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
