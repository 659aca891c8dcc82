"""`jaxpref completion`: what a shell needs to complete commands, flags and keys of a config."""

import argparse
from collections.abc import Mapping, Sequence

from jaxpref.settings import keys

EPILOG = """put it where the shell reads it at its start:
  jaxpref completion bash >> ~/.bashrc
  jaxpref completion zsh >> ~/.zshrc
"""

_BASH = """_jaxpref() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "$command" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2> /dev/null ;; esac
}}
complete -o default -o bashdefault -F _jaxpref jaxpref
"""
_ZSH = """(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
_jaxpref_words() {{
  local command=$1 words=""
  case "$command" in
{cases}
  esac
  print -r -- "$words"
}}
_jaxpref() {{
  local -a known=({commands})
  local ret=1
  (( CURRENT > 2 )) && known=(${{=$(_jaxpref_words "$words[2]")}})
  compadd -S "" -- ${{(M)known:#*=}} && ret=0
  compadd -- ${{known:#*=}} && ret=0
  (( CURRENT > 2 )) && _files && ret=0
  return ret
}}
compdef _jaxpref jaxpref
"""
"""zsh's own way: its bash completion cannot leave out the space behind key=."""


def words_behind(parser: argparse.ArgumentParser, more: Sequence[str]) -> list[str]:
    """What may stand behind a command: its choices, flags, and keys where it takes overrides.

    Args:
        more: keys beside those of a run's config.
    """
    flags = [flag for action in parser._actions for flag in action.option_strings]
    positional = [action for action in parser._actions if not action.option_strings]
    choices = [choice for action in positional for choice in action.choices or []]
    overrides = any(action.dest == "overrides" for action in positional)
    known = [*(key for key, _, _ in keys()), *more] if overrides else []
    settings = [f"{key}=" for key in known]
    return [*choices, *(flag for flag in flags if flag.startswith("--")), *settings]


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """A completion function.

    Args:
        words: command -> what may stand behind it; files are completed beside them.
    """
    cases = [f'      {name}) words="{" ".join(own)}" ;;' for name, own in words.items()]
    text = _ZSH if shell == "zsh" else _BASH
    return text.format(commands=" ".join(words), cases="\n".join(cases))
