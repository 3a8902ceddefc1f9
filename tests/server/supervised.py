"""A supervisor in a process of its own, over children that the tests put in place.

`python -m tests.server.supervised FOLDER ENGINE WORKER NUM_WORKERS MODEL`: ENGINE and WORKER are
modes of tests/server/children.py, or "deadly" (tests/server/deadly_engine.py) and "real" for the
real worker.
"""

import sys
from pathlib import Path

from engine.config import EngineConfig
from server.config import ServeConfig, ServerConfig
from server.logging import configure
from server.supervisor import Commands, StartError, listen, serve

API_KEY = "sk-a-key-nobody-may-see"


def main() -> None:
    folder, engine, worker, num_workers, model = sys.argv[1:]
    python = (sys.executable, "-m")
    children = (*python, "tests.server.children", folder)
    deadly = (*python, "tests.server.deadly_engine", folder)
    commands = Commands(
        engine=deadly if engine == "deadly" else (*children, "engine", engine),
        worker=(*python, "server.worker") if worker == "real" else (*children, "worker", worker),
    )
    config = ServeConfig(
        server=ServerConfig(
            port=0,
            workers=int(num_workers),
            served_model_names=("m",),
            api_keys=(API_KEY,),
            step_timeout=2,
            drain_timeout=4,
        ),
        engine=EngineConfig(model=model),
        data_dir=folder,
        engine_address="",
    )
    configure("json")
    with listen("127.0.0.1", 0) as listener:
        Path(folder, "port").write_text(str(listener.getsockname()[1]))
        try:
            status = serve(config, listener, commands=commands)
        except StartError as exc:
            sys.stderr.write(f"error: {exc}\n")
            status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
