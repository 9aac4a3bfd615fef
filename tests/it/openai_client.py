"""The official OpenAI client against andond's Unix socket, unchanged but for its transport.

Run by tests/it/openai.rs, which starts the daemon and sets ANDON_SOCKET and ANDON_MODEL_KIND: `tiny`
(a generated model, whose greedy text never ends by itself) or `real` (one that knows its language).
"""

import asyncio
import concurrent.futures
import json
import os
import unittest

import httpx
import openai

SOCKET = os.environ["ANDON_SOCKET"]
KIND = os.environ["ANDON_MODEL_KIND"]
URL = "http://andon/v1"
TOOLS = [
    {"type": "function", "function": {"name": "line_status", "description": "The state of a line.", "parameters": {
        "type": "object",
        "properties": {
            "line": {"type": "integer", "minimum": 1, "maximum": 9},
            "detail": {"type": "string", "enum": ["short", "long"]},
        },
        "required": ["line", "detail"],
    }}},
    {"type": "function", "function": {"name": "stop_line", "description": "Stops a line.", "parameters": {
        "type": "object",
        "properties": {"reason": {"type": "string", "maxLength": 40}},
        "required": ["reason"],
        "additionalProperties": False,
    }}},
]
ASK = [{"role": "user", "content": "Why does a conveyor belt stop?"}]


def client():
    transport = httpx.HTTPTransport(uds=SOCKET)
    http = httpx.Client(transport=transport, timeout=120)
    return openai.OpenAI(base_url=URL, api_key="none", http_client=http, max_retries=0)


class Case(unittest.TestCase):
    def setUp(self):
        self.client = client()
        self.addCleanup(self.client.close)
        self.model = self.client.models.list().data[0].id

    def chat(self, **options):
        options = {"messages": ASK, "max_completion_tokens": 24, "temperature": 0, **options}
        return self.client.chat.completions.create(model=self.model, **options)

    def text(self, **options):
        return self.chat(**options).choices[0].message.content

    def streamed(self, **options):
        """Text, finish reason and usage of a streamed answer, put together as clients do."""
        text, finish, usage = "", None, None
        options = {"stream_options": {"include_usage": True}, **options}
        for chunk in self.chat(stream=True, **options):
            self.assertEqual(chunk.object, "chat.completion.chunk")
            self.assertEqual(chunk.model, self.model)
            if chunk.usage is not None:
                usage = chunk.usage
            for choice in chunk.choices:
                self.assertIsNone(finish, "a piece after the end")
                text += choice.delta.content or ""
                finish = choice.finish_reason
        return text, finish, usage


