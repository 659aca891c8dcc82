"""tunix' part of peers.py: a few steps of its `DPOTrainer` on token ids, measured.

    python tunix_side.py '{"model": DIR, "ids": FILE, "steps": 4, ...}'

It runs in tunix' own environment, without jaxpref.  Every key is explained where peers.py makes the
job.  The last line of the output is the measurement, as JSON.
"""

import time

BEGAN = time.perf_counter()

import importlib.metadata  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402

from step_times import StepTimes  # noqa: E402


def main() -> None:
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, job["cpus"])  # before XLA makes its threads, one per processor
    print(json.dumps(_run(job)))


def _run(job: dict) -> dict:
    import jax
    import optax
    from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig

    class Measured(DPOTrainer):
        """Waits for every step, and keeps its metrics and times."""

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.steps, self.times = [], StepTimes()

        def _write_train_metrics(self):
            buffered = self._buffered_train_metrics
            if buffered is not None:  # as at the end, when all is written
                values = {"loss": float(buffered.loss)}
                for name, (logged, mean) in buffered.additional_metrics.items():
                    values[name] = float(mean(logged))
                self.steps.append(values)
                self.times.step_ended()
            super()._write_train_metrics()

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(job["learning_rate"], weight_decay=0.0)
    )
    config = DPOTrainingConfig(
        beta=job["beta"], max_steps=job["steps"], eval_every_n_steps=10**9, pbar_description=None
    )
    trainer = Measured(_model(job), _model(job), optimizer, config)
    batches, tokens = _batches(job)
    trainer.train(batches)
    names = {"logps/chosen": "log_probs/chosen", "logps/rejected": "log_probs/rejected"}
    steps = [
        {"loss": step["loss"], "grad_norm": step["grad_norm"], "num_tokens": so_far}
        | {ours: step[theirs] for ours, theirs in names.items()}
        for step, so_far in zip(trainer.steps, tokens, strict=True)
    ]
    packages = ("google-tunix", "jax", "flax")
    return {
        "steps": steps,
        **trainer.times.result(BEGAN),
        "compile": None,
        "versions": {f"tunix' {name}": importlib.metadata.version(name) for name in packages},
        "optimizer": f"optax {optax.__version__}, jax {jax.__version__}",
    }


def _model(job: dict):
    """The Llama of the directory, in float32."""
    import jax.numpy as jnp
    from tunix.models.llama3 import model as llama
    from tunix.models.llama3 import params

    with open(f"{job['model']}/config.json") as file:
        found = json.load(file)
    theta = found.get("rope_theta") or found["rope_parameters"]["rope_theta"]
    # tunix 0.1.7 rotates every Llama by 1e6, whatever its config says.
    rotate = llama.apply_rope
    rotate.__defaults__ = (theta,)
    config = llama.ModelConfig(
        num_layers=found["num_hidden_layers"],
        vocab_size=found["vocab_size"],
        embed_dim=found["hidden_size"],
        hidden_dim=found["intermediate_size"],
        num_heads=found["num_attention_heads"],
        head_dim=found["head_dim"],
        num_kv_heads=found["num_key_value_heads"],
        rope_theta=theta,
        norm_eps=found["rms_norm_eps"],
        weight_tying=True,
    )
    return params.create_model_from_safe_tensors(job["model"], config, dtype=jnp.float32)


def _batches(job: dict) -> tuple[list[dict], list[int]]:
    """A batch for every step, all of one shape, and the tokens so far, prompts once per answer.

    tunix compiles a program for every shape, so prompts and answers are padded to the longest of
    the run: shorter batches would compile in every step.
    """
    import numpy as np

    with open(job["ids"]) as file:
        pairs = [json.loads(line) for line in file][: job["steps"] * job["batch"]]
    longest = {
        "prompt": max(len(pair["prompt"]) for pair in pairs),
        "answer": max(len(pair[name]) for pair in pairs for name in ("chosen", "rejected")),
    }

    def padded(rows: list[list[int]], length: int, left: bool):
        ids, mask = (np.zeros((len(rows), length), np.int32) for _ in range(2))
        for i, row in enumerate(rows):
            at = slice(length - len(row), length) if left else slice(0, len(row))
            ids[i, at], mask[i, at] = row, 1
        return ids, mask

    batches, tokens, so_far = [], [], 0
    for t in range(job["steps"]):
        chunk = pairs[t * job["batch"] : (t + 1) * job["batch"]]
        batch = {}
        for name in ("prompt", "chosen", "rejected"):
            length = longest["prompt" if name == "prompt" else "answer"]
            ids, mask = padded([pair[name] for pair in chunk], length, left=name == "prompt")
            batch |= {f"{name}_ids": ids, f"{name}_mask": mask}
        batches.append(batch)
        so_far += sum(2 * len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) for p in chunk)
        tokens.append(so_far)
    return batches, tokens


if __name__ == "__main__":
    main()
