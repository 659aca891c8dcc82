"""Every block format that the gguf package dequantises, read in whole and in parts."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from jaxpref.errors import InputError
from jaxpref.models.gguf.reader import open_gguf
from jaxpref.models.parameters import flatten

WIDTH = HEAD = 256  # of a super-block of the K-quants
LAYERS, VOCAB, FFN = 2, 24, 512
# The package has no quantiser for the second group: their blocks are random bytes.
QUANTISED = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
FROM_BYTES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS",
              "IQ3_S", "IQ4_NL", "IQ4_XS", "NVFP4"]  # fmt: skip
REFUSED = ["Q8_1", "Q8_K", "F64"]
METADATA = {
    "embedding_length": WIDTH, "feed_forward_length": FFN, "block_count": LAYERS, "attention.head_count": 1,
    "attention.head_count_kv": 1, "context_length": 64,
}  # fmt: skip
LAYER = {"attn_q": (HEAD, WIDTH), "attn_k": (HEAD, WIDTH), "attn_v": (HEAD, WIDTH), "attn_output": (WIDTH, HEAD),
         "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN)}  # fmt: skip


def blocks(name, kind, shape, rng):
    """A tensor's bytes."""
    if name in QUANTISED:
        return gguf.quantize(rng.normal(size=shape).astype(np.float32), kind)
    raw = rng.integers(0, 256, gguf.quant_shape_to_byte_shape(shape, kind), dtype=np.uint8)
    return raw & 0xBF  # without bit 6, no half-precision scale is infinite or NaN


def write(path, name):
    """A one-headed Llama; returns its tensors' bytes."""
    kind, rng, written = Kind[name], np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in METADATA.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd": (VOCAB, WIDTH)} | {f"blk.{y}.{k}": v for y in range(LAYERS) for k, v in LAYER.items()}
    for tensor, shape in shapes.items():
        written[tensor] = blocks(name, kind, shape, rng)
        writer.add_tensor(f"{tensor}.weight", written[tensor], raw_dtype=kind)
    for tensor in ("output_norm", *(f"blk.{y}.{k}" for y in range(LAYERS) for k in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{tensor}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.mark.parametrize("name", QUANTISED + FROM_BYTES)
def test_every_format(tmp_path, name):
    written = write(tmp_path / "m.gguf", name)
    wanted = {tensor: gguf.dequantize(raw, Kind[name]).astype(np.float32) for tensor, raw in written.items()}
    assert all(np.isfinite(value).all() and len(np.unique(value)) > 1 for value in wanted.values())
    opened = open_gguf(tmp_path / "m.gguf")
    leaves = flatten(opened.load_params())
    np.testing.assert_array_equal(leaves["embed/table"], wanted["token_embd"], strict=True)
    for y in range(LAYERS):
        np.testing.assert_array_equal(leaves["layers/mlp/gate"][y], wanted[f"blk.{y}.ffn_gate"].T)
        np.testing.assert_array_equal(leaves["layers/mlp/down"][y], wanted[f"blk.{y}.ffn_down"].T)
        q_rows = wanted[f"blk.{y}.attn_q"].reshape(HEAD // 2, 2, WIDTH).swapaxes(0, 1).reshape(HEAD, WIDTH)
        np.testing.assert_array_equal(leaves["layers/attention/q"][y], q_rows.T.reshape(WIDTH, 1, HEAD))

    def put(path, shape, dtype, read_slice):
        part = tuple(slice(size // 3, size // 3 + max(1, size // 2)) for size in shape)
        np.testing.assert_array_equal(read_slice(part), leaves[path][part], err_msg=path)

    opened.load_params(put=put)


def test_the_lists_are_complete():
    readable = set()
    for kind, (_, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        readable.add(kind.name)
    assert readable == {*QUANTISED, *FROM_BYTES}


@pytest.mark.parametrize("name", REFUSED)
def test_other_formats_are_refused_by_name(tmp_path, name):
    write(tmp_path / "m.gguf", name)
    with pytest.raises(InputError, match=f"{name} for token_embd.weight"):
        open_gguf(tmp_path / "m.gguf").load_params()
