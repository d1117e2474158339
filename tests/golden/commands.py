"""The commands that are recorded, in their order; each sees what those before it left."""

from __future__ import annotations

from dataclasses import dataclass

FORMATS = ("json", "jsonl", "csv", "tsv")


@dataclass(frozen=True)
class GoldenCommand:
    """A command; after it the text files that match `files` are recorded, and digests of the others.

    The values of the JSON keys `wording` are texts for people, which may change; without `printed` what the
    command prints is left out.
    """

    name: str
    arguments: str
    files: tuple[str, ...] = ()
    wording: tuple[str, ...] = ()
    printed: bool = True


@dataclass(frozen=True)
class Wrong:
    """A command that must end with a sentence and an exit code that says so."""

    name: str
    arguments: str


def _each_format(name: str, arguments: str, wording: tuple[str, ...] = ()) -> tuple[GoldenCommand, ...]:
    return tuple(
        GoldenCommand(
            f"{name}.{form}", f"{arguments} --{form}", wording=wording if form.startswith("json") else ()
        )
        for form in FORMATS
    )


def _merge(name: str, method: str, *, members: str = "near") -> GoldenCommand:
    words = f"merge {members} --method {method} -o out/{name} --json"
    return GoldenCommand(f"merge-{name}", words, (f"out/{name}/*",))


def _weights(method: str) -> GoldenCommand:
    """A merge of which the weights count."""
    words = f"merge adapters/a0 adapters/a2 --method {method} --seed 1 --mixed-ranks"
    words += f" -o out/weights-{method} --json"
    return GoldenCommand(f"weights-{method}", words, (f"out/weights-{method}/*.safetensors",), printed=False)


CATALOG: tuple[GoldenCommand, ...] = (
    GoldenCommand("crawl-preview", "crawl --any-base --dry-run --json"),
    GoldenCommand("crawl-limited-preview", "crawl --limit 5 --rules paper --dry-run --json"),
    GoldenCommand("crawl", "crawl --any-base --weights keep --json"),
    GoldenCommand("crawl-again", "crawl --any-base --weights keep --json"),
    GoldenCommand("status", "status --json"),
    GoldenCommand("status-paper", "status --rules paper --json"),
    GoldenCommand("status-licensed", "status --rules licensed --json"),
    *_each_format("adapters", "adapters"),
    GoldenCommand("adapters-accepted", "adapters --verdict accepted --rules paper -k 3 --json"),
    GoldenCommand(
        "adapters-skipped", "adapters --verdict skipped --rules licensed -k 3 --sort downloads --jsonl"
    ),
    GoldenCommand("adapters-reason", "adapters --reason license_missing --sort norm -k 3 --jsonl"),
    GoldenCommand("adapters-where", "adapters --where 'rank:4..8 license:mit,cc-by-4.0 -owner:ann' --jsonl"),
    GoldenCommand(
        "adapters-where-words", "adapters --where '(questions | reason:zero_update) downloads:*' --jsonl"
    ),
    GoldenCommand("fields", "fields --json", wording=("help",)),
    GoldenCommand("show", "show zoo/overruling --json"),
    GoldenCommand("show-same-owner", "show zoo/banking77-r2 --rules licensed --json"),
    GoldenCommand("show-zero", "show made-here/never-trained --json"),
    GoldenCommand("show-truncated", "show made-here/truncated --json"),
    GoldenCommand("show-folder", "show made-here/checkpoints:checkpoint-20 --json"),
    GoldenCommand("show-dora", "show huggingface/peft-dora --json"),
    GoldenCommand("show-headless", "show alphrc/lilm --json"),
    GoldenCommand("show-tiny", "show ann/one --json"),
    *_each_format("search", "search questions --words -k 3"),
    GoldenCommand("search-where", "search 'speaker corrects' --words --weights 2,1 --where rank:2..4 --json"),
    *_each_format("similar", "similar zoo/banking77 -k 3"),
    GoldenCommand("similar-delta", "similar zoo/banking77 --by delta -k 3 --json"),
    GoldenCommand("similar-exact", "similar zoo/banking77 --exact -k 2 --json"),
    GoldenCommand("similar-any", "similar zoo/overruling --verdict any -k 40 --jsonl"),
    GoldenCommand("similar-folder", "similar adapters/a1 -k 4 --json"),
    *_each_format("duplicates", "duplicates"),
    *(
        GoldenCommand(f"duplicates-{level}", f"duplicates --level {level} --verdict any --json")
        for level in ("file", "tensor", "delta", "family")
    ),
    GoldenCommand("scores-import", "scores import scores.csv --source measured --split valid -n 100 --json"),
    GoldenCommand(
        "scores-import-base", "scores import zero.csv --source measured --split valid -n 100 --json"
    ),
    *_each_format("scores-show", "scores show"),
    GoldenCommand("scores-adapter", "scores show zoo/banking77 --json"),
    GoldenCommand("scores-task", "scores show --task fig_qa --csv"),
    GoldenCommand("fingerprint", "fingerprint hub/zoo/banking77 adapters/a0 --json"),
    GoldenCommand("fingerprint-jsonl", "fingerprint hub/zoo/overruling-r2 --jsonl"),
    GoldenCommand("fingerprint-csv", "fingerprint adapters/a1 --csv"),
    GoldenCommand("fingerprint-missing", "fingerprint --json"),
)

