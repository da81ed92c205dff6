// Live mode: asks repeatedly about the camera or the screen.

import { ask } from "./api.js";
import { differ, frame, glance } from "./images.js";
import { closeVideo, openVideo } from "./video.js";
import { counted } from "./words.js";

const PAUSE_MS = 200; // between two checks of an unchanged image
const TOKENS = 32;

export class Live {
  /**
   * @param {HTMLVideoElement} video
   * @param {{question: () => string, body: (content: object[]) => Promise<object>, onQuestion: (text: string) => void,
   *   onAnswer: (text: string) => void, onStats: (text: string) => void, onError: (error: Error) => void,
   *   onEnd: () => void}} hooks  body: the request that asks a message's content
   */
  constructor(video, hooks) {
    this.video = video;
    this.hooks = hooks;
    this.controller = null;
    this.skipped = 0;
    this.answered = 0;
  }

  get isOn() {
    return this.controller !== null;
  }

  async start(kind) {
    this.end();
    const controller = (this.controller = new AbortController());
    // Clear results of the previous run.
    this.hooks.onAnswer("");
    this.hooks.onStats("");
    try {
      await openVideo(this.video, kind);
      // Sharing can also be stopped in the browser's own bar.
      this.video.srcObject.getVideoTracks()[0].onended = () => this.end();
      await this.run(controller.signal);
    } catch (error) {
      if (error.name !== "AbortError") this.hooks.onError(error);
    } finally {
      if (this.controller === controller) this.end();
    }
  }

  end() {
    if (!this.isOn) return;
    this.controller.abort();
    this.controller = null;
    closeVideo(this.video);
    this.hooks.onEnd();
  }

  async run(signal) {
    this.skipped = this.answered = 0;
    let seen = null;
    let asked = null;
    while (!signal.aborted) {
      const now = glance(this.video);
      const question = this.hooks.question();
      this.hooks.onQuestion(question);
      if (differ(seen, now) || question !== asked) {
        [seen, asked] = [now, question];
        await this.answer(question, signal);
      } else {
        this.skipped++;
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
      }
      this.hooks.onStats(this.stats());
    }
  }

  async answer(question, signal) {
    const start = performance.now();
    let text = "";
    this.ttft = null;
    const body = await this.hooks.body([
      { type: "image_url", image_url: { url: frame(this.video) } },
      { type: "text", text: question },
    ]);
    await ask(
      { ...body, max_tokens: Math.min(TOKENS, body.max_tokens) },
      (piece) => {
        this.ttft ??= performance.now() - start;
        text += piece;
        this.hooks.onAnswer(text);
      },
      signal,
    );
    this.answered++;
  }

  stats() {
    const ttft = this.ttft == null ? "" : `first word after ${Math.round(this.ttft)} ms · `;
    return `${ttft}${counted(this.answered, "answer")}, ${counted(this.skipped, "unchanged frame")} skipped`;
  }
}
