"""Train cortex/tiny from nothing: ``python -m tools.tiny.train --out FOLDER``.

Writes ``vocab.json`` and ``model.pt`` (checkpoint, also while training). Two single-threaded
processes share each step and add up their gradients once: on a busy machine that loses far
less than threads that wait for each other inside every operation.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional

from tools.tiny import corpus, tokenizer
from tools.tiny.conversation import Mix
from tools.tiny.model import Shape, Tiny


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training with its own data, optimizers and rate: rise, plateau, fall to 0."""

    steps: int
    peak: float = 1.0  # share of the plan's rates
    warmup: int = 100
    decay_from: float = 0.35  # share of the steps after which the rate falls
    longest: int = 2_400  # rows with more ids are left out
    mix: Mix = field(default_factory=Mix)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the outcome. The defaults made the file that ships."""

    seed: int = 1
    vocab: int = 1280
    vocab_conversations: int = 20_000
    processes: int = 2
    tokens: int = 5_000  # ids per process and step
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    muon_decay: float = 0.02
    phases: tuple[Phase, ...] = (
        Phase(1300),
        # What the first phase leaves shaky: facts, which are rare among the tokens, and the
        # choice to call without having thought.
        Phase(
            900,
            peak=0.5,
            warmup=50,
            decay_from=0.15,
            mix=Mix(
                with_tools=0.5,
                long=0.05,
                ends_at_call=0.6,
                skills=(28, 34, 12, 8, 3, 5, 8, 5, 4, 4),
                kinds=(4, 1.5, 3.5, 3, 3.5, 1, 3, 4.5, 1.5, 1.5),
            ),
        ),
        # Positions that the others hardly see: agents that go on for dozens of turns.
        Phase(
            260,
            peak=0.3,
            warmup=20,
            decay_from=0.2,
            longest=5_600,
            mix=Mix(
                # A thought is in the last turn alone: one in a long row, where a call has dozens.
                thinking=0.7,
                with_tools=0.6,
                long=0.2,
                long_turns=(16, 60),
                chains=0.2,
                again=0.15,
                kin=0.3,
                thoughtless=0.5,
                ends_at_call=0.6,
                skills=(28, 34, 12, 8, 3, 5, 8, 5, 4, 4),
                kinds=(4, 1.5, 3.5, 3, 3.5, 1, 3, 4.5, 1.5, 1.5),
            ),
        ),
    )


def rate_share(phase: Phase, step: int) -> float:
    """Share of the full learning rate at a step: rise, plateau, straight fall to zero."""
    rise = min(1.0, (step + 1) / phase.warmup)
    fall_from = phase.decay_from * phase.steps
    fall = min(1.0, (phase.steps - step) / (phase.steps - fall_from))
    return phase.peak * rise * fall


def loss_sum(model: Tiny, ids: Tensor, wanted: Tensor) -> Tensor:
    """Summed cross entropy over the positions that count."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(ids)
        counts = wanted >= 0
        logits = model.logits(hidden[counts])
    return functional.cross_entropy(logits.float(), wanted[counts], reduction="sum")