_NEAR = "--by adapter --like zoo/banking77 -k 4 --exclude zoo/banking77 --distinct delta --controls"
_SMOL = "--base HuggingFaceTB/SmolLM2-135M-Instruct"
POOLS: tuple[GoldenCommand, ...] = (
    GoldenCommand("select-adapter", f"select near {_NEAR} --json", ("data/pools/**/*.json",)),
    GoldenCommand(
        "select-adapter-delta", "select x --by adapter --like zoo/disfl_qa --kind delta -k 3 --dry-run --json"
    ),
    GoldenCommand("select-random", "select chance --by random -k 3 --seed 7 --json"),
    GoldenCommand("select-random-owner", "select x --by random -k 2 --per-owner 1 --seed 1 --dry-run --json"),
    GoldenCommand("select-random-family", "select x --by random -k 5 --per-family 1 --dry-run --json"),
    GoldenCommand("select-parameters", "select x --by random -k 5 --parameters 1000000 --dry-run --json"),
    GoldenCommand("select-matched", "select likewise --by matched --to near -k 4 --seed 3 --json"),
    GoldenCommand(
        "select-rank", "select x --by rank -k all --where license:* --use commercial --dry-run --json"
    ),
    GoldenCommand("select-score", "select scored --by score --task overruling -k 3 --json"),
    GoldenCommand("select-worst", "select x --by worst --task overruling -k 3 --dry-run --json"),
    GoldenCommand("select-prior", "select x --by prior --task overruling -k 3 --dry-run --json"),
    GoldenCommand(
        "select-tasks",
        "select x --by tasks --task fig_qa --texts texts.json --query idioms -k 3 --dry-run --json",
    ),
    GoldenCommand("select-text", "select x --by text --query 'questions of parity' -k 3 --dry-run --json"),
    GoldenCommand("search-meaning", "search 'questions of parity' -k 4 --json"),
    GoldenCommand(
        "select-completion",
        "select x --by completion --task fig_qa --texts texts.json --query idioms -k 3 --dry-run --json",
    ),
    GoldenCommand(
        "select-gradient",
        "select slope --by gradient --base tests/tiny-llama --task tasks/thirds --samples 8 -k 3 --json",
    ),
    GoldenCommand(
        "select-gradient-exact",
        "select x --by gradient --base tests/tiny-llama --task thirds --tasks tasks --samples 8 -k 3"
        " --exact --dry-run --json",
    ),
    GoldenCommand(
        "select-racing",
        "select race --by racing --base tests/tiny-llama --task tasks/thirds --budget 40 -k 2 --json",
    ),
    *_each_format("pools", "pools"),
    GoldenCommand("pool-show", "pool show near --json"),
    GoldenCommand("pool-show-control", "pool show near-shuffled --json"),
    GoldenCommand("pool-verify", "pool verify near --json"),
    GoldenCommand("pool-verify-hub", "pool verify near --hub --use commercial --json"),
    GoldenCommand("pool-export", "pool export near --to out/peft --weights --json", ("out/peft/**/*",)),
    GoldenCommand("pool-verify-export", "pool verify out/peft/near-???????? --json"),
    GoldenCommand(
        "pool-export-as-is", "pool export slope --to out/as-is --weights --as-is --json", ("out/as-is/**/*",)
    ),
    GoldenCommand(
        "pool-export-hub", "pool export slope --to out/hub --format hub --weights --json", ("out/hub/**/*",)
    ),
    *(
        GoldenCommand(
            f"pool-export-{form}",
            f"pool export scored --to out/{form} --format {form} --json",
            (f"out/{form}/**/*",),
        )
        for form in ("mergekit", "vllm", "ids")
    ),
    GoldenCommand(
        "pool-import", "--data other pool import out/peft/near-???????? --json", ("other/pools/**/*.json",)
    ),
    GoldenCommand("blobs-verify", "blobs verify --json"),
    GoldenCommand("blobs-repair", "blobs repair --json"),
)

