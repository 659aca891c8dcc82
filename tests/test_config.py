"""The configuration: everything wrong is said at once, and what is right arrives typed."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

import jaxpref
from jaxpref import cli
from jaxpref.config import Config, DataConfig, ReferenceConfig
from jaxpref.errors import InputError
from jaxpref.objectives import OBJECTIVES, bind
from jaxpref.pareto.config import AnswersConfig, ObjectiveConfig, ParetoConfig
from jaxpref.settings import keys, load_config, make_config, save_config, to_dict
from jaxpref.settings.keys import SECTIONS
from jaxpref.settings.other_trainers import OTHERWISE, RENAMED, answer


def problems(raw=None, overrides=(), path=None) -> str:
    with pytest.raises(InputError) as caught:
        make_config(raw) if raw is not None else load_config(path, overrides)
    return caught.value.got


def listed(text: str) -> list[str]:
    return text.split("\n  - ")[1:]


def test_defaults_load():
    assert make_config({}) == load_config() == Config()


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.seed = 1


@pytest.mark.parametrize(
    "raw, key, near",
    [
        ({"optim": {"learning_rat": 1e-5}}, "optim.learning_rat", "optim.learning_rate"),
        ({"optim": {"lr_schedule": "cosine"}}, "optim.lr_schedule", "optim.schedule"),
        ({"optim": {"batch_size": 4}}, "optim.batch_size", "train.batch_size"),
        ({"learning_rate": 1e-5}, "learning_rate", "optim.learning_rate"),
        ({"data": {"max_len": 12}}, "data.max_len", "data.max_length"),
        ({"mesh": {"tensors": 2}}, "mesh.tensors", "mesh.tensor"),
    ],
)
def test_unknown_key_names_the_nearest(raw, key, near):
    assert listed(problems(raw)) == [f"{key}: unknown key; did you mean {near}?"]


def test_unknown_key_unlike_any_other_has_no_suggestion():
    assert listed(problems({"zzqqxx": 1})) == ["zzqqxx: unknown key"]


@pytest.mark.parametrize(
    "raw, key",
    [
        ({"train": {"batch_size": "four"}}, "train.batch_size"),
        ({"train": {"batch_size": 4.5}}, "train.batch_size"),
        ({"train": {"batch_size": True}}, "train.batch_size"),
        ({"train": {"batch_size": 0}}, "train.batch_size"),
        ({"train": {"seed": 2**32}}, "train.seed"),  # jax would take it for 0
        ({"mesh": {"fsdp": None}}, "mesh.fsdp"),
        ({"optim": {"learning_rate": "1e-5x"}}, "optim.learning_rate"),
        ({"optim": {"learning_rate": -1.0}}, "optim.learning_rate"),
        ({"optim": {"warmup_ratio": 1.5}}, "optim.warmup_ratio"),
        ({"optim": {"b1": 1.0}}, "optim.b1"),
        ({"optim": {"schedule": "cosin"}}, "optim.schedule"),
        ({"model": {"compute_dtype": "float16"}}, "model.compute_dtype"),
        ({"data": {"train": 1}}, "data.train"),
        ({"data": {"train": [1]}}, "data.train.0"),
        ({"log": {"wandb": "yes"}}, "log.wandb"),
        ({"out": None}, "out"),
        ({"train": None}, "train"),
        ({"objective": 0.1}, "objective"),
    ],
)
def test_wrong_type_or_range_names_the_key(raw, key):
    [line] = listed(problems(raw))
    assert line.startswith(f"{key}: ") and "got " in line


@pytest.mark.parametrize(
    "raw, said",
    [
        ({"optim": {"warmup_steps": 3, "warmup_ratio": 0.1}}, "optim.warmup_steps and optim.warmup_ratio"),
        ({"optim": {"momentum": 0.9}}, "optim.momentum is for sgd; optim.name is adamw"),
        ({"optim": {"name": "adafactor", "moment_dtype": "bfloat16"}}, "adafactor keeps no first moment"),
        ({"optim": {"name": "sgd", "weight_decay": 0.1}}, "optim.weight_decay has no effect with sgd"),
        ({"data": {"row_length": 200}}, "data.row_length=200 is not a multiple of model.attention_block=128"),
        ({"data": {"row_length": 256, "length_buckets": 4}}, "attention_block=128 * data.length_buckets=4"),
        ({"mesh": {"data": 2, "fsdp": 2}, "train": {"micro_rows": 6}}, "train.micro_rows=6 is not a multiple"),
        ({"objective": [{"name": "sft"}], "reference": {"path": "x"}}, "no objective uses a reference"),
        ({"objective": []}, "objective: an empty list"),
        ({"objective": [{"name": "minor_dop"}]}, "did you mean 'minor_dpo'"),
        ({"objective": [{"name": "dpo", "bta": 0.2}]}, "dpo.bta is unknown (did you mean 'beta'"),
        ({"objective": [{"name": "dpo", "beta": "0.2"}]}, "dpo.beta='0.2'"),
        ({"objective": [{"name": "dpo", "weight": True}]}, "weight=True"),
        ({"objective": [{"name": "dpo", "weight": 0}]}, "dpo.weight=0 (give a finite number above 0"),
        ({"objective": [{"name": "dpo"}, {"name": "sft", "weight": -0.5}]}, "sft.weight=-0.5"),
        ({"objective": [{"name": "dpo", "weight": float("inf")}]}, "dpo.weight=inf"),
        ({"objective": [{"beta": 0.2}]}, "name=None is unknown"),
        ({"objective": "no_such_module:loss"}, "No module named 'no_such_module' (check the path and the name; a "),
    ],
)
def test_contradictions_and_objectives(raw, said):
    [line] = listed(problems(raw))
    assert said in line


def test_everything_at_once():
    raw = {
        "optim": {"learning_rat": 1e-5, "warmup_steps": 3, "warmup_ratio": 0.1},
        "train": {"batch_size": "four", "epochs": 0},
        "objective": [{"name": "dpo", "bta": 1}, {"name": "ipoo"}],
        "extra": 1,
    }
    lines = listed(problems(raw))
    for said in ("learning_rat", "warmup_ratio", "batch_size", "train.epochs", "bta", "ipoo", "extra"):
        assert sum(said in line for line in lines) == 1, said
    assert len(lines) == 7


def test_overrides_win_over_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("optim: {learning_rate: 1.0e-5, b2: 0.95}\ntrain: {seed: 3}\n")
    config = load_config(file, ["optim.learning_rate=3e-7", "data.train=[a.jsonl,b.jsonl]", "train.max_steps=null"])
    assert (config.optim.learning_rate, config.optim.b2, config.train.seed) == (3e-7, 0.95, 3)
    assert config.data.train == ["a.jsonl", "b.jsonl"] and config.train.max_steps is None


def test_override_of_the_objective_list():
    config = load_config(None, ["objective=[{name: ipo, beta: 0.3}]"])
    assert config.objective == [{"name": "ipo", "beta": 0.3}]


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "0.000001", "1E-6"])
def test_floats_in_yaml(text, tmp_path):
    """YAML 1.1 reads 1e-6 as a string; people write it."""
    file = tmp_path / "a.yaml"
    file.write_text(f"optim:\n  learning_rate: {text}\n  eps: {text}\n")
    config = load_config(file, [f"optim.weight_decay={text}"])
    assert (config.optim.learning_rate, config.optim.eps, config.optim.weight_decay) == (1e-6, 1e-6, 1e-6)


def test_whole_numbers_are_floats_where_floats_are_wanted():
    value = make_config({"optim": {"clip_norm": 2}}).optim.clip_norm
    assert value == 2.0 and isinstance(value, float)


def test_errors_name_the_file_and_its_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("optim: {learning_rate: [\n")
    assert "line 2" in problems(path=file) and str(file) in problems(path=file)
    file.write_text("- optim\n")
    assert "a list" in problems(path=file)
    file.write_text("trian: {}\n")
    assert problems(path=file).startswith(f"{file}:")
    assert "no such file" in problems(path=tmp_path / "b.yaml")


def test_an_empty_file_is_the_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("# nothing yet\n")
    assert load_config(file) == Config()


def test_override_of_one_item_of_a_list(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("objective:\n  - {name: dpo, beta: 0.1}\n  - {name: sft, weight: 0.2}\n")
    config = load_config(path, ["objective.0.beta=0.3", "objective.1.weight=0.5"])
    assert config.objective == [{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.5}]
    assert "objective[2]" in problems(path=path, overrides=["objective.2.beta=0.3"])
    for text in ("# the default\n", "objective: dpo\n", "objective: {name: dpo}\n"):
        path.write_text(text)
        assert load_config(path, ["objective.0.beta=0.3"]).objective == [{"name": "dpo", "beta": 0.3}]


def test_python_values_that_stand_for_plain_ones():
    config = make_config(
        {
            "out": Path("runs") / "mine",
            "optim": {"learning_rate": np.float32(0.5), "warmup_steps": np.int64(3)},
            "objective": ({"name": "dpo"},),
        }
    )
    assert (config.out, config.optim.learning_rate, config.optim.warmup_steps) == ("runs/mine", 0.5, 3)
    assert config.objective == [{"name": "dpo"}]
    assert make_config({"data": {"train": np.array(["a.jsonl", "b.jsonl"])}}).data.train == ["a.jsonl", "b.jsonl"]
    with pytest.raises(InputError, match="of function(.|\n)*an objective alone"):
        make_config({"out": lambda: "runs/mine"})
    for raw in (None, "a.yaml", config):
        with pytest.raises(InputError, match="as a dict, for make_config(.|\n)*load_config reads a YAML"):
            make_config(raw)


@pytest.mark.parametrize("function", [jaxpref.train, partial(jaxpref.sweep, over={"train.seed": [0, 1]})])
def test_settings_that_were_not_made_a_config_are_told(function):
    with pytest.raises(InputError, match="a Config\n.* of dict\n.*make_config"):
        function({"out": "runs/mine"})


def test_one_item_may_stand_alone_where_a_list_is_wanted():
    config = make_config(
        {
            "objective": "dpo",
            "data": {"train": Path("a.jsonl"), "eval": "~", "other_rewards": []},
            "adapter": {"rank": 2, "targets": "q"},
            "reference": {"extra": []},
        }
    )
    assert config.objective == [{"name": "dpo"}] and config.adapter.targets == ["q"]
    assert (config.data.train, config.data.eval) == (["a.jsonl"], [str(Path.home())])
    assert make_config({"objective": {"name": "ipo", "beta": 0.3}}).objective == [{"name": "ipo", "beta": 0.3}]
    assert make_config({"objective": ["dpo", {"name": "sft"}]}).objective == [{"name": "dpo"}, {"name": "sft"}]
    assert load_config(overrides=["objective=ipo", "data.train=a.jsonl"]) == Config(
        objective=[{"name": "ipo"}], data=DataConfig(train=["a.jsonl"])
    )
    front = ParetoConfig(methods="dpo", objectives=[ObjectiveConfig("a", train="x")])
    assert front.methods == ["dpo"] and front.objectives[0].train == ["x"]


def own_loss(policy, ref, *, scale: float = 1.0):
    return scale * (policy.sum - ref.sum)


def test_a_function_may_be_an_objective():
    for given in (own_loss, [own_loss], {"name": own_loss}, ({"name": own_loss},)):
        assert make_config({"objective": given}).objective == [{"name": own_loss}]
    config = make_config({"objective": ["dpo", {"name": own_loss, "scale": 2.0, "weight": 0.5}]})
    assert config.objective == [{"name": "dpo"}, {"name": own_loss, "scale": 2.0, "weight": 0.5}]
    assert "own_loss.scal is unknown (did you mean 'scale'" in problems({"objective": {"name": own_loss, "scal": 2}})


# ---- other trainers' options


@pytest.mark.parametrize(
    "raw, answers",
    [
        ({"beta": 0.1}, ["beta: unknown key; set it in each objective, as objective: [{name: dpo, beta: 0.1}]"]),
        ({"lr": 1e-6}, ["lr: unknown key; here it is optim.learning_rate"]),
        ({"train": {"num_train_epochs": 3}}, ["train.num_train_epochs: unknown key; here it is train.epochs"]),
        ({"warmup_ratio": 0.1}, ["warmup_ratio: unknown key; did you mean optim.warmup_ratio?"]),
        ({"adapter": {"lora_r": 8}}, ["adapter.lora_r: unknown key; here it is adapter.rank"]),
        ({"path": "a"}, ["path: unknown key; did you mean model.path or adapter.path or reference.path?"]),
        (
            {"use_peft": True, "bf16": True},
            ["use_peft: unknown key; set adapter.rank", "bf16: unknown key; set "],
        ),
        ({"adapter": "lora"}, ["adapter: a section with keys (rank, alpha, "]),
        ({"optim": "adamw_torch"}, ["optim: a section with keys (name, learning_rate, "]),
    ],
)
def test_names_of_other_trainers_are_answered_with_ours(raw, answers):
    for line, said in zip(listed(problems(raw)), answers, strict=True):
        assert line.startswith(said)


def test_every_answer_names_what_there_is():
    names = {name for name, _, _ in keys()}
    last_words = {name.rpartition(".")[2] for name in names}
    options = RENAMED | OTHERWISE
    assert len(options) == len(RENAMED) + len(OTHERWISE)
    assert not set(options) & (last_words | names), "our own names come first, so these would never be said"
    for option, said in options.items():
        found = set(re.findall(r"\b(?:model|adapter|reference|data|optim|train|mesh|log)\.\w+", said))
        assert found <= names, (option, found - names)
        assert found or re.search(r"\b(out|objective)\b", said), option
        for parts in re.findall(r"objective: (\[.*?\])", said):
            bind(yaml.safe_load(parts), OBJECTIVES)


def test_the_options_that_people_have_are_known(shared_dir):
    """Every option of TRL's DPOConfig in the table that was made of its sources has an answer, or our name."""
    table = (shared_dir / "reference" / "trl_options.md").read_text()
    own = table.partition("## DPOConfig's own")[2].partition("## KTOConfig's own")[0]
    inherited = ("output_dir", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay")
    inherited += ("adam_beta1", "max_grad_norm", "bf16", "fp16", "gradient_checkpointing", "logging_steps", "seed")
    inherited += ("eval_strategy", "eval_steps", "save_steps", "save_total_limit", "report_to", "run_name", "deepspeed")
    cells = [line.split("|")[1] for line in own.splitlines() if line.startswith("| ")]
    cells = [cell for cell in cells if not cell.strip().startswith(("ctor", "option ("))]
    options = [part.split()[0] for cell in cells for part in cell.split(",") if not cell.startswith(" rest")]
    assert len(options) > 20
    ours = {name.rpartition(".")[2] for name, _, _ in keys()}
    assert not [o for o in (*options, *inherited) if o not in ours and not answer(o)]


# ---- long errors


def test_an_error_is_short_whatever_was_found():
    """A list of rows given where files are expected: told once, not once a row."""
    rows = [{"prompt": "p" * 1000, "chosen": "c" * 1000, "rejected": "r" * 1000}] * 2000
    with pytest.raises(InputError) as caught:
        make_config({"data": {"train": rows}, "lr": 1e-6})
    message = str(caught.value)
    assert len(message) < 1500 and len(message.splitlines()) <= 19
    assert "data.train.0 (and 1999 more items of data.train): names of files" in message
    assert "here it is optim.learning_rate" in message


def test_overrides_that_are_none():
    assert "train.seed" in problems(overrides=["train.seed", "optim.b1=0.5"])


def test_override_of_an_unknown_key():
    assert listed(problems(overrides=["optim.learnin_rate=1"])) == [
        "optim.learnin_rate: unknown key; did you mean optim.learning_rate?"
    ]


def test_override_into_a_value():
    assert "optim.learning_rate" in problems(overrides=["optim.learning_rate.peak=1"])


def test_round_trip(tmp_path):
    raw = {
        "out": "some/run",
        "optim": {"learning_rate": 1e-6, "warmup_ratio": 0.1, "clip_norm": None},
        "objective": [{"name": "dpo", "beta": 0.05}, {"name": "sft", "weight": 0.5}],
        "data": {"train": ["a.jsonl"]},
    }
    config = make_config(raw)
    assert config != Config()
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert make_config(to_dict(config)) == config
    assert OmegaConf.load(tmp_path / "config.yaml").optim.learning_rate == 1e-6


def test_the_home_directory_in_paths(tmp_path, monkeypatch):
    """`out=~/x` reaches no shell that would expand it: the config does, for every path in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("out", "model.path", "adapter.path", "reference.path"):
        config = load_config(overrides=[f"{key}=~/x"])
        section, _, name = key.rpartition(".")
        assert getattr(getattr(config, section) if section else config, name) == f"{tmp_path}/x"
    config = Config(out="~/x", data=DataConfig(train=["~/x"], eval=["~/x", "org/name"]))
    assert (config.out, config.data.train) == (f"{tmp_path}/x", [f"{tmp_path}/x"])
    assert config.data.eval == [f"{tmp_path}/x", "org/name"]
    reference = ReferenceConfig(adapter="~/x", extra=["~/x"])
    assert (reference.adapter, reference.extra) == (f"{tmp_path}/x", [f"{tmp_path}/x"])
    assert ObjectiveConfig("a", ["~/x"], ["~/x"]) == ObjectiveConfig("a", [f"{tmp_path}/x"], [f"{tmp_path}/x"])
    assert AnswersConfig("~/x").prompts == f"{tmp_path}/x"


def test_every_key_has_a_meaning_and_one_place():
    found = list(keys())
    names = [name for name, _, _ in found]
    assert len(set(names)) == len(names) and "train.batch_size" in names and "out" in names
    assert all(meaning for _, _, meaning in found)
    flat = {}
    for name, value in to_dict(Config()).items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    assert {name: default for name, default, _ in found} == flat


@pytest.mark.parametrize("command", ["train", "data"])
def test_help_lists_every_key_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, default, meaning in keys():
        assert f" {name} = {json.dumps(default)} {meaning} " in f"{text} "
    assert all(f" {name}: {about} {name}." in text for name, about in SECTIONS.items())


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_help_of_every_command_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("columns", [80, 160])
def test_help_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    widths = [
        len(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("  ") or "=" not in line
    ]
    assert columns - 20 < max(widths) <= columns


@pytest.mark.parametrize(
    "words, said",
    [
        ([], ["optim", "The optimizer and its learning rate.", "outside of sections: out"]),
        (["mesh"], ["mesh.fsdp = 1", "mesh.slices = 1"]),
        (["train.epochs"], ["train.epochs = 1.0"]),
        (["train.epochs", "mesh.fsdp"], ["train.epochs = 1.0", "mesh.fsdp = 1"]),
        (["neftune"], ["train.neftune_alpha = null"]),
        (["Checkpoint", "keep"], ["train.keep = 2"]),
    ],
)
def test_keys_are_found_by_section_and_word(words, said, capsys):
    assert cli.main(["keys", *words]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in said) and ("adapter.rank" in out) is False


def test_further_words_choose_among_a_section(capsys):
    assert cli.main(["keys", "optim", "warmup"]) == 0
    out = capsys.readouterr().out
    assert "optim.warmup_steps" in out and "optim.learning_rate" not in out


def test_every_section_says_what_it_is_about():
    assert list(SECTIONS) == list(dict.fromkeys(key.partition(".")[0] for key, _, _ in keys() if "." in key))


def test_a_word_that_no_key_has(capsys):
    assert cli.main(["keys", "zebra"]) == 2 and "'zebra' in none of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, said",
    [
        ("optim.learning_rate=.inf", "optim.learning_rate: Input should be a finite number, got inf"),
        ("optim.learning_rate=.nan", "optim.learning_rate"),
        ("optim.learning_rate=1e30", "less than or equal to 1000"),
        ("optim.weight_decay=.inf", "finite number"),
        ("optim.clip_norm=.inf", "finite number"),
        ("adapter.alpha=.inf", "finite number"),
    ],
)
def test_numbers_are_finite_and_rates_within_reason(override, said):
    with pytest.raises(InputError) as error:
        load_config(None, [override])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"schedule": "constant", "min_ratio": 0.1}, "optim.min_ratio=0.1 has no effect: it is for linear"),
        ({"schedule": "cosine", "cycles": 3}, "optim.cycles=3 has no effect: it is for cosine_restarts"),
        ({"schedule": "linear", "decay_ratio": 0.2}, "optim.decay_ratio=0.2 has no effect: it is for wsd"),
        ({"name": "muon", "momentum": 0.9}, "optim.momentum is for sgd; optim.name is muon; set optim.muon_momentum"),
        ({"name": "adafactor", "moment_dtype": "bfloat16"}, "adafactor keeps no first moment"),
    ],
)
def test_settings_of_the_optimizer_that_nothing_reads(settings, said):
    with pytest.raises(InputError) as caught:
        make_config({"optim": settings})
    assert said in str(caught.value)


@pytest.mark.parametrize("interval", ["epoch", "epoch/4", 10, None])
def test_intervals(interval):
    assert make_config({"train": {"save_every": interval}}).train.save_every == interval


@pytest.mark.parametrize("interval", ["epochs", "epoch/0", "0.5", 0, 0.5, True])
def test_what_is_no_interval(interval):
    with pytest.raises(InputError, match=r"train.save_every"):
        make_config({"train": {"save_every": interval}})


def test_mesh_auto_stays_when_another_axis_is_set():
    mesh = load_config(None, ["mesh=auto", "mesh.tensor=2"]).mesh
    assert (mesh.fsdp, mesh.tensor) == ("auto", 2)
