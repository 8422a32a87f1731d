/** Where a command talks to: results go to `out`, everything else to `err`. */

export interface Terminal {
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
}

/** Work shorter than this is not announced. */
const PATIENCE_MS = 1000;

/**
 * Says what is going on, once the work has taken more than a second. Messages come from code that may keep the thread
 * busy, so every message checks the clock, and a timer covers work that waits.
 */
export class Progress {
  readonly #terminal: Terminal | null;
  readonly #start: number = performance.now();
  #timer: NodeJS.Timeout | null = null;

  /** `terminal` is null to stay silent. */
  constructor(terminal: Terminal | null) {
    this.#terminal = terminal;
  }

  /** What happens from now on. */
  say(message: string): void {
    const terminal = this.#terminal;
    if (terminal === null) return;
    this.#cancel();
    const left = PATIENCE_MS - (performance.now() - this.#start);
    if (left <= 0) terminal.err(`${message}\n`);
    else this.#timer = setTimeout(() => terminal.err(`${message}\n`), left).unref();
  }

  /** Nothing more happens. */
  done(): void {
    this.#cancel();
  }

  #cancel(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}
