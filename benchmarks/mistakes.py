"""Fifty deliberate mistakes on the command line, and how each is answered.

An answer is one line that names the value, what is allowed, and what to do (which may be the same
words: "choose from a, b"). All run in this process, in an empty folder.

    python benchmarks/mistakes.py
"""

import contextlib
import io
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from skinmm.cli.main import main


class Mistake(NamedTuple):
    """A command with a mistake, and words of its answer: the value, and what is allowed."""

    command: str
    value: str
    advice: str


FILES: Final = {
    "list.csv": "image_id,age\nISIC_0000000,45\n",
    "empty.csv": "",
    "scores.csv": "image_id,score\na,0.3\n",
    "no_target.csv": "image_id,p_malignant\na,0.3\n",
    "junk.ckpt": "junk",
    "train.csv": "image_name,sex\na,male\n",
}
MISTAKES: Final = tuple(
    Mistake(*(part.strip() for part in line.split("|")))
    for line in """
train optimizer.lr=1e-4x | optimizer.lr=1e-4x | must be a number, e.g. 0.001
train optimizer.lr=-1 | optimizer.lr=-1 | must be at least 0
train optimizer.name=adamm | 'adamm' | choose from adamw, adam, sgd
train optimzer.lr=1 | 'optimzer' | did you mean optimizer?
train data.columns=age,sex | data.columns=age,sex | a list is data.columns=[age,sex]
train data.columns=age | 'age' | must be a list, e.g. [a,b]
train data.columns=[age,heigth] | 'heigth' | the table has age, sex, site
train data.columns=[] | data.columns is empty | use fusion=image_only
train --model tiny | --model | write model=tiny
train --model=tiny | --model=tiny | write model=tiny
train tiny | tiny: | did you mean model=tiny?
train -x | -x | options are -m, --config-dir DIR
train model=efnet_b0 | 'efnet_b0' | choose from convnext_tiny
train model.name=nonsense model.image_size=32 | 'nonsense' | Similar:
train model.image_size=[224] | '[224]' | must be a whole number
train model.pretrained=maybe | =maybe | choose auto, true, false
train fusion=concatt | 'concatt' | choose from bilinear, concat
train fusion=concat fusion.args.width=5 | 'fusion.args.width' | write +fusion.args.width=
train data=nothing | 'nothing' | choose from csv, demo
train data=siim_isic | data=siim_isic | needs data.root=DIR
train data=csv data.root=nowhere | data.root=nowhere | give the folder of the dataset
train data=siim_isic data.root=. | patient_id, target | for a table of your own use data=csv
train data.target=outcome | =outcome | choose from malignant, diagnosis
train data.fold=7 | data.fold=7 | must be 0 to 4
train data.folds=1 | data.folds=1 | must be between 3 and 100
train trainer.max_epochs=ten | 'ten' | must be a whole number
train trainer.batch_size=1.5 | '1.5' | must be a whole number
train trainer.accelerator=tpu | =tpu | choose from auto, cpu, gpu
train trainer.monitor=val/f1 | =val/f1 | choose from val/auroc
train trainer.precision=8 | =8 | choose from auto, 32, bf16, 16
train evaluation.sensitivity=95 | =95.0 | must be between 0.01 and 0.9999
train evaluation.threshold=best | =best | choose from sensitivity, youden, cost
train evaluation.threshold=cost | threshold=cost | needs evaluation.cost_ratio above 0
train sampler.name=even | 'even' | choose from shuffle, weighted
train resume=nowhere | resume=nowhere | skinmm runs lists run folders
train model=[a | model=[a | close each bracket
train model=tiny,resnet50 | model=tiny,resnet50 | -m trains one run for each
train +foo=1 | 'foo' | choose from task, data, model
train hydra.run.dir=/sys/x | =/sys/x | choose another path
trian | 'trian' | choose from train, predict
-v | -v | choose --help or --version
predict input=list.csv output=o.csv checkpoint=no.ckpt | =no.ckpt | no file matches it
predict checkpoint=junk.ckpt input=list.csv output=o.csv | junk.ckpt | give a run folder
predict checkpoint=zoo:cc1 input=list.csv output=o.csv | zoo:cc1 | choose from zoo:cc0
predict output=o.csv | input is missing | for example input=patients.csv
predict input=none.csv output=o.csv | input=none.csv | give a table of lesions
predict input=empty.csv output=o.csv | empty.csv | it needs a header and a row
predict input=list.csv ouput=o.csv | 'ouput' | did you mean output?
serve port=http | 'http' | must be a whole number
report scores.csv output=r.html | image_id, score | it needs p_malignant
compare no_target.csv scores.csv | no_target.csv | give labels=
""".strip().splitlines()
)


def answer(command: str) -> tuple[int, str]:
    """Return exit status and standard error of a command, run in the current folder."""
    for name, content in FILES.items():
        Path(name).write_text(content, encoding="utf-8")
    with (
        contextlib.redirect_stderr(io.StringIO()) as said,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        status = main(command.split())
    return status, said.getvalue().strip()


def is_answered(mistake: Mistake, status: int, said: str) -> bool:
    """Return whether one line refuses the value and names what is allowed or what to do."""
    is_line = status == 2 and said.startswith("error: ") and "\n" not in said  # noqa: PLR2004
    return is_line and mistake.value in said and mistake.advice in said


if __name__ == "__main__":
    answered = 0
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        for mistake in MISTAKES:
            status, said = answer(mistake.command)
            is_good = is_answered(mistake, status, said)
            answered += is_good
            print(f"{'  ' if is_good else '! '}skinmm {mistake.command}\n    {said}")
    print(f"{answered} of {len(MISTAKES)} answered with the value, and what is allowed or to do")
    sys.exit(answered < len(MISTAKES) - 1)
