"""Forty prompts of 1 to about 700 tokens: English, Chinese, code, emoji, chat and raw text."""

SHORT = [
    "Hi",
    "1 2 3 4 5 6 7",
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time",
    "你好",
    "人工智能的未来是",
    "请用中文介绍一下北京的历史。",
    "写一首关于春天的诗",
    "What is the meaning of life?",
    "Translate to Chinese: I love programming.",
    "SELECT name, age FROM users WHERE age > 30 ORDER BY",
    "import torch\nimport torch.nn as nn\n\nclass Attention(nn.Module):\n",
    '{"name": "Alice", "age": 30, "city":',
    "Q: How many legs does a spider have?\nA:",
    "🙂 smile 🙂 smile 🙂",
    "今天天气很好，我们去公园",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "x = 3\ny = 4\nprint(x * y)  # prints",
    "Dear Sir or Madam,\n\nI am writing to",
]
PARAGRAPH = (
    "Paged attention keeps the keys and values of a sequence in blocks that need not lie side by "
    "side, so that memory is handed out as the sequence grows and taken back when it ends. "
)
CHINESE_PARAGRAPH = (
    "大语言模型通过在海量文本上进行训练，学会了理解和生成自然语言，"
    "并能够完成翻译、写作和编程等任务。"
)
CODE = "def add(a: int, b: int) -> int:\n    return a + b\n\n\n"


def chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


PROMPTS = [
    *SHORT,
    *(chat(text) for text in SHORT[9:16]),
    *(PARAGRAPH * n + "In short," for n in (1, 3, 8, 16)),
    *(CHINESE_PARAGRAPH * n + "总之，" for n in (1, 4, 9)),
    *(CODE * n + "def sub(" for n in (2, 9)),
    *(chat(PARAGRAPH * n + "Summarise this.") for n in (2, 7)),
    *(chat(CHINESE_PARAGRAPH * n + "请总结。") for n in (2, 5)),
]
assert len(PROMPTS) == 40
