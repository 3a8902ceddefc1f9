"""Which QWEN_SERVE_ variables a deployment file may set."""

from server.options import OPTIONS

# of `qwen-serve server` and `engine`, and of the file of keys
OF_OTHER_COMMANDS = frozenset(("QWEN_SERVE_QUEUE", "QWEN_SERVE_KEYS_FILE"))
VARIABLES = frozenset(option.variable for option in OPTIONS) | OF_OTHER_COMMANDS
