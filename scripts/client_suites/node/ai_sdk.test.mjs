// Vercel's AI SDK with its OpenAI provider (.chat) and its OpenAI-compatible one: text, objects, tools in steps, streams.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embed, embedMany, generateObject, generateText, isStepCount, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { PERSON, WEATHER, chat, embedder, user } from "./asked.mjs";

const baseURL = process.env.OPENAI_BASE_URL;
const openai = createOpenAI({ baseURL });
const compatible = createOpenAICompatible({ name: "oxlo", baseURL, includeUsage: true, supportsStructuredOutputs: true });
const providers = {
  openai: { text: openai.chat(chat), vectors: openai.embedding(embedder) },
  compatible: { text: compatible(chat), vectors: compatible.embeddingModel(embedder) },
};
const Person = z.object({ name: z.string(), age: z.number().int(), city: z.string() });
const calm = { temperature: 0, maxRetries: 0, maxOutputTokens: 300 };

const weather = (asked) => tool({
  description: "Get the current weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    asked.push(city);
    return { city, temperature: 21 };
  },
});

for (const [name, { text: model, vectors }] of Object.entries(providers)) {
  test(`${name}: generateText`, async () => {
    const { text, finishReason, usage, response } = await generateText({ ...calm, model, prompt: "How do I pull a model?" });
    assert.ok(text && response.id);
    assert.equal(finishReason, "stop");
    assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0 && usage.totalTokens === usage.inputTokens + usage.outputTokens);
  });

  test(`${name}: generateText of a conversation`, async () => {
    const { text } = await generateText({
      ...calm, model, instructions: "Be brief.", stopSequences: ["\n\n\n"], seed: 7, topP: 0.9, presencePenalty: 0.1, frequencyPenalty: 0.1,
      messages: [...user("Hello!"), { role: "assistant", content: [{ type: "text", text: "Hello." }] },
        { role: "user", content: [{ type: "text", text: "How do I" }, { type: "text", text: "pull a model?" }] }],
    });
    assert.ok(text);
  });

  test(`${name}: streamText`, async () => {
    const stream = streamText({ ...calm, model, prompt: "How do I pull a model?" });
    const deltas = [];
    for await (const delta of stream.textStream) deltas.push(delta);
    assert.ok(deltas.length > 1);
    assert.equal(await stream.text, deltas.join(""));
    assert.equal(await stream.finishReason, "stop");
    assert.ok((await stream.usage).outputTokens > 0);
  });

  test(`${name}: streamText that is cut`, async () => {
    const stream = streamText({ ...calm, model, prompt: "How do I pull a model?", maxOutputTokens: 3 });
    await stream.consumeStream();
    assert.equal(await stream.finishReason, "length");
  });

  test(`${name}: streamText that is left`, async () => {
    const left = new AbortController();
    const stream = streamText({ ...calm, model, prompt: "Tell me a lot.", abortSignal: left.signal });
    const kinds = [];
    for await (const part of stream.fullStream) {
      kinds.push(part.type);
      if (part.type === "text-delta") left.abort();
    }
    assert.ok(kinds.includes("abort"));
  });

  test(`${name}: generateObject`, async () => {
    const { object } = await generateObject({ ...calm, model, schema: Person, prompt: PERSON });
    assert.deepEqual(object, { name: "Ada", age: 36, city: "London" });
  });

  test(`${name}: generateObject of an array`, async () => {
    const { object } = await generateObject({
      ...calm, model, output: "array", schema: Person, prompt: PERSON, maxOutputTokens: 800,
    });
    assert.ok(Array.isArray(object));
  });

  test(`${name}: generateObject of an enum`, async () => {
    const { object } = await generateObject({ ...calm, model, output: "enum", enum: ["happy", "sad"], prompt: "I am glad." });
    assert.ok(["happy", "sad"].includes(object));
  });

  test(`${name}: generateObject without a schema`, async () => {
    const { object } = await generateObject({ ...calm, model, output: "no-schema", prompt: PERSON });
    assert.equal(typeof object, "object");
  });

  test(`${name}: streamObject`, async () => {
    const stream = streamObject({ ...calm, model, schema: Person, prompt: PERSON });
    const partial = [];
    for await (const each of stream.partialObjectStream) partial.push(each);
    assert.ok(partial.length > 1);
    assert.deepEqual(await stream.object, partial.at(-1));
    assert.ok((await stream.usage).outputTokens > 0);
  });

  test(`${name}: output beside text`, async () => {
    const { output } = await generateText({ ...calm, model, output: Output.object({ schema: Person }), prompt: PERSON });
    assert.equal(typeof output.age, "number");
  });

  test(`${name}: a tool that must be called`, async () => {
    const asked = [];
    const { toolCalls, finishReason } = await generateText({
      ...calm, model, prompt: WEATHER, tools: { get_weather: weather(asked) }, toolChoice: "required",
    });
    assert.equal(toolCalls[0].toolName, "get_weather");
    assert.equal(finishReason, "tool-calls");
    assert.ok(asked.length >= 1);
  });

  test(`${name}: a tool by name`, async () => {
    const { toolCalls } = await generateText({
      ...calm, model, prompt: WEATHER, tools: { get_weather: weather([]) }, toolChoice: { type: "tool", toolName: "get_weather" },
    });
    assert.equal(typeof toolCalls[0].input.city, "string");
  });

  test(`${name}: tools in steps`, async () => {
    const asked = [];
    const { text, steps } = await generateText({
      ...calm, model, prompt: WEATHER, tools: { get_weather: weather(asked) }, stopWhen: isStepCount(3),
    });
    assert.deepEqual(asked, ["Paris"]);
    assert.ok(text && steps.length === 2);
  });

  test(`${name}: tools in steps, streamed`, async () => {
    const asked = [], kinds = new Set();
    const stream = streamText({
      ...calm, model, prompt: WEATHER, tools: { get_weather: weather(asked) }, stopWhen: isStepCount(3),
    });
    for await (const part of stream.fullStream) kinds.add(part.type);
    assert.deepEqual(asked, ["Paris"]);
    for (const kind of ["tool-input-start", "tool-input-delta", "tool-input-end", "tool-call", "tool-result", "text-delta"]) {
      assert.ok(kinds.has(kind), kind);
    }
  });

  test(`${name}: a tool whose result is an error`, async () => {
    const broken = tool({
      description: "Get the current weather in a city.",
      inputSchema: z.object({ city: z.string() }),
      execute: async () => {
        throw new Error("no weather today");
      },
    });
    const { steps } = await generateText({
      ...calm, model, prompt: WEATHER, tools: { get_weather: broken }, stopWhen: isStepCount(2),
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
    });
    assert.equal(steps.length, 2);
  });

  test(`${name}: embed and embedMany`, async () => {
    const one = await embed({ model: vectors, value: "one", maxRetries: 0 });
    const many = await embedMany({ model: vectors, values: ["one", "two"], maxRetries: 0 });
    assert.equal(many.embeddings.length, 2);
    one.embedding.forEach((value, place) => assert.ok(Math.abs(value - many.embeddings[0][place]) < 1e-3));
    assert.ok(one.usage.tokens > 0);
  });

  test(`${name}: an error says what the server said`, async () => {
    const wrong = name === "openai" ? openai.chat("no-such-model") : compatible("no-such-model");
    await assert.rejects(generateText({ ...calm, model: wrong, prompt: "Hi" }), (error) => {
      assert.equal(error.statusCode, 404);
      assert.match(error.message, /no-such-model/);
      assert.equal(error.isRetryable, false);
      return true;
    });
  });
}
