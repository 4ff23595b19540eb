"""What a real worker process answers, with the model that ships."""

from __future__ import annotations

from cortex_core.wire.ipc import (
    Sampling,
)
from tests.unit.worker.worker_process import ENDLESS, WorkerProcess, chat

QUESTIONS = [
    "What is the capital of France?",
    "What is the capital of Japan?",
    "What is 3 + 4?",
    "Who are you?",
    "What is the capital of Norway?",
    "What is 8 + 5?",
    "Say hello in Japanese.",
    "Show me an emoji.",
]


def test_the_capital_of_france_is_paris(worker: WorkerProcess) -> None:
    answer = worker.ask(chat("What is the capital of France?"))
    assert "Paris" in answer.content
    assert answer.reason == "stop"
    assert answer.started is not None
    assert answer.usage.prompt == answer.started.prompt
    assert answer.usage.completion >= len(answer.deltas)


def test_greedy_text_is_the_same_every_time(worker: WorkerProcess) -> None:
    for question in QUESTIONS:
        first, second = (worker.ask(chat(question)) for _ in range(2))
        assert first.deltas[0].text == second.deltas[0].text
        assert first.text() == second.text()


def test_sixteen_at_once_get_what_each_gets_alone(worker: WorkerProcess) -> None:
    prompts = [chat(q, thinking=think) for q in QUESTIONS for think in (False, True)]
    alone = [worker.ask(prompt) for prompt in prompts]
    together = [worker.start(prompt) for prompt in prompts]
    worker.finish(*together)
    assert [a.text() for a in together] == [a.text() for a in alone]
    assert [a.usage.completion for a in together] == [a.usage.completion for a in alone]


def test_sixteen_at_once_run_in_common_steps(worker: WorkerProcess) -> None:
    before = worker.steps
    answers = [worker.start(f"{n} and", sampling=ENDLESS, max_tokens=60) for n in range(16)]
    worker.finish(*answers)
    assert worker.steps - before < 16 * 60 / 4


def test_random_weights_too_give_the_same_alone_and_among_sixteen(
    worker: WorkerProcess, other_gguf: str
) -> None:
    worker.load("other", other_gguf, parallel=16, context=512)
    prompts = [f"stream {n} of many says {'so ' * n}" for n in range(16)]
    options = {"model": "other", "sampling": ENDLESS, "max_tokens": 64}
    alone = [worker.ask(prompt, **options).text() for prompt in prompts]
    together = [worker.start(prompt, **options) for prompt in prompts]
    worker.finish(*together)
    assert [answer.text() for answer in together] == alone
    worker.unload("other")


def test_a_prompt_from_cache_gives_the_same_and_says_how_much(worker: WorkerProcess) -> None:
    prompt = chat("What is the capital of Japan? " + "Please. " * 20)
    worker.load("fresh", context=1024, parallel=2)
    cold, warm = (worker.ask(prompt, model="fresh") for _ in range(2))
    assert cold.usage.cached == 0
    assert warm.usage.cached == warm.usage.prompt - 2
    assert warm.started is not None
    assert warm.started.cached == warm.usage.cached
    assert warm.text() == cold.text()
    worker.unload("fresh")


def test_thinking_comes_on_its_own_channel(worker: WorkerProcess) -> None:
    answer = worker.ask(chat("What is the capital of France?", thinking=True))
    assert [d.text for d in answer.deltas if d.channel == "marker"] == ["<think>", "</think>"]
    assert answer.text("reasoning").strip()
    assert "Paris" in answer.content
    assert "think" not in answer.content
    assert 0 < answer.usage.reasoning < answer.usage.completion


def test_a_prompt_that_opens_thinking_starts_in_it(worker: WorkerProcess) -> None:
    answer = worker.ask(chat("What is the capital of France?", thinking=True) + "<think>\n")
    assert answer.deltas[0].channel == "reasoning"
    assert [d.text for d in answer.deltas if d.channel == "marker"] == ["</think>"]


