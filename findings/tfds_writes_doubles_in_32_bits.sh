#!/usr/bin/env bash
# tensorflow-datasets 4.9.10 with array-record 0.8.6: features of type float64 are stored in 32 bits.
#
# A builder writes each row as a tf.train.Example, whose only kind of float has 32 bits; its integers have 64. A float64
# is rounded to it as the row is written and read back as a float64, and dataset_info still says float64: 0.1 becomes
# 0.10000000149011612, a time in seconds moves by a minute, 1e300 becomes infinite. Warnings are errors here, and none
# is given. Seen with ArrayRecord, without TensorFlow. What must be exact can be written as an integer or as text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tensorflow-datasets==4.9.10 array-record==0.8.6
cat > "$work/show.py" <<'PY'
import importlib.util
import sys
import warnings

import numpy as np
import tensorflow_datasets as tfds

DOUBLES = {"share": 0.1, "seconds": 1_700_000_060.0, "large": 1e300}
ROW = {**DOUBLES, "integer": 2**53 + 1, "text": "0.1"}
TYPES = {**dict.fromkeys(DOUBLES, np.float64), "integer": np.int64, "text": np.str_}


class Numbers(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(TYPES))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, ROW


assert importlib.util.find_spec("tensorflow") is None
warnings.simplefilter("error")
tfds.disable_progress_bar()
builder = Numbers(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
seen = builder.as_data_source(split="train")[0]
print(builder.info.features)
print("written", ROW)
print("read", seen)
assert all(builder.info.features[name].np_dtype == np.float64 for name in DOUBLES), "changed: look at it again"
rounded = {"share": 0.10000000149011612, "seconds": 1_700_000_000.0, "large": float("inf")}
assert seen == {**rounded, "integer": 2**53 + 1, "text": b"0.1"}, "changed: look at it again"
PY
"$work/venv/bin/python" "$work/show.py" "$work/data"
