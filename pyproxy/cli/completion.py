"""The command ``completion``: prints the script by which a shell completes commands, flags and values."""

import click
from click.shell_completion import FishComplete, ZshComplete

from pyproxy.cli.flags import EXIT_CODES, SETTINGS

# The environment variable by which click recognises a request for completion, made from the name of the program.
_VARIABLE = "_PYPROXY_COMPLETE"
# click's own script for bash passes the words as bash splits them. bash separates "=" from the words beside it, so click
# does not find the flag in "--proxy-mode=ip"; this script omits "=".
_BASH = """\
_pyproxy_completion() {
    local word type value words=()
    for word in "${COMP_WORDS[@]:0:COMP_CWORD}"; do
        [[ $word == "=" ]] || words+=("$word")
    done
    word=${COMP_WORDS[COMP_CWORD]}
    [[ $word != "=" ]] || word=""
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            file) compopt -o default 2>/dev/null ;;
            dir) compopt -o dirnames 2>/dev/null ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="$(printf '%q\n' "${words[@]}" "$word")" COMP_CWORD=${#words[@]} \
        _PYPROXY_COMPLETE=bash_complete "$1")
}
complete -o nosort -F _pyproxy_completion pyproxy
"""


@click.command("completion", context_settings=SETTINGS, epilog=EXIT_CODES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, /, *, shell: str) -> None:
    """Print the completion script of a shell.

    For bash: source <(pyproxy completion bash). For zsh the same with zsh. For fish: pyproxy completion fish | source.
    """
    if shell == "bash":
        click.echo(_BASH, nl=False)
        return
    made = (ZshComplete if shell == "zsh" else FishComplete)(ctx.find_root().command, {}, "pyproxy", _VARIABLE)
    click.echo(made.source())
