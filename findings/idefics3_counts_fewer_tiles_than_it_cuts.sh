#!/usr/bin/env bash
# transformers 5.24.0 with pillow 13.0.0 (no torch): the Idefics3 (SmolVLM) image processor counts fewer tiles than it cuts.
#
# get_number_of_image_patches says how many tiles a picture of some size becomes, so that tokens can be counted without
# decoding it. With size.longest_edge at 1280 and tiles of 512 it counts 2 x 3 and one of the whole for a picture of
# 640 x 480; the processor itself cuts 3 x 3 and one of the whole. The processor makes the longer side a multiple of the
# tile before it works out the other (1536 x 1152), and the method does not. At 2048, the published setting, both agree.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.24.0 pillow==13.0.0 numpy==2.4.6
cat > "$work/show.py" <<'PY'
from PIL import Image
from transformers import Idefics3ImageProcessorPil

SIZES = ((640, 480), (480, 640), (1920, 1080), (300, 200), (512, 512))
differ = {}
for edge in (768, 1280, 1536, 2048):
    processor = Idefics3ImageProcessorPil(size={"longest_edge": edge}, max_image_size={"longest_edge": 512})
    for width, height in SIZES:
        counted = processor.get_number_of_image_patches(height, width)[0]
        cut = processor([Image.new("RGB", (width, height))], return_tensors="np")["pixel_values"].shape[1]
        print(f"longest edge {edge}, {width} x {height}: {counted} tiles counted, {cut} cut")
        if counted != cut:
            differ[edge, width, height] = (counted, cut)
expected = {
    (768, 1920, 1080): (3, 5),
    (768, 300, 200): (3, 5),
    (1280, 640, 480): (7, 10),
    (1280, 480, 640): (7, 10),
}
assert differ == expected, f"changed: look at it again: {differ}"
PY
"$work/venv/bin/python" "$work/show.py"
