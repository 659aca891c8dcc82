"""Chat templates that print today's date print that of the run."""

from datetime import date

import pytest
import tiny

from jaxpref.config import DataConfig
from jaxpref.data.template_date import fix_date, prints_date
from jaxpref.errors import InputError
from jaxpref.settings import make_config

ASK = [{"role": "user", "content": "q"}]
LLAMA_3_2 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}'
    "{%- endif %}{%- endif %}Today Date: {{ date_string }}|{{ messages[0].content }}"
)


def rendered(template, day, **kwargs):
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = template
    assert prints_date(tokenizer)
    if day:
        fix_date(tokenizer, day)
        assert not prints_date(tokenizer) or "is defined" in template
    return tokenizer.apply_chat_template(ASK, tokenize=False, **kwargs)


def test_llamas_template_prints_the_day_that_is_fixed():
    assert rendered(LLAMA_3_2, None) == f"Today Date: {date.today().strftime('%d %b %Y')}|q"
    assert rendered(LLAMA_3_2, "2019-02-28") == "Today Date: 28 Feb 2019|q"
    assert rendered(LLAMA_3_2, "2019-02-28", date_string="never") == "Today Date: never|q", "as rows may set it"


@pytest.mark.parametrize(
    "call, printed",
    [
        ("{{ strftime_now('%Y-%m-%d') }}", "2019-02-28"),
        ('{{ strftime_now( format="%A, %H:%M" ) }}', "Thursday, 00:00"),
        ("{{ strftime_now('%d') + strftime_now('%m') }}", "2802"),
        ("{# strftime_now(now) #}{{ strftime_now('it is \"%y\"') }}", 'it is "19"'),
    ],
)
def test_every_call_with_a_format_of_its_own(call, printed):
    assert rendered(call, "2019-02-28") == printed


@pytest.mark.parametrize("call", ["{{ strftime_now(format) }}", "{% set now = strftime_now %}{{ now('%d') }}"])
def test_a_format_that_is_worked_out_is_refused(call):
    with pytest.raises(InputError, match="strftime_now"):
        rendered(call, "2019-02-28")


def test_templates_by_name_and_none_at_all():
    tokenizer = tiny.make_tokenizer()
    assert not prints_date(tokenizer)
    tokenizer.chat_template = None
    assert not prints_date(tokenizer)
    tokenizer.chat_template = {"default": "{{ strftime_now('%d') }}", "tool_use": "x"}
    fix_date(tokenizer, "2019-02-28")
    assert tokenizer.chat_template == {"default": '{{ "28" }}', "tool_use": "x"}


def test_the_key_is_a_day():
    assert make_config({"data": {"date": "2019-02-28"}}).data == DataConfig(date="2019-02-28")
    for wrong in ("2019-02-30", "28 Feb 2019", "2019-02-28T10:00", 20190228):
        with pytest.raises(InputError, match="data.date"):
            make_config({"data": {"date": wrong}})
