"""`serve container` and `serve scale manifests`: every file is read by the tool that it is for."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

import fairlead
from fairlead.api.container import ContainerChoices, write_container, write_kubernetes
from fairlead.backends.dockerfile import HEALTH_COMMAND, PORT
from fairlead.backends.grafana import build_dashboard, dashboard_queries
from fairlead.backends.kubernetes import Workload, dns_label, render_manifests
from fairlead.backends.own_wheel import name_of, own_requirements, write_own_wheel
from fairlead.backends.requirement_lock import installed_closure, lock_requirements
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.errors import ConflictError, UsageError, WorkspaceError
from tests.backends.pack_models import open_context
from tests.serve.inference_models import classifier_bundle

BIN = Path(sys.executable).parent
MANIFESTS = {
    "deployment", "horizontal-pod-autoscaler", "kustomization", "network-policy",
    "pod-disruption-budget", "service", "service-account",
}  # fmt: skip


def tool(name):
    found = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*words, **options):
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=120, check=False,
        **options,
    )  # fmt: skip


def blank_wheel(folder: Path, requirement: str) -> Path:
    """An empty distribution of a name and version, for an index that needs no network."""
    name, _, version = requirement.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{stem}.dist-info/{item},,\n" for item in (*files, "RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for item, text in {**files, "RECORD": record}.items():
            archive.writestr(f"{stem}.dist-info/{item}", text)
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder of wheels that pip resolves from, without any network."""
    folder = tmp_path_factory.mktemp("index")
    for requirement in installed_closure(own_requirements("serve")):
        blank_wheel(folder, requirement)
    return folder


@pytest.fixture
def offline(index, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return index


@pytest.fixture(scope="module")
def written(tmp_path_factory, index):
    folder = tmp_path_factory.mktemp("container")
    runtime = RuntimeSettings(intra_op_threads=2, max_batch_size=8, is_tuned=True)
    bundle = classifier_bundle(folder / "bundle", name="Wines_2", runtime=runtime)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(index))
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        outcome = write_container(
            bundle.path,
            out=folder / "container",
            choices=ContainerChoices(has_prometheus_operator=True),
            context=open_context(folder),
        )
    return folder / "container", bundle, outcome.report