class Models(Case):
    def test_list_and_retrieve(self):
        models = self.client.models.list().data
        self.assertEqual(len(models), 1)
        self.assertEqual(models[0].object, "model")
        self.assertEqual(self.client.models.retrieve(self.model).id, self.model)

    def test_unknown_model(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.models.retrieve("no-such-model")
        self.assertEqual(caught.exception.code, "model_not_found")


class Chat(Case):
    def test_whole_answer(self):
        answer = self.chat()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.model, self.model)
        choice = answer.choices[0]
        self.assertEqual(choice.message.role, "assistant")
        self.assertTrue(choice.message.content)
        self.assertIn(choice.finish_reason, ["stop", "length"])
        usage = answer.usage
        self.assertGreater(usage.prompt_tokens, 0)
        self.assertLessEqual(usage.completion_tokens, 24)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_streamed_is_whole(self):
        whole = self.chat()
        text, finish, usage = self.streamed()
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(finish, whole.choices[0].finish_reason)
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(usage.prompt_tokens, whole.usage.prompt_tokens)

    def test_stream_without_usage(self):
        usages = [chunk.usage for chunk in self.chat(stream=True)]
        self.assertTrue(all(usage is None for usage in usages))

    def test_raw_response_headers(self):
        raw = self.client.chat.completions.with_raw_response.create(
            model=self.model, messages=ASK, max_completion_tokens=4
        )
        self.assertTrue(raw.headers["content-type"].startswith("application/json"))
        self.assertTrue(raw.parse().choices)

    def test_roles_and_parts(self):
        messages = [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": [{"type": "text", "text": "Is the belt "}, {"type": "text", "text": "on?"}]},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Überprüfung: 温度 ⚙️ ok?"},
        ]
        self.assertTrue(self.text(messages=messages))

    def test_token_limit(self):
        for limit in (1, 2, 7):
            answer = self.chat(max_completion_tokens=limit)
            self.assertLessEqual(answer.usage.completion_tokens, limit)
            if KIND == "tiny":
                self.assertEqual(answer.usage.completion_tokens, limit)
                self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(self.text(max_completion_tokens=7), self.text(max_completion_tokens=openai.NOT_GIVEN, max_tokens=7))

    def test_seed(self):
        drawn = {"temperature": 1.5, "max_completion_tokens": 16}
        first = self.text(seed=7, **drawn)
        self.assertEqual(first, self.text(seed=7, **drawn))
        self.assertEqual(first, self.streamed(seed=7, **drawn)[0])
        others = {self.text(seed=seed, **drawn) for seed in range(8, 12)}
        self.assertNotEqual(others, {first})

    def test_sampling_options(self):
        self.assertTrue(self.text(temperature=0.7, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5))
        extra = {"top_k": 1}
        self.assertEqual(self.text(temperature=1.0, extra_body=extra), self.text())

    def test_stop(self):
        whole = self.text()
        # Long enough to cross the border between two tokens.
        stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
        wanted = whole[: whole.index(stop)]
        for stops in (stop, [stop], ["never to be found", stop]):
            answer = self.chat(stop=stops)
            self.assertEqual(answer.choices[0].message.content, wanted)
            self.assertEqual(answer.choices[0].finish_reason, "stop")
        text, finish, _ = self.streamed(stop=stop)
        self.assertEqual((text, finish), (wanted, "stop"))
        self.assertEqual(self.text(stop=["never to be found"]), whole)

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=3)
        tokens = answer.choices[0].logprobs.content
        self.assertEqual(b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace"), answer.choices[0].message.content)
        for token in tokens:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 3)
            logprobs = [top.logprob for top in token.top_logprobs]
            self.assertEqual(logprobs, sorted(logprobs, reverse=True))
            # Greedy takes the likeliest.
            self.assertAlmostEqual(token.logprob, logprobs[0], places=4)

    def test_logprobs_streamed(self):
        whole = self.chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content
        tokens = []
        for chunk in self.chat(logprobs=True, top_logprobs=2, stream=True):
            for choice in chunk.choices:
                tokens += (choice.logprobs.content or []) if choice.logprobs else []
        self.assertEqual([(t.token, t.logprob) for t in tokens], [(t.token, t.logprob) for t in whole])

    def test_logprobs_off(self):
        self.assertIsNone(self.chat().choices[0].logprobs)

    def test_at_once_is_one_by_one(self):
        def ask(number):
            with client() as own:
                answer = own.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": f"Machine {number} is hot." * (1 + number)}],
                    max_completion_tokens=12,
                    temperature=1.0,
                    seed=number,
                    logprobs=True,
                )
            choice = answer.choices[0]
            return choice.message.content, [token.logprob for token in choice.logprobs.content]

        alone = [ask(number) for number in range(6)]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            together = list(pool.map(ask, range(6)))
        self.assertEqual(alone, together)

    def test_abandoned_stream_leaves_the_daemon_well(self):
        whole = self.text()
        for _ in range(3):
            stream = self.chat(stream=True, max_completion_tokens=200)
            next(iter(stream))
            stream.close()
        self.assertEqual(self.text(), whole)

    def test_async_client(self):
        async def ask():
            transport = httpx.AsyncHTTPTransport(uds=SOCKET)
            http = httpx.AsyncClient(transport=transport, timeout=120)
            async with openai.AsyncOpenAI(base_url=URL, api_key="none", http_client=http, max_retries=0) as own:
                options = {"model": self.model, "messages": ASK, "max_completion_tokens": 24, "temperature": 0}
                stream = await own.chat.completions.create(stream=True, **options)
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

        self.assertEqual(asyncio.run(ask()), self.text())


    def test_several_answers(self):
        drawn = {"temperature": 2.0, "max_completion_tokens": 24, "seed": 5}
        answer = self.chat(n=3, **drawn)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        texts = [choice.message.content for choice in answer.choices]
        self.assertEqual(texts[0], self.text(**drawn))
        self.assertGreater(len(set(texts)), 1)
        self.assertEqual(texts, [choice.message.content for choice in self.chat(n=3, **drawn).choices])
        alone = self.chat(**drawn).usage
        self.assertEqual(answer.usage.prompt_tokens, alone.prompt_tokens)
        self.assertLessEqual(answer.usage.completion_tokens, 3 * 24)
        self.assertGreater(answer.usage.completion_tokens, alone.completion_tokens)
        streamed, ends, usage = ["", "", ""], {}, None
        for chunk in self.chat(n=3, stream=True, stream_options={"include_usage": True}, **drawn):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                self.assertNotIn(choice.index, ends)
                streamed[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    ends[choice.index] = choice.finish_reason
        self.assertEqual(streamed, texts)
        self.assertEqual(ends, {c.index: c.finish_reason for c in answer.choices})
        self.assertEqual(usage.completion_tokens, answer.usage.completion_tokens)

    def test_logit_bias(self):
        token = self.chat(max_completion_tokens=1, logprobs=True)
        word = token.choices[0].message.content
        ids = self.client.post("/tokenize", body={"content": "belt"}, cast_to=object)["tokens"]
        forced = self.text(logit_bias={str(ids[0]): 100}, max_completion_tokens=3)
        piece = self.client.post("/detokenize", body={"tokens": ids[:1]}, cast_to=object)["content"]
        self.assertEqual(forced, piece * 3)
        self.assertEqual(self.text(logit_bias={}, max_completion_tokens=1), word)

    def test_cached_prompt(self):
        messages = [{"role": "user", "content": "The log of the press says: " + "hot, very hot; " * 20}]
        first = self.chat(messages=messages, logprobs=True)
        again = self.chat(messages=messages, logprobs=True)
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, 64)
        self.assertLess(again.usage.prompt_tokens_details.cached_tokens, again.usage.prompt_tokens)
        self.assertEqual(first.choices[0], again.choices[0])

    def test_prediction(self):
        whole = self.chat(max_completion_tokens=64)
        text = whole.choices[0].message.content
        for content in (text, [{"type": "text", "text": text}]):
            again = self.chat(max_completion_tokens=64, prediction={"type": "content", "content": content})
            self.assertEqual(again.choices[0].message.content, text)
            details = again.usage.completion_tokens_details
            self.assertGreaterEqual(details.accepted_prediction_tokens, 0)
            self.assertGreaterEqual(details.rejected_prediction_tokens, 0)
            self.assertLess(details.accepted_prediction_tokens, again.usage.completion_tokens)
            if KIND == "real":
                self.assertGreater(details.accepted_prediction_tokens, 0)
        wrong = self.chat(max_completion_tokens=64, prediction={"type": "content", "content": "Nothing of the kind."})
        self.assertEqual(wrong.choices[0].message.content, text)
        with self.assertRaises(openai.BadRequestError):
            self.chat(prediction={"type": "content", "content": 7})

    def test_typical_and_fingerprint(self):
        answer = self.chat(temperature=1.0, extra_body={"typical_p": 0.5, "ignore_eos": True})
        self.assertTrue(answer.choices[0].message.content)
        self.assertEqual(answer.usage.completion_tokens, 24)
        self.assertEqual(answer.system_fingerprint, self.chat().system_fingerprint)


