"""Which QWEN_SERVE_ variables a deployment file may set."""

from server.options import OPTIONS

VARIABLES = frozenset(option.variable for option in OPTIONS)
