"""
The application of serve.py as replicas of a Ray Serve deployment, on one machine or a cluster of Ray.

    python examples/serve_ray.py MODEL [--min_replicas 1] [--max_replicas 1] [--num_gpus 1] [--num_cpus 1]

Each replica has the weights, and computes together what it is given; Ray hands out requests, replaces what dies, and
starts and stops replicas by their load. On several machines MODEL and this folder are at the same path on each. All
options of serve.py are options here, and hold for each replica; see docs/serving.md.
"""

import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path


TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP))

import ray  # noqa: E402
import torch  # noqa: E402
from ray import serve  # noqa: E402
from transformers import HfArgumentParser  # noqa: E402

from examples.serve import load, warn_of_the_world  # noqa: E402
from examples.serving.app import create_app  # noqa: E402
from examples.serving.settings import Settings  # noqa: E402


@dataclass
class Replicas:
    """Of the application, and what each needs."""

    min_replicas: int = field(default=1, metadata={"help": "that are there without any requests"})
    max_replicas: int = field(default=1, metadata={"help": "that there may be"})
    target_requests: int = field(default=16, metadata={"help": "in flight in a replica, above which another starts"})
    num_gpus: float = field(default=float(torch.cuda.is_available()), metadata={"help": "of a replica"})
    num_cpus: float = field(default=1.0, metadata={"help": "of a replica"})


def deployment(model: str, settings: Settings, replicas: Replicas) -> serve.Application:
    """For `serve.run`."""

    def build():
        return create_app(settings.name or Path(model).name, lambda: load(model, settings), settings)

    @serve.deployment(
        name="rosetta",
        ray_actor_options={
            "num_cpus": replicas.num_cpus,
            "num_gpus": replicas.num_gpus,
            "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")])}},
        },
        autoscaling_config={
            "min_replicas": replicas.min_replicas,
            "initial_replicas": replicas.min_replicas,
            "max_replicas": replicas.max_replicas,
            "target_ongoing_requests": replicas.target_requests,
        },
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_requests,
        health_check_period_s=5,
    )
    @serve.ingress(build)
    class Rosetta:
        def check_health(self):
            if not self.app.state.server.engine.is_running:
                raise RuntimeError("The engine has ended.")

    return Rosetta.bind()


def main(arguments: list[str] | None = None):
    parser = HfArgumentParser([Settings, Replicas], description=__doc__.split("\n")[1])
    parser.add_argument("model", metavar="MODEL", help="a folder or a Hub id")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 is for all the world")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", help="of a cluster of Ray, or 'auto'; by default one is started here")
    settings, replicas, options = parser.parse_args_into_dataclasses(arguments)
    warn_of_the_world(options, settings)
    ray.init(address=options.address)
    serve.start(http_options={"host": options.host, "port": options.port})
    serve.run(deployment(options.model, settings, replicas), name="rosetta")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
