"""How deploy/image.py confines a command, in this machine's own root instead of an image's."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.dockerfile import Stage, Step, read_stages
from deploy.image import Builder, Image, contained

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and chroot need root")

LOOK = """
import json, os, pathlib
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
try:
    pathlib.Path("/it-was-here").touch()
except OSError as exc:
    written = exc.strerror
else:
    written = "yes"
pathlib.Path("/tmp/it-was-here").touch()
print(json.dumps({
    "pid": os.getpid(), "uid": os.getuid(), "groups": os.getgroups(), "written": written,
    "capabilities": status["CapEff"].strip(), "bounding": status["CapBnd"].strip(),
    "no_new_privileges": status["NoNewPrivs"].strip(), "tmp": os.listdir("/tmp"),
    "environment": sorted(set(os.environ) - {"LC_CTYPE"}),  # Python sets that itself
}))
"""


@needs_root
def test_a_container_is_process_1_without_rights_on_a_root_that_it_cannot_write() -> None:
    image = Image(Path("/"), {"QWEN_SERVE_PORT": "8000"})
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")  # one that everyone may run
    assert python is not None
    command = contained(image, [python, "-I", "-c", LOOK], [], user="10001:10001", read_only=True)
    seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert seen == {
        "pid": 1,
        "uid": 10001,
        "groups": [],
        "written": "Read-only file system",
        "capabilities": "0" * 16,
        "bounding": "0" * 16,
        "no_new_privileges": "1",
        "tmp": ["it-was-here"],
        "environment": ["HOME", "PATH", "QWEN_SERVE_PORT"],
    }
    assert not Path("/tmp/it-was-here").exists()


def test_stages_are_read_with_their_flags_and_their_base(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(
        "ARG PYTHON=3.11\n"
        "FROM python:${PYTHON} AS one\n"
        "# why\n"
        "RUN --mount=type=cache,target=/a --mount=type=bind,from=two,source=/b,target=/b \\\n"
        "    make \\\n"
        "    && make install\n"
        "FROM one AS two\n"
        'HEALTHCHECK --interval=1s CMD ["true"]\n'
    )
    one, two = read_stages(file).values()
    assert (one.base, two.base) == ("python:3.11", "one")
    (step,) = one.steps
    assert step.value.split() == ["make", "&&", "make", "install"]
    assert [value.partition(",")[0] for _, value in step.flags] == ["type=cache", "type=bind"]
    assert two.steps == (Step("HEALTHCHECK", 'CMD ["true"]', (("interval", "1s"),)),)


def test_what_cannot_be_rehearsed_ends_the_rehearsal(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "python").mkdir()
    stage = Stage("cpu", "python", (Step("ONBUILD", "RUN make"),))
    builder = Builder(tmp_path, {"cpu": stage}, tmp_path / "base", {}, [])
    with pytest.raises(SystemExit, match="no way to rehearse ONBUILD"):
        builder.build("cpu")
