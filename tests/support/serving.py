"""A real HTTP server with the sampler of this package behind it, in vLLM's and SGLang's words."""

import json
import threading
import time
from pathlib import Path

import http_servers
import jax
import learning
import numpy as np
import tiny

from sdjax import config
from sdjax.rollout.engine import sampler
from sdjax.rollout.interface import SamplingRequest, sample

STOPS = (0, 2)


class Model:
    """A tiny model folder, its sampler, and what a server makes of requests for it."""

    def __init__(self, folder):
        self.mesh = learning.make_mesh()
        self.lock = threading.Lock()
        self.load(folder)

    def load(self, folder):
        cfg, graph, params = tiny.load(Path(folder))
        with jax.set_mesh(self.mesh):
            self.sampler = sampler.make(graph, cfg, self.mesh, stop_ids=STOPS, pad_id=0)
            self.weights = self.sampler.weights(params)

    def draw(self, prompt, size, seed, sampling):
        """Returns what the sampler draws for one prompt, with the key of a seed."""
        request = SamplingRequest(
            prompts=[np.array(prompt, np.int32)],
            group_size=size,
            sampling=sampling,
            key=jax.random.key(seed),
        )
        with self.lock, jax.set_mesh(self.mesh):
            return sample(self.sampler, self.weights, request)[0]

    def vllm(self, body):
        sampling = config.Sampling(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=max(body["top_k"], 0),
            max_completion_tokens=body["max_tokens"],
        )
        drawn = self.draw(body["prompt"], body["n"], body["seed"], sampling)
        choices = [
            {
                "index": i,
                "finish_reason": d.finish,
                "token_ids": d.tokens.tolist(),
                "logprobs": {
                    "tokens": [f"token_id:{t}" for t in d.tokens],
                    "token_logprobs": d.logprobs.tolist(),
                },
            }
            for i, d in enumerate(drawn)
        ]
        return {"choices": choices}

    def sglang(self, body):
        out = []
        for prompt, given in zip(body["input_ids"], body["sampling_params"], strict=True):
            sampling = config.Sampling(
                temperature=given["temperature"], max_completion_tokens=given["max_new_tokens"]
            )
            [drawn] = self.draw(prompt, 1, given["sampling_seed"], sampling)
            pairs = zip(drawn.logprobs.tolist(), drawn.tokens.tolist(), strict=True)
            meta = {
                "finish_reason": {"type": drawn.finish},
                "output_token_logprobs": [[lp, t, None] for lp, t in pairs],
            }
            out.append({"output_ids": drawn.tokens.tolist(), "meta_info": meta})
        return out


class Handler(http_servers.Handler):
    """Answers from `server.model`, after `server.trouble(path, body, answer)` had its way."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, {"data": [{"id": "tiny"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if body.get("temperature") == 0 and body["n"] > 1:
            fault = (400, {"error": {"message": "n must be 1 when using greedy sampling"}})
        if body.get("temperature", 0) > 2:
            fault = (400, {"error": {"message": "temperature must be in [0, 2]"}})
        if fault == "hang":
            time.sleep(3)
        elif fault == "cut":
            self.close_connection = True
            return
        elif fault is not None:
            return self.answer(*fault)
        self.answer(200, self.server.spoil(self.path, self.routes()[self.path](body)))

    def routes(self):
        model = self.server.model

        def load(folder):
            model.load(folder)
            return {"success": True}

        return {
            "/v1/completions": model.vllm,
            "/generate": model.sglang,
            "/collective_rpc": lambda body: load(body["kwargs"]["weights_path"]),
            "/reset_prefix_cache": lambda body: {"success": True},
            "/update_weights_from_disk": lambda body: load(body["model_path"]),
        }


def serving(model):
    """Returns a context of a running server.

    `faults` are answered first, `spoil` changes right answers.
    """
    spoil = lambda path, answer: answer  # noqa: E731
    return http_servers.running(Handler, model=model, seen=[], faults=[], spoil=spoil)
