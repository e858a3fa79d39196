import yaml

from fairlead.core.requirements import state_runtime

LINES = ["mlflow==3.1.0", "numpy==2.4.6", "onnxruntime==1.32.0", "pandas"]


def bundle(folder, lines):
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": ["python=3.11.4", "pip", {"pip": lines}],
    }
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False))
    return folder


def stated(folder) -> list[str]:
    lines = (folder / "requirements.txt").read_text().splitlines()
    conda = yaml.safe_load((folder / "conda.yaml").read_text())
    assert conda["dependencies"][-1]["pip"] == lines
    assert conda["dependencies"][:2] == ["python=3.11.4", "pip"]
    return lines


def test_the_library_of_the_runtime_is_listed_once(tmp_path) -> None:
    folder = bundle(tmp_path, LINES)
    for _ in range(2):
        state_runtime(folder, "OpenVINO")
        found = stated(folder)
        assert found[: len(LINES)] == LINES
        assert len(found) == len(LINES) + 1
        assert found[-1].startswith("openvino")


def test_it_goes_with_the_runtime(tmp_path) -> None:
    folder = bundle(tmp_path, LINES)
    state_runtime(folder, "OpenVINO")
    state_runtime(folder, "CPUExecutionProvider")
    assert stated(folder) == LINES


def test_a_bundle_without_requirements_stays_without(tmp_path) -> None:
    state_runtime(tmp_path, "OpenVINO")
    assert not list(tmp_path.iterdir())
