"""Training runs that are killed and go on, for test_killed.py.

python -m tests.training.train_child STORE MODEL FOLDER MOMENT…

A MOMENT is a number n (killed before the n-th rename) or a fraction of an undisturbed run's time. Each is printed
with "same" or "differs": how what the resumed run left compares with the undisturbed one's. SIGKILL hits forks of this
process, which has imported everything but started no thread.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

from wsiseg.training import sft
from wsiseg.training.run import has_state, read_figures

FIGURES = ("step", "loss", "norm")


def run(store: str, model: str, out: Path) -> None:
    recipe = sft.SftRecipe(
        data=store, model=model, steps=5, batch_images=2, queries_per_image=2, warmup_steps=1, precision="fp32",
        workers=0, validation_images=2, validate_every=2, checkpoint_every=2,
    )  # fmt: skip
    sft.train(recipe, out, resume=has_state(out))


def kill_before_rename(n: int) -> None:
    renames, replace = count(1), os.replace

    def counted(source: object, target: object) -> None:
        if next(renames) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)  # type: ignore[type-var]

    os.replace = counted  # type: ignore[assignment]


def forked(store: str, model: str, out: Path, moment: float | None) -> int:
    """Exit status of a run in a child; minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if moment is not None and moment >= 1:
                kill_before_rename(int(moment))
            run(store, model, out)
            status = 0
        finally:
            os._exit(status)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left(out: Path) -> tuple[str, list[list[float]]]:
    """What the run is for: its weights, the state to go on from, and its figures, less those that name times."""
    digest = hashlib.sha256()
    for name in ("model/model.safetensors", "state/state.safetensors", "state/state.json"):
        digest.update((out / name).read_bytes())
    return digest.hexdigest(), [[line[name] for name in FIGURES] for line in read_figures(out, "train")]


def main() -> None:
    store, model, folder, *moments = sys.argv[1:]
    begin = time.monotonic()
    assert wait(forked(store, model, Path(folder) / "whole", None)) == 0
    seconds = time.monotonic() - begin
    expected = left(Path(folder) / "whole")
    for moment in map(float, moments):
        out = Path(folder) / f"{moment:g}"
        child = forked(store, model, out, moment)
        if moment < 1:
            time.sleep(moment * seconds)
            os.kill(child, signal.SIGKILL)
        status = wait(child)
        assert wait(forked(store, model, out, None)) == 0
        print(f"{moment:g}", "killed" if status == -signal.SIGKILL else status, end=" ")
        print("same" if left(out) == expected else "differs", flush=True)


if __name__ == "__main__":
    main()
