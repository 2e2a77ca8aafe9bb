"""`confcom check-pods`: manifests as people write them, with their mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from confcom.admission.decision import AdmissionContext, decide_pod
from confcom.cli.root import root, run
from confcom.errors import ExitCode, FormatError

JOB = """\
apiVersion: batch/v1
kind: Job
metadata:
  name: sgx-test
  labels:
    app: sgx-test
spec:
  template:
    metadata:
      labels:
        app: sgx-test
    spec:
      containers:
      - name: sgxtest
        image: {image}
        env:
        - name: SGX_AESM_ADDR
          value: {value}
        resources:
          limits:
            {limit}
      restartPolicy: "Never"
  backoffLimit: 0
"""
GOOD = {"image": "oeciteam/sgx-test:1.0", "value": '"1"', "limit": "kubernetes.azure.com/sgx_epc_mem_in_MiB: 10"}


@pytest.fixture
def job(tmp_path: Path):
    def job(**parts: str) -> str:
        path = tmp_path / "job.yaml"
        path.write_text(JOB.format_map(GOOD | parts))
        return str(path)

    return job


def test_a_job_is_completed_without_a_cluster(job) -> None:
    result = CliRunner().invoke(root, ["check-pods", job()])
    assert result.exit_code == 0
    assert "Job sgx-test: completed, 10 MiB of EPC" in result.output


@pytest.mark.promise("M11")
@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"value": "1"}, 'the value 1, which is no text in YAML. Put it in quotes, as in "1".'),
        ({"value": "y"}, "which is no text in YAML"),
        ({"value": "no"}, "which is no text in YAML"),
        ({"image": '"oeciteam/sgx-test: 1.0"'}, "Write oeciteam/sgx-test:1.0."),
        ({"limit": "kubernetes.azure.com/sgx_epc_mem_in_MiB: 10Mi"}, "Write 10."),
        ({"limit": "sgx.intel.com/epc: 10"}, "Write 10Mi."),
        ({"limit": "sgx.intel.com/provision: 1"}, "Add a limit such as"),
    ],
)
def test_the_mistakes_of_printed_manifests_are_named(job, parts: dict, sentence: str) -> None:
    result = CliRunner().invoke(root, ["check-pods", job(**parts)])
    assert result.exit_code == 5
    assert sentence in result.output


@pytest.mark.promise("M11")
def test_a_blank_that_breaks_the_file_is_named_too(job, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check-pods", job(image="oeciteam/sgx-test: 1.0")]) == 3
    said = capsys.readouterr().err
    assert "line 15" in said
    assert "Write oeciteam/sgx-test:1.0." in said


@pytest.mark.parametrize("value", ["2026-01-01", '"no"', "v1", "''"])
def test_what_kubectl_takes_for_text_is_text(job, value: str) -> None:
    assert CliRunner().invoke(root, ["check-pods", job(value=value)]).exit_code == 0


def test_every_kind_with_pods_is_looked_into(tmp_path: Path) -> None:
    spec = {"containers": [{"name": "a", "image": "i", "resources": {"limits": {"sgx.intel.com/epc": "1Mi"}}}]}
    template = {"spec": {"template": {"spec": spec}}}
    items = [
        {"kind": "Pod", "metadata": {"name": "p"}, "spec": spec},
        *({"kind": kind, **template} for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")),
        {"kind": "CronJob", "spec": {"jobTemplate": template}},
        {"kind": "ConfigMap", "data": {"a": "b"}},
    ]
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"kind": "List", "items": items}))
    result = CliRunner().invoke(root, ["check-pods", "-o", "json", str(path)])
    found = json.loads(result.output)
    assert [one["kind"] for one in found] == [item["kind"] for item in items[:-1]]
    assert all(one["allowed"] and one["epc_mib"] == 1 and len(one["patch"]) == 5 for one in found), found


def test_grants_and_nodes_can_be_stated(job) -> None:
    words = ["check-pods", job(limit="sgx.intel.com/epc: 200Mi"), "--largest-node", "168"]
    assert "the largest node of this cluster has 168 MiB" in CliRunner().invoke(root, words).output


@pytest.mark.parametrize("content", ["", "a: [", "kind: 5", "kind: Pod\nspec: x", "kind: List\nitems: [1]", "&a [*a]"])
def test_what_is_no_manifest_is_said_in_a_sentence(tmp_path: Path, content: str, capsys) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    assert run(["check-pods", str(path)]) in (2, 3)
    assert "Traceback" not in capsys.readouterr().err


DOCUMENTS = Path(__file__).resolve().parents[2] / "docs" / "howto"


@pytest.mark.parametrize("page", ["write-a-pod.md", "from-laptop-to-cluster.md"])
def test_the_manifests_of_the_documents_are_good(tmp_path: Path, page: str) -> None:
    text = (DOCUMENTS / page).read_text()
    manifests = re.findall(r"^```yaml\n(apiVersion.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert manifests
    path = tmp_path / "all.yaml"
    path.write_text("\n---\n".join(manifests))
    result = CliRunner().invoke(root, ["check-pods", str(path)])
    assert result.exit_code == 0, result.output
    assert result.output.count("completed") == len(manifests)


POD = "{kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: b}]}}"
MULTIPLIED = f"a0: &a0 [{POD}]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'{{kind: List, items: *a{n - 1}}}'] * 20)}]\n" for n in range(1, 4)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MULTIPLIED + "kind: List\nitems: *a3\n", "aliases that repeat more than 10000 values"),
        (
            f"kind: Pod\nspec: {{containers: [{{name: a, env: [{{name: A, value: 0x{'f' * 9000}}}]}}]}}",
            "a number of 9002",
        ),
        ("kind: Pod\nkind: Job\n", "the key 'kind' stands here twice"),
        ("kind: Pod\nspec: " + "[" * 5000, "more than 100 lists and maps in one another"),
        ("kind: Pod\nmetadata: {annotations: {1: x}, name: !!binary AAAA}\n", "could not determine a constructor"),
    ],
)
def test_a_hostile_manifest_is_refused_with_one_sentence(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """601 bytes made 54,000 lines, and 2.5 kB ended in MemoryError."""
    path = tmp_path / "pods.yaml"
    path.write_text(text)
    assert run(["check-pods", str(path)]) == 3
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""
    assert len(output.err) < 600
    assert "Traceback" not in output.err


def test_a_time_of_day_is_text_as_for_the_api_server(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    amount = f"1{':59' * 2000}"
    path.write_text(
        f"kind: Pod\nspec: {{containers: [{{name: a, resources: {{limits: {{sgx.intel.com/epc: {amount}}}}}}}]}}"
    )
    result = CliRunner().invoke(root, ["check-pods", str(path)])
    assert result.exit_code == 5
    assert "is no amount of sgx.intel.com/epc" in result.output


def test_what_has_no_form_is_named_with_its_file_and_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.yaml").write_text("kind: Pod\nmetadata: {name: one}\n")
    (tmp_path / "bad.yaml").write_text(
        "---\n---\nkind: Pod\nmetadata: {name: two}\nspec: {containers: [{name: a}, 5]}\n"
    )
    assert run(["check-pods", str(tmp_path / "good.yaml"), str(tmp_path / "bad.yaml")]) == ExitCode.MALFORMED
    assert f"{tmp_path}/bad.yaml, two: Pod.spec.containers[1]: this is not" in capsys.readouterr().err
    for member in ("spec", "metadata"):
        with pytest.raises(FormatError, match=rf"Pod\.{member}: this is not an object"):
            decide_pod({member: 5}, AdmissionContext(namespace="default"))
