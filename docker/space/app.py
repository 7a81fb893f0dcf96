"""The page of `skinmm serve` as a hosted Gradio Space, open to everyone; see README.md."""

import os
from pathlib import Path

import uvicorn

from skinmm.config.remote_commands import ServeConfig
from skinmm.predict.cases import CasePredictor
from skinmm.serve.app import RequestQueue, create_app
from skinmm.serve.page import mount_page
from skinmm.serve.run import silence_libraries

CHECKPOINT = Path(os.environ.get("SKINMM_CHECKPOINT", Path(__file__).with_name("best.ckpt")))

predictor = CasePredictor(ServeConfig(), [CHECKPOINT])
queue = RequestQueue(slots=8, seconds=60, threads=predictor.concurrency)
# The site of the Space shows the page in a frame.
app = mount_page(create_app(predictor, queue, framed=True))

if __name__ == "__main__":
    silence_libraries()
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    uvicorn.run(app, host="0.0.0.0", port=port, log_level="warning", access_log=False)  # noqa: S104
