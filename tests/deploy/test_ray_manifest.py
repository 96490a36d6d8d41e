"""The RayJob of docs/ray.md: held to Kubernetes' schemas, to the restricted profile, and to this version of Umbel."""

import copy
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

import umbel
from umbel.cli.main import app
from umbel.core.reading.loading import load_experiments

ROOT = Path(umbel.__file__).parent
PATH = ROOT / "deploy" / "kubernetes" / "ray" / "job.yaml"
VERSIONS = ("1.30", "1.37")  # of Kubernetes
# Fields of KubeRay's ray.io/v1, of those that are used: https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html
FIELDS = {
    "job": {
        "entrypoint",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "backoffLimit",
        "submitterPodTemplate",
        "rayClusterSpec",
    },
    "cluster": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "workers": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


@pytest.fixture
def objects():
    # Anchors make parts of the file one object; a breach of one is to be a breach of it alone.
    return {one["kind"]: copy.deepcopy(one) for one in yaml.safe_load_all(PATH.read_text("utf-8"))}


def templates(job):
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [spec["submitterPodTemplate"], *(group["template"] for group in groups)]


def as_pod(template):
    """A pod of a template. KubeRay sets what a template may leave out."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one", **template["metadata"]},
        **{"spec": template["spec"]},
    }


def violations(template):
    """What the restricted profile does not allow."""
    pod = template["spec"]
    shared = pod.get("securityContext", {})
    found = [] if pod.get("automountServiceAccountToken") is False else ["a token of the API is mounted"]
    found += [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    for one in pod["containers"]:
        own = shared | one.get("securityContext", {})
        holds = {
            "privileged": not own.get("privileged", False),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": own.get("runAsNonRoot") is True and own.get("runAsUser", 0) > 0,
            "seccompProfile": own.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "drop ALL": own.get("capabilities") == {"drop": ["ALL"]},
            "limits": {"cpu", "memory"} <= one.get("resources", {}).get("limits", {}).keys(),
            "image tag": ":" in one["image"] and not one["image"].endswith(":latest"),
            "mounts": {m["name"] for m in one.get("volumeMounts", ())} <= {v["name"] for v in pod.get("volumes", ())},
        }
        found += [f"{one['name']}: {name}" for name, is_kept in holds.items() if not is_kept]
    return found


def test_pods_keep_the_restricted_profile(objects):
    assert [violations(template) for template in templates(objects["RayJob"])] == [[]] * 3


@pytest.mark.parametrize(
    ("breach", "break_it"),
    [
        ("a token of the API is mounted", lambda pod: pod.pop("automountServiceAccountToken")),
        ("ray-head: runAsNonRoot", lambda pod: pod["securityContext"].update(runAsUser=0)),
        ("ray-head: drop ALL", lambda pod: pod["containers"][0].pop("securityContext")),
        ("ray-head: mounts", lambda pod: pod.pop("volumes")),
    ],
)
def test_a_breach_is_seen(objects, breach, break_it):
    head = templates(objects["RayJob"])[1]
    break_it(head["spec"])
    assert breach in violations(head)


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_of_its_schema(objects, version):
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    job = objects.pop("RayJob")
    for one in [*objects.values(), *map(as_pod, templates(job))]:
        validator.validate(one, version, strict=True)
    misspelt = as_pod(templates(job)[1])
    misspelt["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(validator.ValidationError):
        validator.validate(misspelt, version, strict=True)


def test_kuberay_knows_every_field(objects):
    job = objects["RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec.keys() <= FIELDS["job"]
    assert cluster.keys() <= FIELDS["cluster"]
    assert cluster["headGroupSpec"].keys() <= FIELDS["head"]
    assert all(group.keys() <= FIELDS["workers"] for group in cluster["workerGroupSpecs"])
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())


def test_it_is_safe_and_of_this_version(objects):
    spec = objects["RayJob"]["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    least, below = re.fullmatch(r"ray>=([\d.]+),<(\d+)", extras["ray"][0]).groups()
    numbers = [tuple(map(int, version.split("."))) for version in (least, cluster["rayVersion"], below)]
    assert numbers == sorted(numbers)
    page = (ROOT / "docs" / "ray.md").read_text("utf-8")
    assert f"rayproject/ray:{cluster['rayVersion']}-" in page
    assert f"'ray=={cluster['rayVersion']}'" in page
    assert {template["metadata"]["labels"]["app"] for template in templates(objects["RayJob"])} == {"umbel-ray"}
    selected = objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert selected == {"app": "umbel-ray"}
    for template in templates(objects["RayJob"])[1:]:
        (container,) = template["spec"]["containers"]
        assert {"name": "RAY_worker_niceness", "value": "0"} in container["env"]
        assert {"name": "shared", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_its_entrypoint_is_a_command_of_umbel(objects):
    """Every option exists; the store lies on the volume, which the head has."""
    _, *words = shlex.split(objects["RayJob"]["spec"]["entrypoint"].replace("$RAY_ADDRESS", "10.0.0.1:6379"))
    group = typer.main.get_command(app)
    context = group.make_context("umbel", list(words), resilient_parsing=True)
    _, command, rest = group.resolve_command(context, list(words))
    parsed = command.make_context("run", rest, parent=context).params
    assert load_experiments(parsed["experiment"])
    assert (parsed["runtime"], parsed["address"]) == ("ray", "10.0.0.1:6379")
    folder = parsed["store"].removeprefix("sqlite:///").rpartition("/")[0]
    head = templates(objects["RayJob"])[1]["spec"]
    (name,) = [m["name"] for m in head["containers"][0]["volumeMounts"] if m["mountPath"] == folder]
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in head["volumes"] if "persistentVolumeClaim" in v
    }
    assert claims[name] == objects["PersistentVolumeClaim"]["metadata"]["name"]
