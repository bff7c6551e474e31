"""Commands that have commands of their own, such as `difftilt ledger stats`."""

from collections.abc import Mapping
from typing import TypeVar

from difftilt.settings import UsageError, choose

Action = TypeVar("Action")


def choose_action(
    command: str,
    words: list[str],
    actions: Mapping[str, Action],
    usage: str,
    help_lines: Mapping[str, str],
) -> Action | None:
    """The action that the first word names, or None once help was asked for and printed.

    Args:
        usage: Of the command line, behind the command's name.
        help_lines: What each action does, by the words that ask for it.

    Raises:
        UsageError: If no word, or no action's name, is given.
    """
    if not words:
        raise UsageError(f"difftilt {command} needs one of {', '.join(actions)}")
    if words[0] not in ("-h", "--help"):
        return choose(f"{command} command", words[0], actions)
    width = max(map(len, help_lines))
    lines = (f"  {asked:{width}}  {what}" for asked, what in help_lines.items())
    print("\n".join([f"usage: difftilt {command} {usage}", "", *lines]))
    return None