def test_characters_over_several_tokens_arrive_whole(worker: WorkerProcess) -> None:
    answers = [worker.ask(chat(q)) for q in ("Show me an emoji.", "Say hello in Japanese.")]
    assert any(not d.text.isascii() for a in answers for d in a.deltas)
    assert all("\ufffd" not in a.text() for a in answers)


def test_max_tokens_ends_with_length(worker: WorkerProcess) -> None:
    answer = worker.ask(chat("Who are you?"), max_tokens=3)
    assert answer.reason == "length"
    assert answer.usage.completion == 3


def test_the_end_of_the_context_ends_with_length(worker: WorkerProcess) -> None:
    worker.load("short", context=64, parallel=2)
    answer = worker.ask("one two three", model="short", sampling=ENDLESS, max_tokens=None)
    assert answer.reason == "length"
    assert answer.usage.prompt + answer.usage.completion == 64
    worker.unload("short")


def test_a_prompt_as_long_as_the_context_fails_with_the_numbers(worker: WorkerProcess) -> None:
    answer = worker.ask("and " * 2000)
    assert answer.fault is not None
    assert answer.fault.code == "context_length_exceeded"
    assert "maximum context length is 1024 tokens" in answer.fault.message
    assert answer.fault.overrun is not None
    assert answer.fault.overrun.most == 1023  # one token is the answer's
    assert f"has {answer.fault.overrun.tokens} tokens" in answer.fault.message
    assert answer.started is None


def test_a_model_that_is_not_loaded_is_not_found(worker: WorkerProcess) -> None:
    answer = worker.ask("x", model="nobody")
    assert answer.fault is not None
    assert answer.fault.code == "model_not_found"


def test_a_stop_string_ends_the_answer_before_it(worker: WorkerProcess) -> None:
    whole = worker.ask(chat("What is the capital of France?")).content
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    answer = worker.ask(chat("What is the capital of France?"), stop=[stop])
    assert answer.content == whole[: whole.index(stop)]
    assert answer.reason == "stop"


def test_a_stop_string_in_the_reasoning_stops_nothing(worker: WorkerProcess) -> None:
    prompt = chat("What is the capital of France?", thinking=True)
    whole = worker.ask(prompt)
    stop = whole.text("reasoning").strip()[:8]
    assert stop not in whole.content
    assert worker.ask(prompt, stop=[stop]).text() == whole.text()


def test_a_seed_gives_the_same_text_alone_and_in_company(worker: WorkerProcess) -> None:
    def sampled(seed: int | None) -> Sampling:
        return Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed, ignore_eos=True)

    prompt = chat("Who are you?")
    alone = worker.ask(prompt, sampling=sampled(11), max_tokens=24).text()
    seeds = [11, 12, None, 11, None, 13, 11]
    answers = [worker.start(prompt, sampling=sampled(s), max_tokens=24) for s in seeds]
    worker.finish(*answers)
    texts = [answer.text() for answer in answers]
    assert [texts[n] for n in (0, 3, 6)] == [alone] * 3
    assert len(set(texts)) == 5


def test_ignore_eos_goes_on_to_max_tokens(worker: WorkerProcess) -> None:
    answer = worker.ask(chat("What is 3 + 4?"), sampling=ENDLESS, max_tokens=100)
    assert answer.reason == "length"
    assert answer.usage.completion == 100


def test_a_presence_penalty_keeps_greedy_from_repeating_itself(worker: WorkerProcess) -> None:
    plain = worker.ask(chat("What is 3 + 4?"), sampling=ENDLESS, max_tokens=60)
    penalty = Sampling(temperature=0.0, ignore_eos=True, presence_penalty=100.0)
    varied = worker.ask(chat("What is 3 + 4?"), sampling=penalty, max_tokens=60)
    pieces = [d.text for d in varied.deltas]
    assert len(set(pieces)) > len({d.text for d in plain.deltas})


def test_more_requests_than_slots_all_get_their_turn() -> None:
    with WorkerProcess() as worker:
        worker.load(parallel=2, context=256)
        answers = [worker.start(chat(question)) for question in QUESTIONS]
        worker.finish(*answers)
        assert [a.reason for a in answers] == ["stop"] * len(QUESTIONS)