class Completions(Case):
    def complete(self, **options):
        options = {"prompt": "The machine stops because", "max_tokens": 16, "temperature": 0, **options}
        return self.client.completions.create(model=self.model, **options)

    def test_whole_and_streamed(self):
        answer = self.complete()
        self.assertEqual(answer.object, "text_completion")
        self.assertLessEqual(answer.usage.completion_tokens, 16)
        text, finish = "", None
        for chunk in self.complete(stream=True):
            text += chunk.choices[0].text
            finish = chunk.choices[0].finish_reason
        self.assertEqual((text, finish), (answer.choices[0].text, answer.choices[0].finish_reason))

    def test_logprobs(self):
        choice = self.complete(logprobs=2).choices[0]
        self.assertEqual("".join(choice.logprobs.tokens), choice.text)
        self.assertEqual(len(choice.logprobs.token_logprobs), len(choice.logprobs.tokens))
        self.assertEqual(choice.logprobs.text_offset[0], 0)

    def test_stop(self):
        whole = self.complete().choices[0].text
        stop = whole[3:6]
        answer = self.complete(stop=stop).choices[0]
        self.assertEqual((answer.text, answer.finish_reason), (whole[: whole.index(stop)], "stop"))


    def test_prompts_of_every_kind(self):
        prompts = ["The machine stops because", "The belt is"]
        both = self.complete(prompt=prompts, n=2, max_tokens=5)
        self.assertEqual([choice.index for choice in both.choices], [0, 1, 2, 3])
        alone = [self.complete(prompt=prompt, max_tokens=5) for prompt in prompts]
        wanted = [answer.choices[0].text for answer in alone for _ in range(2)]
        self.assertEqual([choice.text for choice in both.choices], wanted)
        self.assertEqual(both.usage.prompt_tokens, sum(answer.usage.prompt_tokens for answer in alone))
        texts = ["", "", "", ""]
        for chunk in self.complete(prompt=prompts, n=2, max_tokens=5, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        self.assertEqual(texts, wanted)
        body = {"content": prompts[0], "add_special": True}
        ids = self.client.post("/tokenize", body=body, cast_to=object)["tokens"]
        tokens = self.complete(prompt=ids, max_tokens=5, echo=True)
        self.assertTrue(tokens.choices[0].text.endswith(prompts[0] + wanted[0]))
        self.assertEqual(tokens.usage.prompt_tokens, len(ids))

    def test_echo(self):
        whole = self.complete().choices[0].text
        echoed = self.complete(echo=True).choices[0].text
        self.assertEqual(echoed, "The machine stops because" + whole)
        streamed = "".join(c.choices[0].text for c in self.complete(echo=True, stream=True))
        self.assertEqual(streamed, echoed)


class Responses(Case):
    def respond(self, **options):
        options = {"input": "Why does a conveyor belt stop?", "max_output_tokens": 16, "temperature": 0, **options}
        return self.client.responses.create(model=self.model, **options)

    def test_whole(self):
        response = self.respond(metadata={"line": "4"})
        self.assertEqual(response.object, "response")
        self.assertIn(response.status, ["completed", "incomplete"])
        if response.status == "incomplete":
            self.assertEqual(response.incomplete_details.reason, "max_output_tokens")
        self.assertEqual(response.output_text, self.text(max_completion_tokens=16))
        self.assertEqual(response.output[0].role, "assistant")
        self.assertEqual(response.metadata, {"line": "4"})
        usage = response.usage
        self.assertEqual(usage.total_tokens, usage.input_tokens + usage.output_tokens)
        self.assertLessEqual(usage.input_tokens_details.cached_tokens, usage.input_tokens)

    def test_streamed_is_whole(self):
        whole = self.respond()
        text, kinds, numbers, last = "", [], [], None
        for event in self.respond(stream=True):
            kinds.append(event.type)
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                text += event.delta
            last = event
        self.assertEqual(text, whole.output_text)
        self.assertEqual(numbers, list(range(len(numbers))))
        deltas = "response.output_text.delta"
        self.assertEqual(
            [kind for kind in kinds if kind != deltas],
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                f"response.{whole.status}",
            ],
        )
        self.assertEqual(last.response.output_text, text)
        self.assertEqual(last.response.usage.output_tokens, whole.usage.output_tokens)
        with self.client.responses.stream(
            model=self.model, input="Why does a conveyor belt stop?", max_output_tokens=16, temperature=0
        ) as stream:
            parts = [event.delta for event in stream if event.type == deltas]
        self.assertEqual("".join(parts), text)

    def test_items_and_instructions(self):
        response = self.respond(
            instructions="Be brief.",
            input=[{"role": "user", "content": [{"type": "input_text", "text": ASK[0]["content"]}]}],
        )
        messages = [{"role": "system", "content": "Be brief."}, *ASK]
        self.assertEqual(response.output_text, self.text(messages=messages, max_completion_tokens=16))

    def test_stored_responses(self):
        first = self.respond()
        again = self.client.responses.retrieve(first.id)
        self.assertEqual(again.output_text, first.output_text)
        second = self.respond(input="And then?", previous_response_id=first.id)
        self.assertEqual(second.previous_response_id, first.id)
        messages = [*ASK, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And then?"}]
        self.assertEqual(second.output_text, self.text(messages=messages, max_completion_tokens=16))
        streamed = [event for event in self.respond(stream=True)][-1].response
        self.assertEqual(self.client.responses.retrieve(streamed.id).output_text, first.output_text)
        self.client.responses.delete(first.id)
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.retrieve(first.id)
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.delete(first.id)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.respond(previous_response_id=first.id)
        self.assertEqual(caught.exception.param, "previous_response_id")
        unkept = self.respond(store=False)
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.retrieve(unkept.id)

    FLAT = [{"type": "function", **tool["function"]} for tool in TOOLS]

    def call(self, **options):
        options = {
            "tools": self.FLAT, "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 300, **options,
        }
        return self.respond(**options)

    def test_function_calls(self):
        response = self.call()
        self.assertEqual(response.status, "completed")
        self.assertEqual([item.type for item in response.output], ["function_call"])
        self.assertEqual(response.tools[0].name, "line_status")
        self.assertFalse(response.parallel_tool_calls)
        call = response.output[0]
        self.assertEqual(call.status, "completed")
        self.assertIsInstance(json.loads(call.arguments), dict)
        named = self.call(tool_choice={"type": "function", "name": "stop_line"}).output[0]
        self.assertEqual(named.name, "stop_line")

        result = {"type": "function_call_output", "call_id": call.call_id, "output": "Line 3 runs."}
        more = {"tool_choice": "none", "max_output_tokens": 12}
        gone_on = self.call(input=[result], previous_response_id=response.id, **more)
        said = [{"role": "user", "content": "Why does a conveyor belt stop?"}, call, result]
        self.assertEqual(self.call(input=said, **more).output_text, gone_on.output_text)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.call(input=[{**result, "call_id": "other"}], previous_response_id=response.id)
        self.assertEqual(caught.exception.param, "input")

    def test_streamed_function_calls(self):
        whole = self.call().output[0]
        kinds, arguments, last = [], "", None
        for event in self.call(stream=True):
            kinds.append(event.type)
            if event.type == "response.function_call_arguments.delta":
                arguments += event.delta
            last = event
        deltas = "response.function_call_arguments.delta"
        self.assertEqual(
            [kind for kind in kinds if kind != deltas],
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ],
        )
        self.assertEqual((last.response.output[0].name, arguments), (whole.name, whole.arguments))

    def test_what_is_not_there_is_named(self):
        for name, value in [
            ("reasoning", {"effort": "high"}),
            ("background", True),
            ("truncation", "auto"),
            ("max_output_tokens", 0),
            ("temperature", 9.0),
        ]:
            with self.subTest(name), self.assertRaises(openai.BadRequestError) as caught:
                self.respond(**{name: value})
            self.assertEqual(caught.exception.param, name)


