"""The recipes in configs/: strictly read, and the runs that are made of them; their data as the authors prepare it."""

import importlib.util
import shlex
from pathlib import Path

import pytest
from datasets import Dataset

from jaxpref.objectives import OBJECTIVES, TRANSFORMS, bind
from jaxpref.pareto.run_configs import point_run, single_run
from jaxpref.pareto.settings import doubtful_bases, load_front_config
from jaxpref.settings import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def data():
    spec = importlib.util.spec_from_file_location("modpo_data", CONFIGS / "modpo_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_safety_is_the_scripts_front():
    front = load_front_config(CONFIGS / "modpo_safety.yaml")
    assert front.points == [{"better": w, "safer": pytest.approx(1 - w)} for w in (0.1, 0.5, 0.9)]
    assert doubtful_bases(front) == []
    safer = front.objective("safer")
    margin = single_run(front, "safer", safer.train, safer.eval)
    assert margin.objective == [{"name": "dpo", "beta": 0.1}] and margin.data.prefer is None
    better = front.objective("better")
    for point in front.points:
        run = point_run(front, point, better.train, better.eval)
        [part] = bind(run.objective, OBJECTIVES, TRANSFORMS)
        assert part.name == "modpo" and part.hyperparameters["beta"] == 0.1
        assert part.hyperparameters["w"] == pytest.approx((point["better"], point["safer"]))
        assert run.data.train == better.train and run.data.truncation == "drop"
        assert (run.adapter.rank, run.adapter.alpha, run.train.batch_size, run.train.epochs) == (64, 1, 96, 3)


def test_summarize_is_the_scripts_run():
    run = load_config(CONFIGS / "modpo_summarize.yaml")
    [part] = bind(run.objective, OBJECTIVES, TRANSFORMS)
    assert part.name == "modpo" and part.hyperparameters == {"w": (1.0, 0.1), "beta": 0.1}
    assert run.data.other_rewards == ["length"]
    assert (run.train.batch_size, run.train.epochs, run.data.max_length) == (96, 2, 512)


def test_the_sft_run_of_the_comment_is_read():
    """The overrides that the comment in modpo_summarize.yaml gives for the run before it."""
    lines = (CONFIGS / "modpo_summarize.yaml").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if "out=runs/summarize_sft" in line)
    last = next(i for i in range(first, len(lines)) if not lines[i].endswith("\\"))
    words = " ".join(line.strip("# \\") for line in lines[first : last + 1])
    [_, command, path, *overrides] = shlex.split(words)
    assert command == "train"
    run = load_config(CONFIGS.parent / path, overrides)
    assert run.data.train == ["data/summarize/train.jsonl"]
    assert run.objective == [{"name": "sft"}] and run.train.epochs == 1 and run.adapter.dropout == 0.05


def test_pairs_of_safe_rlhf(data):
    row = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
    prompt = "BEGINNING OF CONVERSATION: USER: q ASSISTANT:"
    assert data.safety_pair(row, "better") == {"prompt": prompt, "chosen": "b", "rejected": "a"}
    assert data.safety_pair(row, "safer") == {"prompt": prompt, "chosen": "a", "rejected": "b"}


def test_files_of_safe_rlhf(data):
    rows = [
        {"prompt": f"q{i}", "response_0": f"a{i}", "response_1": f"b{i}", "better_response_id": i % 2,
         "safer_response_id": 0}
        for i in range(30)
    ]  # fmt: skip
    files = data.safety_files(Dataset.from_list(rows))
    assert {name: len(pairs) for name, pairs in files.items()} == {
        "better-train.jsonl": 27, "better-eval.jsonl": 3, "safer-train.jsonl": 27, "safer-eval.jsonl": 3,
    }  # fmt: skip
    prompts = [{pair["prompt"] for pair in files[f"{name}-{part}.jsonl"]} for name in ("better", "safer")
               for part in ("train", "eval")]  # fmt: skip
    assert prompts[0] == prompts[2] and prompts[1] == prompts[3] and not prompts[0] & prompts[1]


def test_files_of_summaries(data):
    row = lambda i: {"info": {"post": f"p{i}"}, "summaries": [{"text": "s"}, {"text": "t"}], "choice": i % 2}
    train, validation = (Dataset.from_list([row(i) for i in range(n)]) for n in (2, 10))
    files = {name: list(pairs) for name, pairs in data.summary_files(train, validation).items()}
    assert files["train.jsonl"] == [
        {"prompt": "\n\nParagraph:\np0\n\nTL;DR:\n", "chosen": "s", "rejected": "t"},
        {"prompt": "\n\nParagraph:\np1\n\nTL;DR:\n", "chosen": "t", "rejected": "s"},
    ]
    assert len(files["eval.jsonl"]) == 5


def test_mdpo_is_the_scripts_run():
    run = load_config(CONFIGS / "mdpo_llava.yaml")
    [part] = bind(run.objective, OBJECTIVES, TRANSFORMS)
    assert part.name == "mdpo" and part.hyperparameters == {"beta": 0.1, "conditional": 1, "anchor": 1, "delta": 0}
    assert run.model.pictures and run.data.columns == {"images": "img_path"}
    assert (run.adapter.rank, run.adapter.alpha, run.train.batch_size, run.train.epochs) == (64, 128, 32, 3)
    assert (run.optim.learning_rate, run.optim.b2, run.optim.weight_decay) == (1e-5, 0.98, 0.05)


# ---- configs/recipes: models that people have

RECIPES = sorted((CONFIGS / "recipes").glob("*.yaml"))


def ways(path):
    """The command lines in a recipe's header: (what they train, their overrides)."""
    for line in path.read_text().splitlines():
        command, hash_, what = line.removeprefix("#").partition("#")
        if hash_ and command.strip().startswith("jaxpref train"):
            words = shlex.split(command)
            assert words[2] == f"configs/recipes/{path.name}"
            yield what.strip(), words[3:]


def test_there_is_a_recipe_for_every_usual_model():
    assert len(RECIPES) == 10
    assert len({load_config(path).model.path for path in RECIPES}) == 10


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_for_all_weights_lora_and_qlora(path):
    """An adapter learns ten times as fast; in few bits its base takes less; all else is the same."""
    configs = {what: load_config(path, overrides) for what, overrides in ways(path)}
    assert set(configs) == {"all weights", "LoRA", "QLoRA"}
    full, lora, qlora = (configs[what] for what in ("all weights", "LoRA", "QLoRA"))
    assert not full.adapter.trained and lora.adapter.rank == qlora.adapter.rank == 16
    assert (lora.adapter.quantize, qlora.adapter.quantize) == (None, "nf4")
    assert lora.optim.learning_rate == qlora.optim.learning_rate == pytest.approx(10 * full.optim.learning_rate)
    for config in configs.values():
        assert config.mesh.fsdp == "auto" and config.train.micro_rows == "auto" and config.out == f"runs/{path.stem}"
        assert config.objective == full.objective and config.data == full.data
