"""EasyDeL's part of peers.py: a few steps of its `DPOTrainer` on token ids, measured.

    python easydel_side.py '{"model": DIR, "ids": FILE, "steps": 4, ...}'

It runs in EasyDeL's own environment, without jaxpref.  Every key is explained where peers.py makes
the job.  The last line of the output is the measurement, as JSON.
"""

import time

BEGAN = time.perf_counter()

import importlib.metadata  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402

from step_times import StepTimes  # noqa: E402


def main() -> None:
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, job["cpus"])  # before XLA makes its threads, one per processor
    print("\n" + json.dumps(_run(job)))


def _run(job: dict) -> dict:
    import easydel
    import jax
    import jax.numpy as jnp
    from datasets import Dataset
    from transformers import AutoTokenizer

    class Measured(easydel.DPOTrainer):
        """Waits for every step, and keeps its metrics and times."""

        steps, times = [], StepTimes()

        def _execute_train_step(self, state, batch):
            state, metrics, error = super()._execute_train_step(state, batch)
            if error is not None:
                raise error
            jax.block_until_ready(state)
            self.steps.append({"loss": float(metrics.loss)})
            self.times.step_ended()
            return state, metrics, error

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token_id = tokenizer.pad_token_id or 0
    pairs = _pairs(job)
    prompt, answer = _longest(pairs)
    model = easydel.AutoEasyDeLModelForCausalLM.from_pretrained(
        job["model"],
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        # else attention is bfloat16 whatever `dtype` says: noise of 0.03 nats in log-probs
        config_kwargs={"attn_dtype": jnp.float32},
        auto_shard_model=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        config = easydel.DPOConfig(
            save_directory=scratch,
            beta=job["beta"],
            max_length=prompt + answer,
            max_prompt_length=prompt,
            max_completion_length=answer,
            learning_rate=job["learning_rate"],
            scheduler="none",
            optimizer="adamw",
            weight_decay=0.0,
            clip_grad=1.0,
            total_batch_size=job["batch"],
            max_training_steps=job["steps"],
            num_train_epochs=1,
            shuffle_train_dataset=False,
            do_last_save=False,
            save_steps=None,
            use_wandb=False,
            progress_bar_type="json",
        )
        trainer = Measured(
            arguments=config,
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([_row(pair) for pair in pairs]),
        )
        trainer.train()
    so_far = 0
    for t, step in enumerate(Measured.steps):
        for p in pairs[t * job["batch"] : (t + 1) * job["batch"]]:
            so_far += 2 * len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"])
        step["num_tokens"] = so_far
    packages = ("easydel", "jax", "torch")
    return {
        "steps": Measured.steps,
        **Measured.times.result(BEGAN),
        "compile": None,
        "versions": {f"EasyDeL's {name}": importlib.metadata.version(name) for name in packages},
    }


def _pairs(job: dict) -> list[dict]:
    with open(job["ids"]) as file:
        return [json.loads(line) for line in file][: job["steps"] * job["batch"]]


def _longest(pairs: list[dict]) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest answer: all are padded to these."""
    answers = (len(pair[name]) for pair in pairs for name in ("chosen", "rejected"))
    return max(len(pair["prompt"]) for pair in pairs), max(answers)


def _row(pair: dict) -> dict:
    """A pair as EasyDeL's own preprocessing leaves it."""
    prompt = pair["prompt"]
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name in ("chosen", "rejected"):
        ids = prompt + pair[name]
        row[f"{name}_input_ids"] = ids
        row[f"{name}_attention_mask"] = [1] * len(ids)
        row[f"{name}_labels"] = [-100] * len(prompt) + pair[name]
    return row


if __name__ == "__main__":
    main()
