/** What a reader could not take as it was: collected while reading, told once each with a count. */

import type { Message, MessageName } from "./schema.js";

/** Collects remarks in the order of their first appearance. */
export class ReadLog {
  readonly #counts = new Map<string, number>();

  note(text: string): void {
    this.#counts.set(text, (this.#counts.get(text) ?? 0) + 1);
  }

  /** Notes the unknown fields of a message. `fate` says what becomes of them. */
  unknown<M extends MessageName>(message: M, value: Message<M>, fate: "kept unread" | "dropped"): void {
    for (const field of value.unknown ?? []) {
      this.note(`${message} has an unknown field ${field.number} (wire type ${field.wireType}); ${fate}`);
    }
  }

  warnings(): string[] {
    return [...this.#counts].map(([text, count]) => (count === 1 ? text : `${text}, ${count} times`));
  }
}