_OTHER_METHODS = (
    *("peft-linear", "peft-cat", "peft-svd", "knots-ties", "core-ties", "peft-ties", "peft-ties-svd"),
    *("magnitude", "dare", "knots-dare-ties", "della", "breadcrumbs", "peft-magnitude-prune"),
    *("peft-dare-linear", "peft-dare-ties", "peft-magnitude-prune-svd", "peft-dare-linear-svd"),
    *("peft-dare-ties-svd", "tsv-m", "iso-c", "iso-cts"),
)
MERGES: tuple[GoldenCommand, ...] = (
    GoldenCommand("methods", "methods --json", wording=("summary", "meaning")),
    GoldenCommand("adaptive", "adaptive --json", wording=("summary",)),
    _merge("average", "average --rank 4"),
    _merge("ties", "ties --rank 8 -p density=0.3"),
    _merge("svd", "svd --rank 2 --dtype float32 --weights 0.1,0.2,0.3,0.4"),
    *(
        _merge(name, method, members="adapters/a0 adapters/a1 adapters/a2 adapters/a3")
        for name, method in (
            ("sum", "sum"),
            ("concatenation", "concatenation --seed 5"),
            ("dare-ties", "dare-ties --seed 3 --rank 4"),
            ("lora-lego", "lora-lego --rank 2 --seed 1"),
            ("tiny-random-pooled", "svd --rank 2 --control random-pooled --seed 2"),
            ("tiny-random-each", "average --control random-each --seed 2"),
            ("tiny-random-directions", "average --control random-directions"),
            ("tiny-shuffled-layers", "average --control shuffled-layers"),
            ("tiny-permuted-ranks", "average --control permuted-ranks"),
        )
    ),
    _merge("separate-average", "separate-average", members="adapters/a0 adapters/a2"),
    *map(_weights, _OTHER_METHODS),
    GoldenCommand("merge-price", "merge near --method ties --rank 8 --dry-run --json"),
    GoldenCommand(
        "merge-apply",
        "merge adapters/a0 adapters/a1 --method average --apply-to base -o out/full --json",
        ("out/full/*",),
    ),
    GoldenCommand("inspect-merge", "inspect-merge near --json"),
    GoldenCommand(
        "inspect-merge-result",
        "inspect-merge adapters/a0 adapters/a1 adapters/a2 adapters/a3 --result out/sum --json",
    ),
)

