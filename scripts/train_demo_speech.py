#!/usr/bin/env python3
"""Trains oxlo-demo-speech, the embedded speech model, on speech that espeak-ng makes, and scores it.

    scripts/train_demo_speech.py                  all steps: data, train, export, eval (two hours on two cores)
    scripts/train_demo_speech.py eval             the score of the committed folder on held-out voices and sentences
    scripts/train_demo_speech.py recordings       some recordings of the examination for tests that have no espeak-ng
    scripts/train_demo_speech.py --check-overlap  shows that no held-out sentence or voice was trained on

A run that was stopped goes on from its checkpoint in --work when started again: the same command, the same result.
Needs espeak-ng (apt-get install espeak-ng), torch, transformers, faster-whisper.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from demo_training import command_line, parsed, say  # noqa: E402  # after the path that leads to it

STEPS = ("data", "train", "export", "eval")
SHARD = 1000  # windows a file
ALLOWED_WER = 0.10


def arguments() -> argparse.Namespace:
    """The command line."""
    others = {"sentences": "prints samples", "recordings": "for the tests"}
    parser = command_line(__doc__, STEPS, others, "oxlo-demo-speech")
    parser.add_argument(
        "--windows", type=int, default=50_000, help="windows to train on in all (default 50000)"
    )
    parser.add_argument("--shards", type=int, default=60, help="files of 1,000 windows to make (default 60)")
    parser.add_argument(
        "--each", type=int, default=20, help="recordings for each held-out voice (default 20)"
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        default=ROOT / "tests" / "recordings" / "demo_speech",
        help="folder of the step recordings",
    )
    parser.add_argument("--faults", action="store_true", help="print every recording that was misheard")
    parser.add_argument(
        "--check-overlap",
        action="store_true",
        help="compare 200,000 training sentences with the held-out ones",
    )
    return parsed(parser)


def check_overlap(seed: int) -> int:
    """Prints what is both trained on and examined; exit code 1 if there is anything."""
    import random

    from demo_speech.grammar import held_out_sentence, training_sentence
    from demo_speech.voices import held_out_voices, training_voice

    rng = random.Random(seed)
    trained = {training_sentence(rng) for _ in range(200_000)}
    examined = {held_out_sentence(rng) for _ in range(20_000)}
    known = {training_voice(rng).name for _ in range(20_000)}
    unknown = {f"{accent}+{variant}" for accent, variant in held_out_voices()}
    for both in sorted(trained & examined) + sorted(known & unknown):
        print(f"{both!r} is held out and trained on")
    overlaps = len(trained & examined) + len(known & unknown)
    print(f"{len(trained)} training sentences, {len(examined)} held out, {len(known)} training voices, "
          f"{len(unknown)} held out, {overlaps} overlaps")  # fmt: skip
    return 1 if overlaps else 0


def print_sentences(seed: int) -> None:
    """A look at the sentences."""
    import random

    from demo_speech.grammar import training_sentence

    rng = random.Random(seed)
    print("\n".join(training_sentence(rng) for _ in range(20)))


def make_data(given: argparse.Namespace, folder: Path) -> None:
    """Makes the shards that are not there yet, on all cores."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    from demo_speech.windows import write_shard

    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(given.shards) if not shard_path(folder, number).exists()]
    say(f"data: {len(missing)} of {given.shards} files of {SHARD} windows to make in {folder}")
    with ProcessPoolExecutor(given.threads or os.cpu_count()) as pool:
        running = {
            pool.submit(write_shard, shard_path(folder, number), given.seed, number * SHARD, SHARD): number
            for number in missing
        }
        for task in running:
            task.result()
            say(f"data: {shard_path(folder, running[task])}")


def shard_path(folder: Path, number: int) -> Path:
    """Where the windows from number * SHARD on lie."""
    return folder / f"{number:05}.npz"


def run_training(given: argparse.Namespace, data: Path, checkpoint: Path) -> None:
    """Trains, or goes on training, up to the windows given."""
    import torch
    from bfloat16 import fast_bfloat16
    from demo_speech.grammar import WORDS
    from demo_speech.model import Shape, Whisper
    from demo_speech.tokens import Vocabulary
    from demo_speech.train import Plan, train
    from demo_speech.windows import phoneme_table

    kind = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    torch.set_num_threads(given.threads or os.cpu_count() or 1)
    shards = [shard_path(data, number) for number in range(given.shards)]
    phonemes = phoneme_table(shards[0])
    shape = Shape(Vocabulary().size, len(phonemes) + 1, len(WORDS) + 1)
    device = torch.device(kind)
    say(
        f"train: {Whisper(shape).parameter_count() / 1e6:.2f} M parameters on {kind}, {given.windows} windows"
    )
    plan = Plan(given.seed, given.windows, device, bfloat16=fast_bfloat16(device))
    _, progress = train(plan, shape, phonemes, shards, checkpoint)
    say(f"train: {progress.windows} windows in {progress.step} steps, {progress.seconds / 60:.0f} min")


def export(checkpoint: Path, out: Path) -> None:
    """Writes the CTranslate2 folder from the checkpoint."""
    import torch
    from demo_speech.export import write_folder
    from demo_speech.model import shape_of

    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    write_folder(out, weights, shape_of(weights))
    say(f"export: {out}, {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.2f} MB")


def evaluate(given: argparse.Namespace) -> int:
    """Prints the score; exit code 1 above 10 % of words wrong."""
    from demo_speech import evaluate as exam

    model = exam.load(given.out)
    voices = exam.scored(model, exam.examination(given.seed, given.each))
    everybody = exam.total(voices)
    longer = exam.total(exam.scored(model, exam.long_recordings(given.seed)))
    quiet = exam.silences(given.seed)
    spoke = sum(exam.speaks(model, sound) for sound in quiet)
    if given.faults:
        print("\n".join(everybody.faults + longer.faults))
    print(exam.table(voices))
    print(f"{'words of one sentence':24} {exam.times(everybody.word_starts, everybody.word_ends)}")
    print(f"{'words of five on end':24} {exam.times(longer.word_starts, longer.word_ends)}")
    print(f"{'segments of five on end':24} {exam.times(longer.segment_starts, longer.segment_ends)}")
    print(f"five sentences on end, over several windows: {longer.wrong} of {longer.words} words wrong:"
          f" {100 * longer.error_rate:.1f} % WER")  # fmt: skip
    print(f"silence and noise: words heard in {spoke} of {len(quiet)} recordings")
    print(f"held-out voices and sentences: {everybody.wrong} of {everybody.words} words wrong in"
          f" {everybody.recordings} recordings: {100 * everybody.error_rate:.1f} % WER")  # fmt: skip
    return 0 if everybody.error_rate <= ALLOWED_WER else 1


def main() -> int:
    """Runs the steps named, in their order."""
    given = arguments()
    if given.check_overlap:
        return check_overlap(given.seed)
    data, checkpoint = given.work / "data", given.work / "checkpoint.pt"
    steps = given.steps or STEPS
    if "sentences" in steps:
        print_sentences(given.seed)
    if "recordings" in steps:
        from demo_speech.recordings import write_recordings

        write_recordings(given.recordings, given.seed)
    if "data" in steps:
        make_data(given, data)
    if "train" in steps:
        run_training(given, data, checkpoint)
    if "export" in steps:
        export(checkpoint, given.out)
    return evaluate(given) if "eval" in steps else 0


if __name__ == "__main__":
    sys.exit(main())