class Runner:
    """One training process: the model, its gradients in one flat array, and the reports."""

    def __init__(self, rank: int, plan: Plan, out: Path, began: float) -> None:
        self.rank, self.plan, self.out, self.began = rank, plan, out, began
        vocabulary = tokenizer.Vocabulary.load(out / "vocab.json")
        self.codec = corpus.Codec(vocabulary.tokenizer())
        torch.manual_seed(plan.seed)
        self.model = Tiny(Shape(vocab=len(vocabulary.tokens)))
        self.matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        is_matrix = {id(p) for p in self.matrices}
        self.others = [p for p in self.model.parameters() if id(p) not in is_matrix]
        parameters = [*self.matrices, *self.others]
        # The last two places carry the loss and the count of targets through the same sum.
        self.flat = torch.zeros(sum(p.numel() for p in parameters) + 2)
        offset = 0
        for parameter in parameters:
            size = parameter.numel()
            parameter.grad = self.flat[offset : offset + size].view_as(parameter)
            offset += size
        self.seen = 0

    def run(self, index: int) -> None:
        """Train one phase and leave its checkpoint in ``model.pt``."""
        plan, phase = self.plan, self.plan.phases[index]
        muon = torch.optim.Muon(self.matrices, lr=plan.muon_rate, weight_decay=plan.muon_decay)
        adam = torch.optim.AdamW(
            self.others, lr=plan.adam_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        seed = plan.seed * 1000 + index * 100 + self.rank + 1
        feed = corpus.batches(self.codec, seed, phase.mix, plan.tokens, phase.longest)
        self._say(f"phase {index}: {phase}")
        losses, counted = 0.0, 0.0
        for step in range(phase.steps):
            batch = next(feed)
            loss, count = self._gradients(torch.from_numpy(batch.ids), batch.wanted)
            losses, counted = losses + loss, counted + count
            share = rate_share(phase, step)
            for optimizer, rate in ((muon, plan.muon_rate), (adam, plan.adam_rate)):
                optimizer.param_groups[0]["lr"] = rate * share
                optimizer.step()
            if (step + 1) % 25 == 0:
                spent = time.monotonic() - self.began
                self._say(
                    f"step {step + 1} loss {losses / counted:.4f} {self.seen / 1e6:.1f}M ids "
                    f"{spent:.0f} s {self.seen / spent:.0f} ids/s"
                )
                losses, counted = 0.0, 0.0
            if self.rank == 0 and ((step + 1) % 100 == 0 or step + 1 == phase.steps):
                save(self.model, plan, self.out / "model.pt")

    def _gradients(self, ids: Tensor, wanted: np.ndarray) -> tuple[float, float]:
        """Mean gradients over the targets of all processes; summed loss and target count."""
        self.flat.zero_()
        loss = loss_sum(self.model, ids, torch.from_numpy(wanted))
        loss.backward()
        self.flat[-2], self.flat[-1] = float(loss.detach()), float((wanted >= 0).sum())
        dist.all_reduce(self.flat)
        self.seen += ids.numel() * self.plan.processes
        summed, count = float(self.flat[-2]), float(self.flat[-1])
        self.flat[:-2] /= count
        return summed, count

    def _say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)


def work(rank: int, plan: Plan, out: Path, began: float, first: int) -> None:
    """One training process. Process 0 also reports and saves."""
    torch.set_num_threads(1)
    rendezvous = f"file://{out.resolve() / 'rendezvous'}"
    dist.init_process_group("gloo", rendezvous, rank=rank, world_size=plan.processes)
    runner = Runner(rank, plan, out, began)
    if first > 0:
        weights = torch.load(out / "model.pt", weights_only=True)["weights"]
        runner.model.load_state_dict(weights)
    for index in range(first, len(plan.phases)):
        runner.run(index)
    dist.destroy_process_group()


def save(model: Tiny, plan: Plan, path: Path) -> None:
    """Write the checkpoint whole or not at all."""
    record = {"shape": asdict(model.shape), "plan": asdict(plan), "weights": model.state_dict()}
    partial = path.with_suffix(".partial")
    torch.save(record, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for vocab and checkpoint")
    parser.add_argument(
        "--phase", type=int, default=0, help="start with this phase, from the model.pt in --out"
    )
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "rendezvous").unlink(missing_ok=True)
    plan = Plan()
    began = time.monotonic()
    if arguments.phase == 0:
        texts = corpus.texts(plan.seed, plan.vocab_conversations)
        tokenizer.learn(texts, plan.vocab).save(out / "vocab.json")
        print(f"vocabulary after {time.monotonic() - began:.0f} s", flush=True)
    mp.spawn(work, args=(plan, out, began, arguments.phase), nprocs=plan.processes)
    print(f"trained in {(time.monotonic() - began) / 60:.0f} minutes", flush=True)


if __name__ == "__main__":
    main()
