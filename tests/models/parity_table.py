"""The table of docs/results.md, from what the parity tests record of their comparisons:

pytest -m "" tests/models/test_families_parity.py -k "test_gradients and not how and not mesh" --margins FILE
python tests/models/parity_table.py FILE
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from test_families_parity import GRADIENTS


def differences(file: Path) -> dict[str, dict[str, float]]:
    """Case -> largest difference of a logit; of a gradient relative to its tensor's largest element or norm."""
    worst: dict[str, dict[str, float]] = defaultdict(lambda: {"logits": 0.0, "gradients": 0.0})
    for text in file.read_text().splitlines():
        found = json.loads(text)
        (case,) = re.findall(r"\[(.*)\]", found["test"])
        if found["what"] == "logits":
            worst[case]["logits"] = max(worst[case]["logits"], found["difference"])
        elif " of " in found["what"]:
            worst[case]["gradients"] = max(worst[case]["gradients"], found["used"] * GRADIENTS)
    return worst


if __name__ == "__main__":
    print("| | logits | gradients |\n|---|---|---|")
    for case, of_case in differences(Path(sys.argv[1])).items():
        print(f"| {case} | {of_case['logits']:.1e} | {of_case['gradients']:.1e} |")