def test_hadolint_finds_nothing(written):
    folder, _, _ = written
    done = run(tool("hadolint"), folder / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_has_two_stages_no_root_a_health_check_and_the_digest(written):
    folder, bundle, _ = written
    lines = (folder / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == [
        "FROM ${BASE_IMAGE} AS build", "FROM ${BASE_IMAGE} AS run",
    ]  # fmt: skip
    assert "USER 10001:10001" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    assert any(f'dev.fairlead.bundle.digest="{bundle.digest}"' in line for line in lines)
    assert any("--require-hashes" in line for line in lines)
    copied = [line.split()[1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert all((folder / name).exists() for name in copied)
    kept = {line[1:] for line in (folder / ".dockerignore").read_text().splitlines()
            if line.startswith("!")}  # fmt: skip
    assert {name.rstrip("/") for name in copied} <= kept


def test_the_copied_bundle_is_the_bundle(written):
    folder, bundle, _ = written
    assert Bundle.open(folder / "bundle").digest == bundle.digest


def test_every_package_is_pinned_by_digest(written, index):
    folder, _, report = written
    own, *lines = (folder / "requirements.lock").read_text().splitlines()[1:]
    wheel = next((folder / "wheels").iterdir())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert own == f"./wheels/{wheel.name} --hash=sha256:{digest}"
    names = {name_of(line) for line in lines}
    assert {"numpy", "onnxruntime", "starlette", "pydantic", "typer"} <= names
    assert not {"tritonclient", "onnx", "mlflow", "pandas"} & names
    for line in lines:
        pin, _, found = line.partition(" --hash=sha256:")
        stem = pin.replace("==", "-").replace("-", "_", pin.count("-"))
        wheels = [f for f in index.iterdir() if f.name.startswith(stem.rpartition("_")[0])]
        assert found in {hashlib.sha256(f.read_bytes()).hexdigest() for f in wheels}
    assert report.details["is_locked"] is True


def test_pip_installs_what_is_locked(written, offline, tmp_path):
    folder, _, _ = written
    done = run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
        "--target", tmp_path / "site", "--requirement", "requirements.lock", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code = "import fairlead, fairlead.core.version as v; print(fairlead.__file__, v.__version__)"
    found = run(sys.executable, "-c", code, cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})  # fmt: skip
    assert found.stdout.startswith(str(tmp_path / "site")), found.stderr


def test_a_package_that_was_tampered_with_is_not_installed(written, offline, tmp_path):
    folder, _, _ = written
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    wheel = next((copy / "wheels").iterdir())
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    done = run(
        sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes",
        "--target", tmp_path / "site", "--requirement", "requirements.lock", cwd=copy,
    )  # fmt: skip
    assert done.returncode != 0
    assert "DO NOT MATCH" in done.stderr


def test_the_wheel_of_equal_code_has_equal_bytes_and_a_true_record(tmp_path):
    code = tmp_path / "fairlead"
    shutil.copytree(Path(fairlead.__file__).parent, code)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (write_own_wheel(tmp_path / name, code) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as archive:
        record = archive.read(next(n for n in archive.namelist() if n.endswith("RECORD")))
        for line in record.decode().splitlines()[:-1]:
            name, digest, size = line.rsplit(",", 2)
            data = archive.read(name)
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={found}", len(data))


def test_an_index_that_cannot_help_is_an_error_and_not_a_weaker_lock(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WorkspaceError, match="pip cannot resolve") as caught:
        lock_requirements(["numpy"], python="3.11", architecture="amd64")
    assert "--no-lock" in caught.value.hint


def test_what_an_extra_brings_is_pinned_too():
    plain = {name_of(line) for line in installed_closure(["fairlead"])}
    more = {name_of(line) for line in installed_closure(["fairlead[onnx]"])}
    assert {"numpy", "pydantic"} <= plain
    assert more - plain >= {"onnxruntime", "onnx"}
    with pytest.raises(WorkspaceError, match="`nothing-like-it` is needed"):
        installed_closure(["nothing-like-it>=3"])


def test_without_a_lock_versions_are_exact_and_that_is_said(wines, tmp_path):
    outcome = write_container(
        wines.path, out=tmp_path / "c", choices=ContainerChoices(lock=False, replicas=1),
        context=open_context(tmp_path),
    )  # fmt: skip
    lines = (tmp_path / "c" / "requirements.lock").read_text().splitlines()[2:]
    assert lines
    assert all("==" in line and "--hash" not in line for line in lines)
    assert "--require-hashes" not in (tmp_path / "c" / "Dockerfile").read_text()
    assert outcome.report.findings[0].text == "packages are pinned by version, not by digest"


@pytest.mark.parametrize("base", ["python:3.12.8-slim@sha256:" + "a" * 64, None])
def test_a_base_image_without_digest_is_said(wines, tmp_path, base):
    outcome = write_container(
        wines.path, out=tmp_path / "c", choices=ContainerChoices(lock=False, base_image=base),
        context=open_context(tmp_path),
    )  # fmt: skip
    said = any("pinned by tag only" in finding.text for finding in outcome.report.findings)
    assert said == (base is None)
    done = run(tool("hadolint"), tmp_path / "c" / "Dockerfile")
    assert done.returncode == 0, done.stdout


def manifests(folder):
    return {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}


def test_kubernetes_takes_the_manifests(written):
    folder, _, _ = written
    found = manifests(folder / "kubernetes")
    assert set(found) == MANIFESTS | {"service-monitor"}
    for name in MANIFESTS - {"kustomization"}:
        kubernetes_validate.validate(found[name], "1.31", strict=True)


def test_kustomize_builds_them(written):
    folder, _, _ = written
    done = run(tool("kubectl"), "kustomize", folder / "kubernetes")
    assert done.returncode == 0, done.stderr
    assert len(list(yaml.safe_load_all(done.stdout))) == len(MANIFESTS)


def test_the_deployment_is_hardened_and_sized_by_tuning(written):
    folder, bundle, _ = written
    found = manifests(folder / "kubernetes")
    pod = found["deployment"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert server["resources"]["requests"] == {"cpu": "2", "memory": "256Mi"}
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    assert server["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(server)
    note = found["deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert note["dev.fairlead/bundle-digest"] == bundle.digest
    selector = found["service"]["spec"]["selector"]
    labels = found["deployment"]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert found["service-monitor"]["spec"]["selector"]["matchLabels"] == selector
    assert dns_label("Wines_2") == "wines-2" == found["deployment"]["metadata"]["name"]


@pytest.mark.parametrize(
    ("name", "label"),
    [("digits", "digits"), ("A.B_c", "a-b-c"), ("9lives", "model-9lives"), ("ü", "model"),
     ("x" * 80, "x" * 50)],
)  # fmt: skip
def test_names_become_what_kubernetes_takes(name, label):
    assert dns_label(name) == label


def test_a_larger_model_gets_more_memory(wines, monkeypatch):
    small_mb = Workload("w", wines, "w:1", ()).memory_mb
    monkeypatch.setattr(type(wines), "size_bytes", property(lambda _: 500 << 20))
    assert Workload("w", wines, "w:1", ()).memory_mb >= small_mb + 3 * 500 - 64


def test_replicas_must_make_sense(wines):
    with pytest.raises(UsageError, match="4 replicas at rest, at most 3"):
        render_manifests(Workload("w", wines, "w:1", (), replicas=4, max_replicas=3))


def test_kserve_gets_the_same_container_under_its_own_names(written):
    folder, _, _ = written
    document = yaml.safe_load((folder / "kserve" / "inference-service.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == (
        "serving.kserve.io/v1beta1", "InferenceService",
    )  # fmt: skip
    (container,) = document["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["args"][:2] == ["serve", "start"]
    # What KServe adds to a custom predictor is a pod, so it must be one.
    volumes = document["spec"]["predictor"]["volumes"]
    spec = {"containers": [container], "volumes": volumes}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    kubernetes_validate.validate(pod, "1.31", strict=True)


def test_the_compose_file_follows_the_specification(written):
    import check_jsonschema

    folder, _, _ = written
    vendored = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = json.loads((vendored / "compose-spec.json").read_text())
    document = yaml.safe_load((folder / "compose.yaml").read_text())
    jsonschema.validate(document, schema)
    server = document["services"]["wines-2"]
    assert server["read_only"] is True
    assert server["ports"] == [f"127.0.0.1:${{FAIRLEAD_PORT:-{PORT}}}:{PORT}"]
    mounted = [
        volume.split(":")[0] for service in document["services"].values()
        for volume in service["volumes"]
    ]  # fmt: skip
    for place in mounted:
        assert (folder / place).exists() if place.startswith("./") else place in document["volumes"]


def test_prometheus_takes_its_configuration_and_rules(written):
    folder, _, _ = written
    done = run(tool("promtool"), "check", "config", folder / "prometheus" / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_every_query_of_the_dashboard_is_promql(tmp_path):
    rules = [{"record": f"q{n}", "expr": q} for n, q in enumerate(dashboard_queries("wines"))]
    (tmp_path / "q.yml").write_text(yaml.safe_dump({"groups": [{"name": "q", "rules": rules}]}))
    done = run(tool("promtool"), "check", "rules", tmp_path / "q.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_the_source_and_every_panel_has_a_place(written):
    folder, _, _ = written
    (path,) = (folder / "grafana" / "dashboards").iterdir()
    board = json.loads(path.read_text())
    provisioned = yaml.safe_load(
        (folder / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    uid = provisioned["datasources"][0]["uid"]
    panels = board["panels"]
    assert {target["datasource"]["uid"] for p in panels for target in p["targets"]} == {uid}
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in panels) <= 24
    assert board == build_dashboard("Wines_2")


@pytest.fixture(scope="module")
def running(written, tmp_path_factory):
    """What the container runs, run here: its command line, its environment, a free port."""
    folder, _, _ = written
    home = tmp_path_factory.mktemp("home")
    text = (folder / "Dockerfile").read_text()
    command = json.loads(next(line[4:] for line in text.splitlines() if line.startswith("CMD [")))
    here = {"/srv/bundle": folder / "bundle", "0.0.0.0": "127.0.0.1", str(PORT): "0",
            "/etc/fairlead/security.toml": folder / "security.toml"}  # fmt: skip
    words = [str(here.get(word, word)) for word in command]
    server = subprocess.Popen(
        [sys.executable, "-m", "fairlead", *words, "--json", "--until-stdin-closes",
         "--response-cache-mb", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=home,
        env={**os.environ, "FAIRLEAD_HOME": str(home / "state"), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    with server:
        yield json.loads(server.stdout.readline())["endpoint"]["url"]
        server.stdin.close()
        assert server.wait(30) == 0


def health(url):
    command = [word.replace(f":{PORT}", ":" + url.rpartition(":")[2]) for word in HEALTH_COMMAND]
    return run(sys.executable, *command[1:]).returncode


def test_the_command_of_the_container_serves_and_its_health_check_sees_it(running):
    assert health(running) == 0
    assert health("http://127.0.0.1:1") != 0
    rows = {"rows": [{"a": 1, "b": 2, "c": 3, "d": 4}]}
    request = urllib.request.Request(running + "/predict", json.dumps(rows).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.loads(answer.read())["model"] == "Wines_2"


def test_every_metric_of_the_dashboard_is_one_that_a_server_exports(running):
    import re

    deadline = time.monotonic() + 20
    with urllib.request.urlopen(running + "/metrics", timeout=deadline) as answer:
        text = answer.read().decode()
    exported = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    names = re.compile(r"\b(?:fairlead|process)_[a-z_]+")
    for query in dashboard_queries("Wines_2"):
        for name in names.findall(query):
            stem = re.sub(r"_(bucket|sum|count)$", "", name)
            assert {name, stem} & exported, name


def test_only_what_this_command_wrote_is_replaced(written, tmp_path):
    _, bundle, _ = written
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    with pytest.raises(ConflictError):
        write_container(
            bundle.path, out=tmp_path / "mine", replace=True, context=open_context(tmp_path)
        )


def test_manifests_alone_are_those_of_the_container(written, tmp_path):
    folder, bundle, _ = written
    write_kubernetes(
        bundle.path, out=tmp_path / "k8s",
        choices=ContainerChoices(has_prometheus_operator=True), context=open_context(tmp_path),
    )  # fmt: skip
    for path in (folder / "kubernetes").iterdir():
        assert (tmp_path / "k8s" / path.name).read_text() == path.read_text()


def test_the_command_line_writes_both(wines, tmp_path, cli):
    done = cli("serve", "container", wines.path, "-o", tmp_path / "c", "--no-lock", "--arch",
               "arm64", "--json", check=0)  # fmt: skip
    assert done.json["details"]["is_locked"] is False
    assert (tmp_path / "c" / "compose.yaml").is_file()
    done = cli("serve", "scale", "manifests", wines.path, "-o", tmp_path / "k", "--image", "r/w:1",
               "--replicas", "3", "--max-replicas", "9", "--json", check=0)  # fmt: skip
    assert done.json["details"]["replicas"] == [3, 9]
    scaler = yaml.safe_load((tmp_path / "k" / "horizontal-pod-autoscaler.yaml").read_text())
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (3, 9)
    wrong = cli("serve", "container", wines.path, "-o", tmp_path / "x", "--arch", "vax", check=2)
    assert "no architecture 'vax'" in wrong.stderr