class Tools(Case):
    TOOLS = TOOLS

    @staticmethod
    def named(name):
        return {"type": "function", "function": {"name": name}}

    def ask(self, **options):
        options = {"tools": self.TOOLS, "tool_choice": "required", "max_completion_tokens": 300, **options}
        return self.chat(**options)

    def check(self, call):
        self.assertTrue(call.id)
        self.assertEqual(call.type, "function")
        arguments = json.loads(call.function.arguments)
        if call.function.name == "line_status":
            self.assertEqual(set(arguments), {"line", "detail"})
            self.assertIn(arguments["line"], range(1, 10))
            self.assertIn(arguments["detail"], ["short", "long"])
        else:
            self.assertEqual(call.function.name, "stop_line")
            self.assertEqual(set(arguments), {"reason"})

    def test_a_call_that_is_required(self):
        for options in [{}, {"temperature": 0.9, "seed": 7}, {"stop": ['"', "{", "e"]}]:
            with self.subTest(options):
                choice = self.ask(parallel_tool_calls=False, **options).choices[0]
                self.assertEqual(choice.finish_reason, "tool_calls")
                self.assertIsNone(choice.message.content)
                self.assertEqual(len(choice.message.tool_calls), 1)
                self.check(choice.message.tool_calls[0])

    def test_a_call_of_a_function_by_its_name(self):
        for name in ["line_status", "stop_line"]:
            message = self.ask(tool_choice=self.named(name), parallel_tool_calls=False).choices[0].message
            self.assertEqual([call.function.name for call in message.tool_calls], [name])
            self.check(message.tool_calls[0])

    def test_several_calls_have_ids_of_their_own(self):
        choices = self.ask(n=2, temperature=1.0, seed=3, max_completion_tokens=600).choices
        calls = [call for choice in choices for call in choice.message.tool_calls]
        self.assertEqual(len({call.id for call in calls}), len(calls))
        for call in calls:
            self.check(call)

    def gathered(self, **options):
        """What a stream says: its text, its calls by index, and why it ended."""
        text, calls, finish = "", {}, None
        for chunk in self.ask(stream=True, **options):
            for choice in chunk.choices:
                self.assertIsNone(finish, "a piece after the end")
                text += choice.delta.content or ""
                for piece in choice.delta.tool_calls or []:
                    if piece.index not in calls:
                        self.assertTrue(piece.id and piece.function.name)
                        self.assertEqual(piece.type, "function")
                        self.assertEqual(piece.index, len(calls))
                        calls[piece.index] = [piece.function.name, ""]
                    else:
                        self.assertIsNone(piece.id)
                    calls[piece.index][1] += piece.function.arguments
                finish = choice.finish_reason
        return text, list(calls.values()), finish

    def test_streams_say_the_same(self):
        for options in [
            {},
            {"tool_choice": self.named("stop_line")},
            {"tool_choice": "auto", "temperature": 0.8, "seed": 5, "max_completion_tokens": 40},
            {"tool_choice": "auto", "logprobs": True, "max_completion_tokens": 10},
        ]:
            with self.subTest(options):
                choice = self.ask(**options).choices[0]
                calls = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or []]
                whole = (choice.message.content or "", calls, choice.finish_reason)
                self.assertEqual(self.gathered(**options), whole)

    def test_tokens_of_calls_have_probabilities(self):
        choice = self.ask(logprobs=True, parallel_tool_calls=False).choices[0]
        text = b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode()
        self.assertIn(choice.message.tool_calls[0].function.arguments, text)

    def test_a_limit_that_cuts_says_so(self):
        # More than every call begins with, and less than one takes; the tiny model says it letter by letter.
        choice = self.ask(max_completion_tokens=20 if KIND == "real" else 40).choices[0]
        self.assertEqual(choice.finish_reason, "length")

    def test_results_go_on_a_conversation(self):
        question = [{"role": "user", "content": "How is line 3?"}]
        first = self.ask(messages=question, parallel_tool_calls=False).choices[0].message
        call = first.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "Line 3 runs."}
        messages = [*question, first, result]
        for choice in ["none", "auto"]:
            answer = self.ask(messages=messages, tool_choice=choice, max_completion_tokens=12)
            self.assertIn(answer.choices[0].finish_reason, ["stop", "length", "tool_calls"])
        with self.assertRaises(openai.BadRequestError) as caught:
            self.ask(messages=[*question, first, {**result, "tool_call_id": "other"}])
        self.assertEqual(caught.exception.param, "messages[2].tool_call_id")

    def test_the_helper_of_the_client_reads_them(self):
        runner = self.client.chat.completions.stream(
            model=self.model, messages=ASK, tools=self.TOOLS, tool_choice="required", temperature=0,
            max_completion_tokens=300, parallel_tool_calls=False,
        )
        with runner as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        self.assertIn("tool_calls.function.arguments.done", kinds)
        self.check(final.choices[0].message.tool_calls[0])


