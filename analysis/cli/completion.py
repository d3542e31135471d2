"""`landscape completion`: completion of commands, options and choices by the shell."""

from typing import Literal

import tyro

from analysis.cli.commands import COMMANDS
from analysis.cli.reading import usage

ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
SCRIPT = """\
_landscape() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands} --help --version"
  else
    case "${{COMP_WORDS[1]}} $before" in
{choices}
    *) case "${{COMP_WORDS[1]}}" in
{options}
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _landscape landscape
"""


def completion(shell: tyro.conf.Positional[Literal["bash", "zsh"]]) -> int:
    """Print a script that lets the shell complete commands, options and their choices; files are completed as usual.

    Args:
        shell: The shell.
    """
    print((ZSH if shell == "zsh" else "") + script(), end="")
    return 0


def script() -> str:
    """The script, for bash."""
    choices, options = [], []
    for name, command in COMMANDS.items():
        words = []
        for option in usage(command.place).options:
            named = list(option.name.split(" / ")) if not option.positional else []
            words += named
            offered = option.takes.removesuffix(" ...").split("|")
            if len(offered) > 1:
                after = name if option.positional else option.name
                choices.append(f'    "{name} {after}") words="{" ".join(offered)}" ;;')
        options.append(f'      {name}) words="{" ".join([*words, "--help"])}" ;;')
    return SCRIPT.format(commands=" ".join(COMMANDS), choices="\n".join(choices), options="\n".join(options))
