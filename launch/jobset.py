"""GPUs, or one TPU slice, of a Kubernetes cluster with JobSet, in a container image."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from launch import host
from launch.plan import Command, File, Step

SHARED_WORKDIR = True
_MANIFEST = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
spec:
  failurePolicy:
    maxRestarts: {restarts}
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        parallelism: {hosts}
        completions: {hosts}
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
            nodeSelector: {selector}
            containers:
            - name: train
              image: {image}
              command: {command}
              ports:
              - containerPort: {port}
              resources:
                limits: {limits}
{environment}"""
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this launcher."""
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--image", required=True, help="built from launch/Containerfile")
    parser.add_argument("--hosts", type=int, required=True, help="of the slice, or of all GPUs")
    parser.add_argument("--per-host", type=int, default=8, help="GPUs, or TPU chips")
    parser.add_argument("--resource", default="nvidia.com/gpu", help="or google.com/tpu")
    parser.add_argument(
        "--select", action="append", default=[], metavar="LABEL=VALUE", help="of the nodes"
    )
    parser.add_argument("--restarts", type=int, default=10, help="after a failure")


def steps(args: argparse.Namespace, train: Sequence[str]) -> list[Step]:
    """What to do."""
    tpu = args.resource.endswith("/tpu")
    text = _MANIFEST.format(
        name=args.name,
        restarts=args.restarts,
        hosts=args.hosts,
        selector=json.dumps(dict(item.split("=", 1) for item in args.select)),
        image=args.image,
        command=json.dumps(list(host.train(train))),
        port=host.PORT,
        limits=json.dumps({args.resource: args.per_host}),
        environment=_environment(args.name, 0 if tpu else args.hosts),
    )
    path = f"{args.name}.yaml"
    return [File(path, text), Command(("kubectl", "apply", "--filename", path))]


def _environment(name: str, hosts: int) -> str:
    """Variables of every host; GKE itself tells TPU hosts (0) their place."""
    lines = ["env:"]
    variables = dict(host.RESTARTED)
    if hosts:
        # JobSet names pods JOBSET-JOB-REPLICA-INDEX.JOBSET.
        first = f"{name}-hosts-0-0.{name}:{host.PORT}"
        variables |= host.described(first, str(hosts), "")
    for variable, value in variables.items():
        lines.append(f"- name: {variable}")
        if value:
            lines.append(f"  value: {json.dumps(value)}")
        else:
            lines.append(f"  valueFrom: {{fieldRef: {{fieldPath: {json.dumps(_INDEX)}}}}}")
    return "".join(f"{' ' * 14}{line}\n" for line in lines)
