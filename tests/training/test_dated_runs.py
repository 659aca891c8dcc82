"""Runs whose chat template prints today's date: every row is the same tokens on every day."""

import logging

import pytest
import tiny
import yaml

from jaxpref.errors import InputError
from jaxpref.generation.sources import find_source
from jaxpref.models.source import open_checkpoint
from jaxpref.rewards import open_reward
from jaxpref.runs.build import build
from jaxpref.runs.directory import load_run
from jaxpref.runs.export import export_run
from jaxpref.runs.feed import read_data
from jaxpref.runs.resume import with_stored

DATED = "{{ strftime_now('%Y-%m-%d') }}\n" + tiny.CHATML


@pytest.fixture(autouse=True)
def one_device(monkeypatch, quick_compile):
    tiny.allow_any_mesh(monkeypatch)


@pytest.fixture
def calendar(monkeypatch):
    """Sets the day."""
    return lambda day: monkeypatch.setattr("jaxpref.runs.build._today", lambda: day)


@pytest.fixture
def dated(tmp_path):
    files = tiny.write_files(tmp_path)
    (files.model / "chat_template.jinja").write_text(DATED)
    return files


def shown_dates(config):
    """The dates in the prompts that a run trains on."""
    pieces = build(config)
    groups, _ = read_data(pieces, "train")
    return {pieces.tokenizer.decode(group.prompt_ids.tolist())[:10] for group in groups}


@pytest.mark.slow
def test_a_run_goes_on_with_the_day_it_began_on(dated, tmp_path, calendar, caplog):
    caplog.set_level(logging.INFO, logger="jaxpref")
    config = tiny.config(tmp_path / "run", dated.model, dated.train, train={"max_steps": 4, "save_every": 2})
    calendar("2026-11-27")
    whole = tiny.run(tiny.config(tmp_path / "whole", dated.model, dated.train, train={"max_steps": 4}))
    caplog.clear()
    tiny.run(config, die_at=3)
    assert [r.getMessage() for r in caplog.records if "2026-11-27" in r.getMessage()] == [
        "the chat template prints today's date: 2026-11-27, whenever it runs (data.date)"
    ]
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["data"]["date"] == "2026-11-27"

    calendar("2026-11-28")
    assert shown_dates(config) == {"2026-11-28"}, "the template does print the day"
    assert shown_dates(with_stored(config)) == {"2026-11-27"}
    assert shown_dates(load_run(config.out)) == {"2026-11-27"}
    resumed = tiny.run(config)
    assert resumed.losses == whole.losses[2:] and len(resumed.losses) == 2

    # Answers, scores and exports.
    assert "2026-11-27" in find_source(config.out, "best", ()).pieces.tokenizer.chat_template
    identities = [open_reward(what).identity() for what in (config.out, f"rule:tokens:{config.out}")]
    assert all("2026-11-27" in identity for identity in identities)
    other_day = find_source(dated.model, "best", ["data.date=2025-01-01"]).pieces
    assert "2025-01-01" in other_day.tokenizer.chat_template
    export_run(config.out, tmp_path / "export")
    assert open_checkpoint(tmp_path / "export").load_tokenizer().chat_template == DATED

    another = tiny.config(
        tmp_path / "run", dated.model, dated.train, train={"max_steps": 4, "save_every": 2}, data={"date": "2026-11-28"}
    )
    with pytest.raises(InputError, match="data.date '2026-11-27' -> '2026-11-28'"):
        tiny.run(another)


def test_a_template_without_a_date_leaves_none_behind(tmp_path):
    files = tiny.write_files(tmp_path)
    tiny.run(tiny.config(tmp_path / "run", files.model, files.train, train={"max_steps": 1}))
    assert load_run(tmp_path / "run").data.date is None