class Errors(Case):
    def refused(self, kind, **options):
        with self.assertRaises(kind) as caught:
            self.chat(**options)
        error = caught.exception
        self.assertTrue(error.message)
        self.assertIsInstance(error.body, dict)
        self.assertTrue(error.body.get("type"), error.body)
        return error

    def test_tools_that_cannot_be_called_are_named(self):
        tool = TOOLS[0]
        odd = {"type": "function", "function": {"name": "odd", "parameters": {"type": "object", "not": {}}}}
        for options, param in [
            ({"tools": [tool, tool]}, "tools[1].function.name"),
            ({"tools": [tool] * 129}, "tools"),
            ({"tools": [odd]}, "tools"),
            ({"tools": [tool], "tool_choice": "any"}, "tool_choice"),
            ({"tools": [tool], "tool_choice": Tools.named("start_line")}, "tool_choice"),
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tools": [tool], "response_format": {"type": "json_object"}}, "response_format"),
            ({"functions": [tool["function"]]}, "functions"),
        ]:
            with self.subTest(str(options)[:80]):
                error = self.refused(openai.BadRequestError, **options)
                self.assertEqual(error.param, param, error.message)
                if options.get("tools") == [odd]:
                    self.assertIn("odd", error.message)

    def test_a_model_that_fills_no_gaps(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=self.model, prompt="a", suffix="b", max_tokens=2)
        self.assertEqual(caught.exception.param, "suffix")

    def test_bad_values_are_named(self):
        for name, value in [
            ("temperature", 99.0),
            ("top_p", -1.0),
            ("n", 99),
            ("logit_bias", {"99999999": 5}),
            ("max_completion_tokens", 0),
            ("presence_penalty", 99.0),
            ("top_logprobs", 2),
            ("messages", []),
            ("response_format", {"type": "xml"}),
            ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}),
        ]:
            with self.subTest(name):
                error = self.refused(openai.BadRequestError, **{name: value})
                self.assertEqual(error.param, name, error.message)

    def test_answers_of_a_shape(self):
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "note": {"type": "string"}},
                  "required": ["ok", "note"], "additionalProperties": False}
        shape = {"type": "json_schema", "json_schema": {"name": "note", "strict": True, "schema": schema}}
        for stream in (False, True):
            answer = self.chat(max_completion_tokens=100, response_format=shape, temperature=1, seed=3, stream=stream)
            if stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
            else:
                self.assertEqual(answer.choices[0].finish_reason, "stop")
                text = answer.choices[0].message.content
            value = json.loads(text)
            self.assertEqual(list(value), ["ok", "note"])
            self.assertIsInstance(value["ok"], bool)
        text = {"format": {"type": "json_schema", "name": "note", "schema": schema}}
        answer = self.client.responses.create(model=self.model, input="hello", max_output_tokens=100, text=text)
        self.assertEqual(list(json.loads(answer.output_text)), ["ok", "note"])

    def test_wrong_types(self):
        for name, value in [("temperature", "hot"), ("messages", "hello"), ("stop", 3), ("stream", "yes"), ("seed", 1.5)]:
            with self.subTest(name):
                self.refused(openai.BadRequestError, extra_body={name: value})

    def test_unknown_field(self):
        error = self.refused(openai.BadRequestError, extra_body={"temprature": 0.5})
        self.assertIn("temprature", error.message)

    def test_unknown_model(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="no-such-model", messages=ASK)
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_prompt_longer_than_the_context(self):
        messages = [{"role": "user", "content": "far too long " * 4000}]
        error = self.refused(openai.BadRequestError, messages=messages)
        self.assertEqual(error.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError):
            self.chat(messages=messages, stream=True)
        for stream in (False, True):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.client.responses.create(model=self.model, input="far too long " * 4000, stream=stream)
            self.assertEqual(caught.exception.param, "input")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=self.model, prompt="far too long " * 4000)
        self.assertEqual(caught.exception.param, "prompt")

    def test_body_larger_than_is_taken(self):
        with self.assertRaises(openai.APIStatusError) as caught:
            self.chat(messages=[{"role": "user", "content": "x" * (2 << 20)}])
        self.assertEqual(caught.exception.status_code, 413)

    def test_unknown_path(self):
        with self.assertRaises(openai.NotFoundError):
            self.client.moderations.create(model=self.model, input="text")

    def test_a_model_that_makes_no_embeddings(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.embeddings.create(model=self.model, input="text")
        self.assertIn("makes no embeddings", caught.exception.message)
        self.assertEqual(caught.exception.param, "model")


if __name__ == "__main__":
    unittest.main(verbosity=2)
