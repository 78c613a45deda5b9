// What every test shares: the names of the models, and telling the wire which test speaks.
import { beforeEach } from "node:test";

export const chat = process.env.CHAT_MODEL;
export const embedder = process.env.EMBEDDING_MODEL;
export const PERSON = "Give me JSON: Ada is 36 years old and lives in London.";
export const WEATHER = "What is the weather in Paris?";
export const user = (content) => [{ role: "user", content }];

beforeEach(async (context) => {
  await fetch(`${process.env.WIRE}/test`, { method: "PUT", body: context.name });
});
