"""Answers to prompts with pictures: decoded, they are as likely as in packed rows."""

import pytest
import tiny_pictures
from tiny import LOGP_TOLERANCE
from tiny_pictures import row

import jaxpref
from jaxpref.data.encode import encode_prompts
from jaxpref.data.pictures.processor import with_read_pictures
from jaxpref.errors import InputError
from jaxpref.generation import decoding
from jaxpref.generation.answer_logps import answer_logps
from jaxpref.generation.completions import open_source
from jaxpref.generation.prompts import given_prompts, prompt_ids, read_prompts
from jaxpref.types import EncodedGroup

pytestmark = pytest.mark.usefixtures("quick_compile")
OVERRIDES = ("model.pictures=true", "model.compute_dtype=float32", "model.attention_block=16", "mesh.data=8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_pictures.write_model(tmp_path_factory.mktemp("vision") / "model")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Of one tile, of several, and of none."""
    rows = [{key: row(i)[key] for key in ("images", "prompt")} for i in range(2)]
    rows.append({"prompt": "1 + 1 = "})
    return tiny_pictures.write_rows(tmp_path_factory.mktemp("rows") / "prompts.jsonl", rows)


def test_answers_see_the_pictures(model, prompts, tmp_path):
    opened = open_source(str(model), overrides=OVERRIDES)
    together = jaxpref.generate(opened, prompts, max_new_tokens=6)
    assert [len(item.pictures) for item in together] == [1, 1, 0]
    assert together[0].to_json()["images"] == [str(prompts.parent / "0.png")]
    of_bytes = [{"images": [{"bytes": (prompts.parent / "0.png").read_bytes()}], "prompt": row(0)["prompt"]}]
    [answer] = jaxpref.generate(opened, of_bytes, max_new_tokens=6)
    assert answer.to_json()["images"] == [f"sha256:{together[0].pictures[0].digest}"]
    assert answer.text == together[0].text
    # The other picture, another answer: the same prompt but for its tiles.
    swapped = [{"images": [str(prompts.parent / f"{1 - i}.png")], "prompt": row(i)["prompt"]} for i in range(2)]
    for item, other in zip(together, jaxpref.generate(opened, swapped, max_new_tokens=6), strict=False):
        assert item.logp != pytest.approx(other.logp, abs=1e-3)


@pytest.mark.parametrize("kind", ["idefics3", "qwen2_5_vl"])
def test_decoded_log_probs_are_those_of_packed_rows(kind, prompts, tmp_path, monkeypatch):
    """Read in chunks behind padding, and with a cache, or all at once."""
    monkeypatch.setattr(decoding, "CHUNK", 16)  # less than a picture's tokens
    opened = open_source(str(tiny_pictures.write_model(tmp_path / "model", kind=kind)), overrides=OVERRIDES)
    processor, groups = opened.pieces.processor, []
    answers = jaxpref.generate(opened, prompts, max_new_tokens=6)
    for i, (prompt, answer) in enumerate(zip(read_prompts(prompts), answers, strict=True)):
        read = with_read_pictures(prompt, processor)
        [ids] = encode_prompts([read], opened.pieces.tokenizer, processor)
        groups.append(EncodedGroup(ids, (answer.token_ids,), i, prompt.where, pictures=read.pictures))
    whole = answer_logps(opened, groups)
    for i, answer in enumerate(answers):
        assert answer.logp == pytest.approx(float(whole[i][0]), abs=LOGP_TOLERANCE)


def test_a_prompt_that_ends_with_a_picture_is_refused(prompts, tmp_path):
    """The last token of a prompt is read with the new ones, which have no pictures."""
    tokenizer = tiny_pictures.make_tokenizer("llava")
    processor = tiny_pictures.make_processor(tmp_path, tokenizer, "llava")
    [prompt] = given_prompts([{"images": [str(prompts.parent / "0.png")], "prompt": "see <image>"}])
    sizes = dict(vocabulary=len(tokenizer), positions=64, max_new_tokens=2)
    with pytest.raises(InputError, match="it ends with a picture"):
        prompt_ids([with_read_pictures(prompt, processor)], tokenizer, processor=processor, **sizes)


def test_a_text_part_refuses_pictures(model, prompts):
    with pytest.raises(InputError, match="model.pictures=true"):
        jaxpref.generate(str(model), prompts, overrides=OVERRIDES[1:])
