"""Completes commands, their flags and configs in a shell: python -m research.completion

    source <(python -m research.completion)       # bash and zsh; in ~/.bashrc or ~/.zshrc for ever

After that the tab key completes `python -m research.tr`, `--config=graft:fine` and `--work`.
"""

import re
from pathlib import Path

from research import command, shipped
from research.site.helps import help_texts
from research.usage import command_files

_FLAG = re.compile(r"^  (?:-\w, )?--(?:\[no\])?([\w.]+)", re.MULTILINE)
# `python` completes as before where no command of ours is being typed. A shell that takes = and :
# for ends of words replaces what comes after them alone.
_SCRIPT = """
[ -z "${ZSH_VERSION:-}" ] || { autoload -U +X bashcompinit && bashcompinit; }
_graft() {
  local line="${COMP_LINE:0:$COMP_POINT}" word flags="" known kept
  word="${line##* }"
  COMPREPLY=()
  case "$line" in *" -m research"*) ;; *) return ;; esac
  case "$line" in
FLAGS
  esac
  case "$word" in
    research*) known="COMMANDS" ;;
    --config=*) known="CONFIGS" ;;
    -*) known="$flags" ;;
    *) return ;;
  esac
  while read -r kept; do COMPREPLY+=("$kept"); done < <(compgen -W "$known" -- "$word")
  case "${COMP_WORDBREAKS:-}" in *=*) kept="${word%"${word##*[=:]}"}" ;; *) kept="" ;; esac
  COMPREPLY=("${COMPREPLY[@]#"$kept"}")
  [ "${#COMPREPLY[@]}" -eq 1 ] && [ -z "${COMPREPLY[0]}" ] && COMPREPLY=()
}
complete -o bashdefault -o default -o nospace -F _graft python python3
"""


def script() -> str:
    """The lines that a shell reads."""
    names = [name for name, _ in command_files(Path(__file__).parent)]
    flags = {
        name: " ".join(f"--{flag}" for flag in dict.fromkeys(_FLAG.findall(text)))
        for name, text in help_texts(names).items()
    }
    # A name may begin with another's, so a space follows it.
    cases = [f'    *" -m research.{name} "*) flags="{words}" ;;' for name, words in flags.items()]
    configs = " ".join(f"--config={shipped.SCHEME}{name}" for name in shipped.configs())
    return (
        _SCRIPT.replace("FLAGS", "\n".join(cases))
        .replace("COMMANDS", " ".join(f"research.{name}" for name in names))
        .replace("CONFIGS", configs)
        .lstrip()
    )


def main(_: list[str]) -> int:
    """The command."""
    print(script(), end="")
    return command.DONE


if __name__ == "__main__":
    command.run(main)
