// OpenAI's Node SDK: parsing with zod, stream events, the tool runner, raw answers, embeddings, errors.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { PERSON, WEATHER, chat, embedder, user } from "./asked.mjs";

const client = new OpenAI({ maxRetries: 0 });
const Person = z.object({ name: z.string(), age: z.number().int(), city: z.string() });
const City = z.object({ city: z.string() });
const weather = zodFunction({ name: "get_weather", description: "Get the current weather in a city.", parameters: City });
const runnable = (asked) => ({
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the current weather in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    parse: JSON.parse,
    function: (args) => {
      asked.push(args);
      return { city: args.city, temperature: 21 };
    },
  },
});

test("create", async () => {
  const answer = await client.chat.completions.create({ model: chat, messages: user("How do I pull a model?"), temperature: 0 });
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.ok(answer._request_id);
});

test("a stream is what create says", async () => {
  const asked = { model: chat, messages: user("How do I pull a model?"), temperature: 0 };
  const whole = await client.chat.completions.create(asked);
  let said = "";
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    said += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(said, whole.choices[0].message.content);
});

test("stream events of a text", async () => {
  const stream = client.chat.completions.stream({
    model: chat, messages: user("How do I pull a model?"), temperature: 0, stream_options: { include_usage: true },
  });
  let said = "";
  stream.on("content", (delta) => (said += delta));
  assert.equal(await stream.finalContent(), said);
  assert.ok((await stream.totalUsage()).completion_tokens > 0);
});

test("parse with zod", async () => {
  const answer = await client.chat.completions.parse({
    model: chat, messages: user(PERSON), response_format: zodResponseFormat(Person, "person"), temperature: 0,
  });
  assert.deepEqual(answer.choices[0].message.parsed, { name: "Ada", age: 36, city: "London" });
});

test("parse of a rich schema", async () => {
  const Rich = z.object({
    mood: z.enum(["good", "bad"]), remark: z.string().max(20).nullable(), steps: z.array(z.object({ say: z.string().max(20) })).max(2),
    either: z.union([z.string().max(20), z.number().int()]),
  });
  const answer = await client.chat.completions.parse({
    model: chat, messages: user("Solve 1 + 1."), response_format: zodResponseFormat(Rich, "rich"), temperature: 0, max_tokens: 600,
  });
  assert.ok(["good", "bad"].includes(answer.choices[0].message.parsed.mood));
});

test("stream events of a schema", async () => {
  const stream = client.chat.completions.stream({
    model: chat, messages: user(PERSON), response_format: zodResponseFormat(Person, "person"), temperature: 0,
  });
  const partial = [];
  stream.on("content.delta", ({ parsed }) => partial.push(parsed));
  const whole = await stream.finalChatCompletion();
  assert.equal(typeof whole.choices[0].message.parsed.age, "number");
  assert.ok(partial.length > 1);
});

test("stream events of tool arguments", async () => {
  const stream = client.chat.completions.stream({
    model: chat, messages: user(WEATHER), tools: [weather], tool_choice: "required", temperature: 0,
  });
  const done = [];
  stream.on("tool_calls.function.arguments.done", (event) => done.push(event.parsed_arguments));
  const whole = await stream.finalChatCompletion();
  const calls = whole.choices[0].message.tool_calls;
  assert.deepEqual(done, calls.map((call) => call.function.parsed_arguments));
  assert.equal(typeof done[0].city, "string");
});

test("a stream over the wire and back", async () => {
  const source = client.chat.completions.stream({ model: chat, messages: user("Hello!"), temperature: 0 });
  const { ChatCompletionStream } = await import("openai/lib/ChatCompletionStream");
  const again = ChatCompletionStream.fromReadableStream(source.toReadableStream());
  assert.ok(await again.finalContent());
});

test("a stream that is left", async () => {
  const stream = await client.chat.completions.create({ model: chat, messages: user("Tell me a lot."), stream: true });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
  assert.equal((await client.models.retrieve(chat)).id, chat);
});

test("runTools", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({ model: chat, messages: user(WEATHER), tools: [runnable(asked)], temperature: 0 });
  const said = await runner.finalContent();
  assert.deepEqual(asked, [{ city: "Paris" }]);
  assert.ok(said);
});

test("runTools, streamed", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model: chat, messages: user(WEATHER), tools: [runnable(asked)], temperature: 0, stream: true,
  });
  assert.ok(await runner.finalContent());
  assert.deepEqual(asked, [{ city: "Paris" }]);
  assert.deepEqual(runner.messages.map((message) => message.role), ["user", "assistant", "tool", "assistant"]);
});

test("runTools with a single function", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model: chat, messages: user(WEATHER), tools: [runnable(asked)], temperature: 0,
    tool_choice: { type: "function", function: { name: "get_weather" } },
  });
  await runner.done();
  assert.equal(asked.length, 1);
});

test("several choices and logprobs", async () => {
  const answer = await client.chat.completions.create({
    model: chat, messages: user("Hello!"), n: 3, seed: 1, logprobs: true, top_logprobs: 2,
  });
  assert.equal(answer.choices.length, 3);
  assert.equal(answer.choices[2].logprobs.content[0].top_logprobs.length, 2);
});

test("raw answers", async () => {
  const { data, response, request_id } = await client.chat.completions
    .create({ model: chat, messages: user("Hello!") }).withResponse();
  assert.ok(data.choices.length === 1 && response.headers.get("x-request-id") === request_id);
});

test("completions", async () => {
  const asked = { model: chat, prompt: "Hello", max_tokens: 8, temperature: 0 };
  const whole = await client.completions.create(asked);
  let said = "";
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) said += chunk.choices[0].text;
  assert.equal(said, whole.choices[0].text);
});

test("embeddings", async () => {
  const plain = await client.embeddings.create({ model: embedder, input: ["one", "two"] });
  const floats = await client.embeddings.create({ model: embedder, input: ["one", "two"], encoding_format: "float" });
  assert.equal(plain.data.length, 2);
  plain.data[1].embedding.forEach((value, place) => assert.ok(Math.abs(value - floats.data[1].embedding[place]) < 1e-4));
});

test("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes(chat) && ids.includes(embedder));
});

test("errors are the SDK's own", async () => {
  await assert.rejects(client.chat.completions.create({ model: "no-such-model", messages: user("Hi") }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && error.requestID);
    return true;
  });
  await assert.rejects(
    client.chat.completions.create({ model: chat, messages: user("Hi"), temperature: 9 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
  );
});