LEARNING: tuple[GoldenCommand, ...] = (
    GoldenCommand(
        "train",
        "train --base base --task tasks/thirds --rank 2 --lr 1e-3,1e-2 --steps 3 --batch 2 --samples 10"
        " --evaluate-every 1 -o out/trained --json",
        ("out/trained/*",),
    ),
    GoldenCommand(
        "train-dora",
        "train --base base --task thirds --tasks tasks --rank 2 --lr 1e-2 --steps 2 --batch 2 --samples 10"
        " --variant dora --seed 4 -o out/dora --json",
        ("out/dora/*",),
    ),
    GoldenCommand(
        "adapt",
        "adapt adapters/a1 adapters/a2 --with adapters/a0 --base base --task tasks/thirds --samples 10"
        " --steps 3 --split test --limit 5 -o out/adapted --json",
        ("out/adapted/*",),
    ),
    GoldenCommand(
        "adapt-pool",
        "adapt slope --base tests/tiny-llama --task tasks/halves --method lorahub --samples 10 --steps 3"
        " --control random-each -o out/hubbed --json",
        ("out/hubbed/*", "data/controls/**/*"),
    ),
    *(
        GoldenCommand(
            f"adapt-{method}",
            f"adapt adapters/a0 adapters/a2 --base base --task tasks/thirds --method {method} --samples 10"
            " --steps 2 --split test --limit 4 --json",
        )
        for method in ("adamerging", "adamerging-entropy", "soups", "pi-tuning")
    ),
    *(
        GoldenCommand(
            f"adapt-{method}",
            f"adapt adapters/a0 adapters/a2 --base base --task tasks/thirds --method {method} --samples 10"
            " --split test --limit 4 --json",
        )
        for method in ("average", "arrow")
    ),
    *(
        GoldenCommand(
            f"adapt-{method}",
            f"adapt adapters/a0 adapters/a2 --with out/trained --base base --task tasks/thirds"
            f" --method {method} --samples 10 --steps 2 --split test --limit 4 --json",
        )
        for method in ("arrow-trained", "target-rescaled", "target-continued")
    ),
    GoldenCommand(
        "evaluate",
        "evaluate --base tests/tiny-llama --task all --tasks tasks --limit 6 --adapter adapters/a0"
        " --adapter adapters/a1 --pool slope --log out/log.jsonl -o out/scores.json --json",
        ("out/log.jsonl", "out/scores.json"),
    ),
    GoldenCommand(
        "evaluate-partial",
        "evaluate --base base --task tasks/thirds --limit 3 --seed 2 --adapter hub/zoo/fig_qa-r4 --json",
    ),
    GoldenCommand("scores-import-json", "scores import out/scores.json --json"),
    GoldenCommand("scores-show-json", "scores show --task thirds --jsonl"),
    GoldenCommand("study-list", "study list --json", wording=("title",)),
    GoldenCommand("study-count", "study run study.yaml -o out/study --dry-run --json"),
    GoldenCommand(
        "study-run",
        "study run study.yaml -o out/study --json",
        ("out/study/*.json*", "out/study/steps/*/step.json", "out/study/steps/*/result.json"),
    ),
    GoldenCommand(
        "study-report",
        "study report out/study --json",
        ("out/study/summary.json",),
        wording=("says", "text", "sentence"),
    ),
)

LAST: tuple[GoldenCommand, ...] = (
    GoldenCommand("base-list", "base list --json"),
    *_each_format("base-list-llama", "base list --base meta-llama/Llama-3.1-8B-Instruct"),
    GoldenCommand("base-add", "base add tests/tiny-llama mirrors/tiny --note 'heard of it'"),
    GoldenCommand("base-list-added", "base list --base mirrors/tiny --jsonl"),
    GoldenCommand("index-check-before", "index check --json"),
    *_each_format("index-rebuild", "index rebuild"),
    GoldenCommand("index-check", "index check --json", ("data/index/*.faiss", "data/index/*.keys")),
    GoldenCommand("db-check", "db check"),
    GoldenCommand("db-info", "db info --json"),
)

WRONG: tuple[Wrong, ...] = (
    Wrong("no-such-adapter", "show nobody/nothing"),
    Wrong("no-such-field", "adapters --where nofield:3"),
    Wrong("no-such-reason", "adapters --reason nonsense"),
    Wrong("no-such-option", "adapters --nonsense"),
    Wrong("no-such-command", "nonsense"),
    Wrong("score-without-task", "select x --by score"),
    Wrong("adapter-without-like", "select x --by adapter"),
    Wrong("pool-is-there", "select near --by random -k 2"),
    Wrong("no-such-pool", "pool show nothing"),
    Wrong("no-such-method", "merge near --method nonsense -o out/x"),
    Wrong("no-such-parameter", "merge near --method ties -p nonsense=1 -o out/x"),
    Wrong("merge-without-out", "merge near --method ties"),
    Wrong("no-such-member", "merge nowhere --method ties -o out/x"),
    Wrong("merge-is-there", "merge near --method average --rank 4 -o out/average"),
    Wrong("no-such-model", "evaluate --base nowhere --task tasks/thirds"),
    Wrong("no-such-task", "evaluate --base base --task tasks/nothing"),
    Wrong("no-such-scores", "scores import nothing.csv"),
    Wrong("no-such-study", "study run nothing -o out/x"),
    Wrong("ray-without-ray", "study run study.yaml -o out/x --workers 2"),
    Wrong("no-such-folder", "fingerprint nothing"),
    Wrong("no-such-catalog", "--data nothing status"),
    Wrong("no-weights", "similar alphrc/lilm"),
    Wrong("wrong-weights", "search x --words --weights 0"),
)
