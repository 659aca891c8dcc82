"""TRL's half of peers.py: a few steps of `DPOTrainer`, measured.

    python trl_side.py '{"model": DIR, "rows": FILE, "steps": 16, ...}'

It runs in TRL's own environment, without jaxpref.  Every key is explained where peers.py makes the
job.  The last line of the output is the measurement, as JSON.
"""

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402

from step_times import StepTimes  # noqa: E402


def main() -> None:
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, job["cpus"])  # before torch counts the processors
    try:
        import torch
        import transformers
        import trl
    except ImportError as error:
        sys.exit(f"this Python lacks a package that TRL needs: {error}")
    if job["device"] == "cpu":
        torch.set_num_threads(len(job["cpus"]))
    print(json.dumps(_run(job, torch, transformers, trl)))


def _run(job: dict, torch, transformers, trl) -> dict:
    from datasets import Dataset, Image, List

    with open(job["rows"]) as file:
        rows = [json.loads(line) for line in file]
    measured = _callback(transformers, torch, job["device"])
    with tempfile.TemporaryDirectory() as scratch:
        config = trl.DPOConfig(
            output_dir=scratch,
            # What both sides share.
            max_steps=job["steps"],
            per_device_train_batch_size=job["batch"],
            gradient_accumulation_steps=1,
            learning_rate=job["learning_rate"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            beta=job["beta"],
            max_length=job["max_length"],
            train_sampling_strategy="sequential",
            # What is best for TRL: its own choice of optimizer is the fused AdamW; on a CPU a
            # loader process would take one of the few processors.
            use_cpu=job["device"] == "cpu",
            bf16=job["bf16"],
            gradient_checkpointing=job["checkpointing"],
            dataloader_num_workers=0,
            dataloader_pin_memory=job["device"] != "cpu",
            model_init_kwargs={"dtype": "float32"},
            # No other work inside the timed steps.
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        train_dataset = Dataset.from_list(rows)
        if "images" in rows[0]:
            train_dataset = train_dataset.cast_column("images", List(Image()))
        trainer = trl.DPOTrainer(
            model=job["model"],
            args=config,
            train_dataset=train_dataset,
            callbacks=[measured],
        )
        trainer.train()
    versions = {
        "trl": trl.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return measured.result() | {"versions": versions, "optimizer": str(config.optim.value)}


def _callback(transformers, torch, device: str):
    class Measured(transformers.TrainerCallback):
        """Wall time from the end of a step to the end of the next one.

        Loading, collating, both models and the update count.
        """

        def __init__(self):
            self.logs, self.times = [], StepTimes()

        def on_step_end(self, args, state, control, **kwargs):
            on_cuda = device == "cuda"
            self.times.step_ended(torch.cuda.max_memory_allocated() if on_cuda else None)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:  # the summary at the end has none
                names = ("loss", "grad_norm", "logps/chosen", "logps/rejected", "num_tokens")
                self.logs.append({name: float(logs[name]) for name in names})

        def result(self) -> dict:
            return {"steps": self.logs, **self.times.result(BEGAN), "compile": None}

    return Measured()


if __name__ == "__main__":
    main()
