"""What endpoints refuse, against a real server on loopback that uses the words of many: one question, or every question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sami_nemo.endpoint import Endpoint, Reply
from sami_nemo.errors import EndpointError
from tests.openai_server import KEY, Sent, Server, completion, refuse

AZURE = {
    "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
    "status": 400,
    "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}},
}
OPENAI_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens."
VLLM_LONG = (
    "This model's maximum context length is 4096 tokens. However, your prompt contains 5000 input tokens, which exceeds "
    "this limit even without any output tokens. (parameter=input_tokens, value=5000)"
)
MISTRAL_LONG = "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length"
FILTERED, LONG, REFUSED, CUT = "content filter", "too long", "refused by the model", "cut before an answer"
UNKNOWN_KEY = [
    {"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted", "input": 5}
]


def ask(answer: Sent | str, question: str = "?", request: dict[str, Any] | None = None) -> tuple[Reply, Server]:
    """A reply, and the server, which is asked once unless an error passes."""
    server = Server(answer=lambda messages: answer)
    try:
        asked = Endpoint("judge", "m", server.url, "JUDGE_KEY", 20, 2, lambda seconds: None, request)
        return asked.ask([{"role": "user", "content": question}], 512), server
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refuse(400, **AZURE), FILTERED),
        (refuse(400, message="Bad request", innererror={"code": "ResponsibleAIPolicyViolation"}), FILTERED),
        (refuse(400, message=AZURE["message"]), FILTERED),
        (
            refuse(400, code="content_policy_violation", message="Your request was rejected by our safety system."),
            FILTERED,
        ),
        (refuse(400, code="data_inspection_failed", message="Input data may contain inappropriate content."), FILTERED),
        (refuse(400, message="Content Exists Risk"), FILTERED),
        (refuse(403, message="m requires moderation. Your input was flagged for 'violence'."), FILTERED),
        (Sent({"error": {"message": "content_filter", "code": 400}}), FILTERED),
        (Sent(completion("", "content_filter")), FILTERED),
        (Sent(completion(None, "content_filter: PROHIBITED_CONTENT")), FILTERED),
        (Sent(completion(None, refusal="I cannot help with that.")), REFUSED),
        (refuse(400, code="context_length_exceeded", message=OPENAI_LONG, param="messages"), LONG),
        (refuse(400, code=400, type="BadRequestError", message=VLLM_LONG, param="input_tokens"), LONG),
        (refuse(400, message="max_tokens must be at least 1, got -17.", param="max_tokens"), LONG),
        (refuse(400, message="The decoder prompt (length 9) is longer than the maximum model length of 8."), LONG),
        (Sent({"object": "error", "message": MISTRAL_LONG, "type": "invalid_request_error", "code": 3051}, 400), LONG),
        (refuse(400, message="prompt is too long: 210000 tokens > 200000 maximum"), LONG),
        (refuse(400, type="exceed_context_size_error", message="the request exceeds the available context size"), LONG),
        (refuse(422, message="Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."), LONG),
        (refuse(413, message="Request too large for model `m` on tokens per minute (TPM): Limit 6000"), LONG),
        (
            refuse(429, code="rate_limit_exceeded", message="Request too large for m: Limit 10000, Requested 20000"),
            LONG,
        ),
        (Sent("<html>413 Request Entity Too Large</html>", 413), LONG),
        (
            Sent({"detail": [{"loc": ["body", "messages"], "msg": "Value error", "input": "a temperature"}]}, 422),
            "not accepted",
        ),
        (refuse(400, message="The sky is falling."), "not accepted"),
        # A reasoning model that thought until the limit.
        (Sent(completion("", "length", reasoning_content="Well, …")), CUT),
    ],
)
def test_a_refusal_of_one_question_is_a_reply(answer: Sent, reason: str) -> None:
    reply, server = ask(answer)
    assert (reply.refusal, reply.text) == (reason, "")
    assert len(server.bodies) == 1, "asking again changes nothing"
    assert reply.detail and "\n" not in reply.detail


@pytest.mark.parametrize("question", ["What temperature does the oven need?", "Who pays for billing and API keys?"])
@pytest.mark.parametrize("status", [400, 422])
def test_what_a_question_is_about_is_not_taken_for_the_error(status: int, question: str) -> None:
    """Some servers repeat the question in their errors."""
    body = {"detail": [{"loc": ["body", "messages", 0], "msg": f"cannot read: {question}", "input": question}]}
    assert ask(Sent(body, status), question)[0].refusal == "not accepted"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (refuse(401, code="invalid_api_key", message=f"Incorrect API key provided: {KEY}"), "Incorrect API key"),
        (refuse(400, message="API key not valid. Please pass a valid API key."), "API key not valid"),
        (refuse(403, message="Country, region, or territory not supported"), "territory"),
        (refuse(404, code="model_not_found", message="The model `m` does not exist"), "The model `m` does not exist"),
        (Sent({"object": "error", "message": "Invalid model: m", "code": "1500"}, 400), "Invalid model: m"),
        (refuse(402, message="Insufficient credits"), "Insufficient credits"),
        (refuse(400, message="Your credit balance is too low to access the API."), "credit balance"),
        (refuse(429, code="insufficient_quota", message="You exceeded your current quota"), "quota"),
        (refuse(429, message="Your team has used all available credits."), "available credits"),
        (refuse(429, type="exceeded_current_quota_error", message="Check your plan"), "Check your plan"),
    ],
)
def test_what_concerns_every_question_ends_the_stage_at_once(
    answer: Sent, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(EndpointError, match=told) as caught:
        ask(answer)
    assert "\n" not in str(caught.value) and KEY not in str(caught.value) and "gave up" not in str(caught.value)
    assert "judge.request" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "request_", "remedy"),
    [
        (
            {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                "param": "max_tokens",
                "code": "unsupported_parameter",
            },
            {},
            "set judge.request={max_tokens: null, max_completion_tokens: 512}",
        ),
        (
            {
                "message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value "
                "is supported.",
                "param": "temperature",
                "code": "unsupported_value",
            },
            {"reasoning_effort": "low"},
            "set judge.request={reasoning_effort: low, temperature: null}",
        ),
        # Without the field `param`.
        ({"message": "invalid temperature: only 1 is allowed for this model"}, {}, "={temperature: null}"),
        ({"message": "`temperature` is deprecated for this model."}, {}, "={temperature: null}"),
        ({"message": "temperature: Extra inputs are not permitted"}, {}, "={temperature: null}"),
        ({"message": "Argument not supported on this model: maxTokens"}, {}, "={max_tokens: null}"),
        # What the configuration gave.
        (
            {"message": "Model m does not support parameter reasoningEffort."},
            {"reasoning_effort": "low", "top_p": 1},
            "={top_p: 1}, without reasoning_effort",
        ),
        ({"message": "property 'top_k' is unsupported"}, {"top_k": 5}, "={}, without top_k"),
        (
            {
                "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'top_k'), 'msg': 'Extra inputs are not permitted'}]"
            },
            {"top_k": 5},
            "={}, without top_k",
        ),
        # A value that is out of range.
        (
            {
                "message": "max_tokens is too large: 512. This model supports at most 256 completion tokens.",
                "param": "max_tokens",
            },
            {},
            "={max_tokens: VALUE} with a value that it takes",
        ),
        (
            {
                "message": "max_tokens=512 cannot be greater than max_model_len=max_total_tokens=256. Please request fewer "
                "output tokens.",
                "param": "max_tokens",
            },
            {"top_k": 5},
            "={top_k: 5, max_tokens: VALUE} with a value that it takes",
        ),
    ],
)
def test_a_refused_parameter_says_which_key_to_set(
    error: dict[str, Any], request_: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(EndpointError) as caught:
        ask(refuse(400, **error), request=request_)
    assert remedy in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"object": "error", "message": {"detail": UNKNOWN_KEY}},
        {"detail": UNKNOWN_KEY},
        {"error": {"message": UNKNOWN_KEY}},
    ],
)
def test_a_parameter_is_found_in_a_list_of_problems(body: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match=r"judge\.request=\{\}, without top_k"):
        ask(Sent(body, 422), request={"top_k": 5})


@pytest.mark.parametrize(
    ("request_", "parameters"),
    [
        ({}, {"temperature": 0, "max_tokens": 512}),
        (
            {"max_completion_tokens": 4096, "max_tokens": None, "temperature": None},
            {"max_completion_tokens": 4096},
        ),
        ({"reasoning_effort": "low"}, {"temperature": 0, "max_tokens": 512, "reasoning_effort": "low"}),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "no_such_key": [1, None]},
            {
                "temperature": 0,
                "max_tokens": 512,
                "chat_template_kwargs": {"enable_thinking": False},
                "no_such_key": [1, None],
            },
        ),
        ({"temperature": 0.5}, {"temperature": 0.5, "max_tokens": 512}),
    ],
)
def test_a_request_says_what_the_configuration_adds(request_: dict[str, Any], parameters: dict[str, Any]) -> None:
    reply, server = ask("fine", request=request_)
    assert reply == Reply("fine", 100, 10, "stop")
    [body] = server.bodies
    assert body == {"model": "m", "messages": [{"role": "user", "content": "?"}], **parameters}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "Final "}, {"type": "text", "text": "Response: A"}], "Final Response: A"),
        (
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Final Response: B?"}]},
                {"type": "text", "text": "Final Response: A"},
            ],
            "Final Response: A",
        ),
        ([{"type": "reasoning", "text": "Hm: B."}, {"type": "output_text", "text": "A"}], "A"),
        ("A", "A"),
    ],
)
def test_parts_of_a_reply_are_joined_without_thoughts(content: Any, text: str) -> None:
    reply, _ = ask(Sent(completion(content)))
    assert (reply.text, reply.refusal) == (text, None)


@pytest.mark.parametrize(
    "content", [[{"type": "thinking", "thinking": [{"type": "text", "text": "B"}]}], [], [7], " \n"]
)
def test_thoughts_alone_are_no_answer(content: Any) -> None:
    reply, server = ask(Sent(completion(content)))
    assert (reply.text, reply.refusal, len(server.bodies)) == ("", "empty reply", 3)
    assert ask(Sent(completion(content, "length")))[0].refusal == CUT


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({}, "set judge.request={max_tokens: 4096}"),
        (
            {"max_tokens": None, "max_completion_tokens": 100},
            "set judge.request={max_tokens: null, max_completion_tokens: 800}",
        ),
        ({"max_tokens": None}, "the model's own limit"),
    ],
)
def test_too_few_tokens_for_an_answer_say_which_key_to_set(request_: dict[str, Any], told: str) -> None:
    reply, _ = ask(Sent(completion(None, "length")), request=request_)
    assert told in reply.detail


def test_a_quota_of_each_minute_passes() -> None:
    with pytest.raises(EndpointError, match="gave up after 3 requests"):
        ask(
            refuse(
                429, code=429, message="You exceeded your current quota, please check your plan and billing details."
            )
        )


def test_a_cut_reply_says_so() -> None:
    assert ask(Sent(completion("Comparison: both", "length")))[0] == Reply("Comparison: both", 100, 10, "length")


@pytest.mark.parametrize("below", ["", "/", "/openai"])
def test_an_address_without_a_version_is_named_when_nothing_is_there(below: str, server: Callable[..., Server]) -> None:
    root = server().url.removesuffix("/v1")
    asked = Endpoint("judge", "m", root + below, "JUDGE_KEY", 20, 0)
    with pytest.raises(EndpointError, match=rf"try judge.base_url={root}{below.rstrip('/')}/v1;"):
        asked.ask([{"role": "user", "content": "?"}], 5)


def test_an_address_with_a_version_is_left_alone(server: Callable[..., Server]) -> None:
    asked = Endpoint("judge", "m", server().url + "/beta", "JUDGE_KEY", 20, 0)
    with pytest.raises(EndpointError, match="404") as caught:
        asked.ask([{"role": "user", "content": "?"}], 5)
    assert "try" not in str(caught.value)


@pytest.fixture
def server() -> Any:
    running: list[Server] = []

    def start(**settings: Any) -> Server:
        running.append(Server(**settings))
        return running[-1]

    yield start
    for each in running:
        each.close()
