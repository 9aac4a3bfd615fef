"""The official OpenAI client asking a model that makes embeddings, unchanged but for its transport.

Run by tests/it/openai.rs, which starts the daemon and sets ANDON_SOCKET.
"""

import array
import asyncio
import concurrent.futures
import math
import os
import unittest

import httpx
import openai

SOCKET = os.environ["ANDON_SOCKET"]
URL = "http://andon/v1"
TEXTS = ["the belt of line three stops", "the oven is hot", "a"]


def client():
    transport = httpx.HTTPTransport(uds=SOCKET)
    http = httpx.Client(transport=transport, timeout=120)
    return openai.OpenAI(base_url=URL, api_key="none", http_client=http, max_retries=0)


class Case(unittest.TestCase):
    def setUp(self):
        self.client = client()
        self.addCleanup(self.client.close)
        self.model = self.client.models.list().data[0].id

    def embed(self, input, **options):
        return self.client.embeddings.create(model=self.model, input=input, **options)

    def vectors(self, input, **options):
        return [item.embedding for item in self.embed(input, **options).data]

    def refused(self, kind, call):
        with self.assertRaises(kind) as caught:
            call()
        error = caught.exception
        self.assertTrue(error.message)
        self.assertTrue(error.body.get("type"), error.body)
        return error


class Embeddings(Case):
    def test_a_text(self):
        answer = self.embed(TEXTS[0])
        self.assertEqual((answer.object, answer.model, len(answer.data)), ("list", self.model, 1))
        item = answer.data[0]
        self.assertEqual((item.object, item.index, len(item.embedding)), ("embedding", 0, 96))
        self.assertAlmostEqual(math.fsum(x * x for x in item.embedding), 1.0, places=5)
        self.assertGreater(answer.usage.prompt_tokens, 5)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens)

    def test_several_texts_are_what_each_is_alone(self):
        answer = self.embed(TEXTS)
        self.assertEqual([item.index for item in answer.data], [0, 1, 2])
        alone = [self.embed(text) for text in TEXTS]
        self.assertEqual([item.embedding for item in answer.data], [one.data[0].embedding for one in alone])
        self.assertEqual(answer.usage.prompt_tokens, sum(one.usage.prompt_tokens for one in alone))

    def test_base64_and_numbers_are_the_same(self):
        # Left out, the client asks for base64 and decodes it.
        default = [array.array("f", vector) for vector in self.vectors(TEXTS)]
        numbers = self.vectors(TEXTS, encoding_format="float")
        self.assertEqual(default, [array.array("f", vector) for vector in numbers])
        text = self.embed(TEXTS[0], encoding_format="base64").data[0].embedding
        self.assertIsInstance(text, str)
        self.assertEqual(len(text), 96 * 4 * 4 // 3)

    def test_token_ids(self):
        one, two = [2, 40, 41, 3], [2, 50, 3]
        self.assertEqual(self.vectors(one), [self.vectors([one, two])[0]])
        self.assertEqual(self.embed(one).usage.prompt_tokens, 4)

    def test_dimensions(self):
        whole, short = self.vectors(TEXTS[0])[0], self.vectors(TEXTS[0], dimensions=16)[0]
        self.assertEqual(len(short), 16)
        length = math.sqrt(math.fsum(x * x for x in whole[:16]))
        for a, b in zip(whole, short):
            self.assertAlmostEqual(a / length, b, places=5)

    def test_many_inputs_and_user(self):
        texts = [f"sensor {number} of line {number % 7}" for number in range(300)]
        vectors = self.vectors(texts, user="line-7")
        self.assertEqual(len(vectors), 300)
        self.assertEqual(vectors[299], self.vectors(texts[299])[0])

    def test_at_once_is_one_by_one(self):
        def ask(number):
            with client() as own:
                texts = [TEXTS[number % 3]] * (1 + number)
                return own.embeddings.create(model=self.model, input=texts).data[0].embedding

        alone = [ask(number) for number in range(6)]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            self.assertEqual(alone, list(pool.map(ask, range(6))))

    def test_async_client(self):
        async def ask():
            transport = httpx.AsyncHTTPTransport(uds=SOCKET)
            http = httpx.AsyncClient(transport=transport, timeout=120)
            async with openai.AsyncOpenAI(base_url=URL, api_key="none", http_client=http, max_retries=0) as own:
                answer = await own.embeddings.create(model=self.model, input=TEXTS)
                return [item.embedding for item in answer.data]

        self.assertEqual(asyncio.run(ask()), self.vectors(TEXTS))


class Models(Case):
    def test_what_the_model_can_do_is_said(self):
        model = self.client.models.list().data[0]
        self.assertEqual(model.model_extra["capabilities"], ["embeddings"])
        self.assertEqual(model.model_extra["embedding_dimensions"], 96)

    def test_it_generates_no_text(self):
        messages = [{"role": "user", "content": "hello"}]
        for call in [
            lambda: self.client.chat.completions.create(model=self.model, messages=messages),
            lambda: self.client.chat.completions.create(model=self.model, messages=messages, stream=True),
            lambda: self.client.completions.create(model=self.model, prompt="hello"),
        ]:
            error = self.refused(openai.BadRequestError, call)
            self.assertIn("generates no text", error.message)
            self.assertEqual(error.param, "model")


class Errors(Case):
    def test_bad_values_are_named(self):
        for name, options in [
            ("input", {"input": ""}),
            ("input", {"input": []}),
            ("input", {"input": ["a", ""]}),
            ("input", {"input": [[]]}),
            ("input", {"input": [1000000]}),
            ("input", {"input": ["a"] * 2049}),
            ("dimensions", {"input": "a", "dimensions": 97}),
            ("dimensions", {"input": "a", "dimensions": 0}),
            ("encoding_format", {"input": "a", "encoding_format": "hex"}),
        ]:
            with self.subTest(str(options)[:40]):
                error = self.refused(openai.BadRequestError, lambda: self.embed(**options))
                self.assertEqual(error.param, name, error.message)

    def test_an_input_longer_than_the_context_is_never_cut(self):
        error = self.refused(openai.BadRequestError, lambda: self.embed(["short", "far too long " * 200]))
        self.assertEqual(error.code, "context_length_exceeded")
        self.assertIn("input 1", error.message)

    def test_unknown_field_and_model(self):
        error = self.refused(openai.BadRequestError, lambda: self.embed("a", extra_body={"dimension": 5}))
        self.assertIn("dimension", error.message)
        call = lambda: self.client.embeddings.create(model="no-such-model", input="a")
        self.assertEqual(self.refused(openai.NotFoundError, call).code, "model_not_found")

    def test_a_deadline_that_passes(self):
        texts = ["the oven is hot and the belt stops " * 5] * 2000
        call = lambda: self.embed(texts, extra_body={"deadline_ms": 1})
        error = self.refused(openai.APIStatusError, call)
        self.assertEqual((error.status_code, error.code), (504, "deadline_exceeded"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
