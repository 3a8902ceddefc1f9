"""The compose files, as docker-compose itself reads them."""

import json
import re
from typing import Any

import pytest

from tests.deploy.options import VARIABLES
from tests.deploy.tools import (
    DRAIN_TIMEOUT_S,
    END_S,
    ROOT,
    docker_compose,
    fails,
    run,
    variables_in,
)

PROFILES = {
    "single": {"serve"},
    "cluster": {"server", "engine", "redis", "gateway"},
    "monitoring": {"prometheus", "grafana"},
}
OURS = {"serve", "server", "engine"}


def compose(*words: str, files: tuple[str, ...] = (), **variables: str) -> dict[str, Any]:
    chosen = [word for file in ("docker-compose.yml", *files) for word in ("-f", file)]
    text = run(docker_compose(), *chosen, *words, "config", "--format", "json", **variables)
    project: dict[str, Any] = json.loads(text)
    return project


def everything() -> dict[str, dict[str, Any]]:
    profiles = [word for name in PROFILES for word in ("--profile", name)]
    services: dict[str, dict[str, Any]] = compose(*profiles)["services"]
    return services


SERVICES = everything()


def seconds(duration: str) -> int:
    minutes, rest = re.fullmatch(r"(?:(\d+)m)?(\d+)s", duration).groups()  # type: ignore[union-attr]
    return 60 * int(minutes or 0) + int(rest)


def test_up_without_a_profile_is_one_server() -> None:
    assert set(compose()["services"]) == PROFILES["single"]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_starts_its_services_and_no_others(name: str) -> None:
    assert set(compose("--profile", name)["services"]) == PROFILES[name]


def test_a_mistake_is_found() -> None:
    command = (docker_compose(), "-f", "tests/deploy/mistaken-compose.yml", "config")
    assert "additional properties 'memlimit' not allowed" in fails(*command)


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert not service.get("privileged", False)
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["restart"] in ("unless-stopped", "on-failure:3")


@pytest.mark.parametrize("name", sorted(set(SERVICES) - OURS))
def test_images_of_others_are_pinned(name: str) -> None:
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+[\w.-]*", SERVICES[name]["image"])


@pytest.mark.parametrize("name", sorted(OURS))
def test_ours_outlast_their_drain(name: str) -> None:
    assert seconds(SERVICES[name]["stop_grace_period"]) > DRAIN_TIMEOUT_S + END_S


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"engine"} - {"serve", "server"}))
def test_others_are_checked(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_ours_are_checked_as_the_image_says_but_for_the_engine() -> None:
    assert "healthcheck" not in SERVICES["serve"]
    assert "healthcheck" not in SERVICES["server"]
    assert SERVICES["engine"]["healthcheck"] == {"disable": True}


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_only_the_cluster_reaches_redis() -> None:
    assert set(SERVICES["redis"]["networks"]) == {"queue"}
    assert {name for name, service in SERVICES.items() if "queue" in service["networks"]} == {
        *("redis", "server", "engine")
    }
    assert compose("--profile", "cluster")["networks"]["queue"]["internal"]


def test_prometheus_finds_the_server_under_one_name() -> None:
    assert SERVICES["serve"]["networks"]["default"]["aliases"] == ["server"]


def test_grafana_needs_a_password_that_was_chosen() -> None:
    (script,) = SERVICES["grafana"]["command"]
    # two dollars: docker-compose writes one that it was told to leave alone
    check = script.replace("$$", "$").replace("exec /run.sh", "echo started")
    assert "set it in the environment" in fails("env", "-i", "sh", "-euc", check)
    assert run("env", "-i", "GF_SECURITY_ADMIN_PASSWORD=x", "sh", "-euc", check) == "started\n"


def test_what_is_mounted_from_here_is_read_only() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    binds = [mount for mount in mounts if mount["type"] == "bind"]
    assert {mount["target"] for mount in binds} == {
        *("/etc/nginx/nginx.conf", "/etc/prometheus"),
        *("/etc/grafana/provisioning", "/var/lib/grafana/dashboards"),
    }
    assert all(mount["read_only"] for mount in binds)


def test_the_cuda_file_gives_engines_the_gpus() -> None:
    services = compose("--profile", "cluster", files=("docker-compose.cuda.yml",))["services"]
    engine = services["engine"]
    assert engine["image"] == "qwen-serve:cuda"
    assert engine["build"]["target"] == "cuda"
    (device,) = engine["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert engine["deploy"]["resources"]["limits"]["memory"]  # the first file's
    assert "devices" not in str(services["server"])


def test_the_keys_file_mounts_a_secret() -> None:
    files = ("docker-compose.keys.yml",)
    project = compose("--profile", "cluster", files=files, QWEN_KEYS="/some/keys.yaml")
    assert project["secrets"]["keys"]["file"] == "/some/keys.yaml"
    server = project["services"]["server"]
    assert server["secrets"] == [{"source": "keys", "target": "/run/secrets/keys"}]
    assert server["environment"] == {
        "QWEN_SERVE_KEYS_FILE": "/run/secrets/keys",
        "QWEN_SERVE_QUEUE": "redis://redis:6379/0",
    }


def test_a_missing_keys_file_is_said() -> None:
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.keys.yml")
    assert "the file of keys" in fails(docker_compose(), *files, "config")


def test_variables_are_options() -> None:
    used = set(variables_in(SERVICES))
    assert "QWEN_SERVE_QUEUE" in used
    assert used <= VARIABLES


def test_the_projects_env_file_only_chooses_a_profile() -> None:
    lines = (ROOT / ".env").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["COMPOSE_PROFILES=single"]
