"""The model behind the interface of lm-evaluation-harness (the library lm_eval).

Importing this module needs lm_eval, and registers the model there under the name sdjax.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from sdjax import config
from sdjax.analysis import lengths
from sdjax.errors import UserError
from sdjax.models.network.transformer import DecodeWeights
from sdjax.rollout.engine import scoring
from sdjax.rollout.engine.sampler import LocalSampler
from sdjax.rollout.interface import SamplingRequest, sample
from sdjax.training.loaded_model import LoadedModel, open_model

MAX_TOKENS = 256
"""The longest completion where a task names none, as in lm_eval's own models."""


@register_model("sdjax")
class HarnessModel(TemplateLM):
    """Answers lm_eval's requests with the sampler and the network of sdjax.

    Text becomes tokens as in lm_eval's class HFLM, so both score the same tokens. Completions end
    at the model's stop tokens. They are cut at `until` afterwards, and at the end of a thought.
    """

    def __init__(
        self,
        model: LoadedModel,
        weights: DecodeWeights,
        *,
        thinking: bool | None = None,
        seed: int = 0,
        slots: int = 0,
    ) -> None:
        """Keeps a model and the sampler's weights.

        Args:
            model: Its sampler must be the local one.
            weights: What `model.sampler.weights` returned.
            thinking: Whether the chat template enables thinking; None leaves that to the template.
            seed: Of tasks that do not decode greedily.
            slots: As config.Sampling.slots.
        """
        super().__init__()
        assert isinstance(model.sampler, LocalSampler)
        self._model, self._sampler = model, model.sampler
        self._weights, self._thinking = weights, thinking
        self._seed, self._slots = seed, slots
        self.tokenizer: Any = model.tokenizer.base

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict, additional_config: dict | None = None
    ) -> HarnessModel:
        """Returns the model of `model_args`: the fields of config.Model, and enable_thinking.

        lm_eval's own arguments, such as batch_size and device, do nothing here.
        """
        del additional_config
        fields = dict(arg_dict)
        thinking = fields.pop("enable_thinking", None)
        try:
            source = config.Model(**fields)
        except TypeError as error:
            raise UserError(f"model_args: {error}") from None
        model = open_model(source, config.Mesh())
        return cls(model, model.stored_weights(), thinking=thinking)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict | None = None
    ) -> HarnessModel:
        """Returns the model of "path=MODEL,compute_dtype=float32,..."."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string))

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        eos = self.tokenizer.eos_token_id
        return self._model.tokenizer.turn_end_id if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """The most tokens of a context and its continuation."""
        return self._model.cfg.max_positions

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm_eval's cache of requests."""
        return str(self._model.folder).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the tokens of a text, behind a BOS token where the tokenizer writes one."""
        del kwargs
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        ids: list[int] = self.tokenizer.encode(
            string, add_special_tokens=add_special_tokens, verbose=False
        )
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the text of a conversation up to the assistant's turn, or to its given start."""
        begun = "" if add_generation_prompt else chat_history[-1]["content"]
        turns: Any = chat_history if add_generation_prompt else chat_history[:-1]
        return self._model.tokenizer.prompt_text(turns, enable_thinking=self._thinking) + begun

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Returns the log-probability of each continuation, and whether greedy decoding gives it.

        A context that is too long loses its beginning.
        """
        del disable_tqdm, kwargs
        pairs = []
        for _, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"lm_eval: a continuation has {len(continuation)} tokens: must have 1 to the "
                    f"model's context of {self.max_length}; leave the task out"
                )
            pairs.append((context[-(self.max_length + 1 - len(continuation)) :], continuation))
        scored = scoring.likelihoods(self._sampler, self._weights, pairs)
        out = [(float(np.sum(one.logprobs, dtype=np.float64)), one.greedy) for one in scored]
        for (key, _, _), answer in zip(requests, out, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return out

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-probability of each whole text, in windows of the model's context."""
        windows = [
            [
                (None, *utils.make_disjoint_window(window))
                for window in utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scored = iter(self._loglikelihood_tokens([w for of_text in windows for w in of_text]))
        out = [sum(next(scored)[0] for _ in of_text) for of_text in windows]
        for request, total in zip(requests, out, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return out

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns a completion of each context, cut at the first of the task's `until` texts."""
        del disable_tqdm
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        out: dict[int, str] = {}
        for number, (settings, places) in enumerate(alike.items()):
            found = self._generate(
                [requests[i].args[0] for i in places], json.loads(settings), number
            )
            out |= zip(places, found, strict=True)
        for i, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, out[i])
        return [out[i] for i in range(len(requests))]

    def _generate(
        self, contexts: Sequence[str], settings: Mapping[str, Any], number: int
    ) -> list[str]:
        """Returns the completions of contexts with the same settings, the `number`-th ones."""
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), MAX_TOKENS))
        until, sampling = wanted["until"], self._sampling(wanted)
        room = self.max_length - sampling.max_completion_tokens
        if room < 1:
            raise UserError(
                f"lm_eval: a task asks for completions of {sampling.max_completion_tokens} tokens: "
                f"the model's context has {self.max_length}; set lm_eval.sampling to eval, with a "
                "lower eval.max_completion_tokens"
            )
        request = SamplingRequest(
            prompts=[np.array(self.tok_encode(text)[-room:], np.int32) for text in contexts],
            group_size=1,
            sampling=sampling,
            key=jax.random.fold_in(jax.random.key(self._seed), number),
        )
        drawn = sample(self._sampler, self._weights, request)
        texts = [self._model.tokenizer.decode(one.tokens) for (one,) in drawn]
        return [_answer(*both, until) for both in zip(contexts, texts, strict=True)]

    def _sampling(self, wanted: Mapping[str, Any]) -> config.Sampling:
        """Returns the settings of lm_eval as those of the sampler; raises UserError for others."""
        neutral = {"num_beams": 1, "repetition_penalty": 1, "min_p": 0, "n": 1}
        known = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
        for name in wanted.keys() - known:
            if wanted[name] is not None and wanted[name] != neutral.get(name):
                raise UserError(
                    f"lm_eval: a task asks for {name} {wanted[name]!r}, which the sampler does not "
                    "have; leave the task out"
                )
        return config.Sampling(
            temperature=float(wanted["temperature"]) if wanted.get("do_sample") else 0.0,
            top_p=float(wanted.get("top_p", 1.0)),
            top_k=max(int(wanted.get("top_k", 0)), 0),
            max_completion_tokens=int(wanted["max_gen_toks"]),
            slots=self._slots,
        )


def _answer(context: str, text: str, until: Sequence[str]) -> str:
    """Returns the part of a completion after its thought, cut at the first of the `until` texts.

    A thought that the length limit cut off has no answer.
    """
    begun = context.rstrip().endswith(lengths.OPEN) or lengths.OPEN in text
    if lengths.CLOSE in text:
        # With its third argument the function also takes spaces from the beginning of a text.
        return postprocess_generated_text(text, until, lengths.CLOSE)
    return "" if begun else postprocess_generated_text(text, until, None)
