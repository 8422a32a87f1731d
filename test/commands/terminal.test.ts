import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Progress } from "../../src/commands/terminal.js";

const said: string[] = [];
const terminal = { out: (): void => undefined, err: (text: string): void => void said.push(text) };

beforeEach(() => {
  said.length = 0;
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] });
});
afterEach(() => {
  vi.useRealTimers();
});

test("work of less than a second is not announced", () => {
  const progress = new Progress(terminal);
  progress.say("reading");
  vi.advanceTimersByTime(900);
  progress.done();
  vi.advanceTimersByTime(5000);
  expect(said).toEqual([]);
});

test("after a second the present step is told, then every new one", () => {
  const progress = new Progress(terminal);
  progress.say("reading");
  progress.say("proving");
  vi.advanceTimersByTime(1000);
  expect(said).toEqual(["proving\n"]);
  progress.say("writing");
  expect(said).toEqual(["proving\n", "writing\n"]);
  progress.done();
});

test("steps that kept the thread busy are told at the next one", () => {
  const progress = new Progress(terminal);
  vi.setSystemTime(Date.now() + 3000);
  vi.advanceTimersByTime(3000);
  progress.say("writing");
  expect(said).toEqual(["writing\n"]);
});

test("without a terminal nothing is told", () => {
  const progress = new Progress(null);
  vi.advanceTimersByTime(3000);
  progress.say("writing");
  expect(said).toEqual([]);
});
